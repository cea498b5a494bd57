"""What did it look at: attention maps on demand, and what can be made of them."""

from __future__ import annotations

from .heads import HeadStatistics, head_statistics
from .maps import capture
from .relevance import Step, relevance
from .rollout import rollout

__all__ = ["HeadStatistics", "Step", "capture", "head_statistics", "relevance", "rollout"]
