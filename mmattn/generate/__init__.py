"""Greedy search, sampling and beam search over a step function with an opaque decoding state."""

from __future__ import annotations

from .cached import CachedState, CachedSteps
from .config import GenerationConfig
from .search import Generated, generate, stream
from .state import State

__all__ = ["CachedState", "CachedSteps", "Generated", "GenerationConfig", "State", "generate", "stream"]
