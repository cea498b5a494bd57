"""Explanations: attention maps on demand, rollout, relevance and statistics of heads."""

from __future__ import annotations

from .heads import HeadStatistics, head_statistics
from .maps import capture, shares
from .relevance import Step, relevance
from .rollout import rollout

__all__ = ["HeadStatistics", "Step", "capture", "head_statistics", "relevance", "rollout", "shares"]
