"""Text from a step function: greedy, sampling, beam search; what a model keeps between the steps is its own affair."""

from __future__ import annotations

from .cached import CachedState
from .config import GenerationConfig
from .search import Generated, generate
from .state import State

__all__ = ["CachedState", "Generated", "GenerationConfig", "State", "generate"]
