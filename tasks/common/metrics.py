"""Metrics that are shared by tasks, as torchmetrics: gathered over processes, exact in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupedMean(Metric):
    """Means of per-sample scores, over all samples and over each group.

    `compute()` returns `{"accuracy": ..., "accuracy/colour": ...}`; groups without a sample are omitted.

    Args:
        name: Name of the metric.
        groups: Names of the groups; samples of other groups are counted in the overall mean only.
    """

    full_state_update = False

    def __init__(self, name: str, groups: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name, self.groups = name, tuple(groups)
        self.index = {group: number + 1 for number, group in enumerate(self.groups)}
        zeros = torch.zeros(len(self.groups) + 1, dtype=torch.float64)
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")
        self.total: Tensor
        self.count: Tensor

    def set_dtype(self, dst_type: Any) -> GroupedMean:
        """Keep float64 for any precision of the model, so that sums over processes equal those of one process."""
        return self

    def update(self, scores: Tensor, groups: Sequence[str]) -> None:
        """Add scores (B,) of samples with their group names."""
        scores = scores.to(self.total)
        self.total[0] += scores.sum()
        self.count[0] += len(groups)
        rows = torch.tensor([self.index.get(group, 0) for group in groups], device=scores.device)
        known = rows > 0
        self.total.index_add_(0, rows[known], scores[known])
        self.count.index_add_(0, rows[known], torch.ones_like(scores[known]))

    def compute(self) -> dict[str, Tensor]:
        names = [self.name, *(f"{self.name}/{group}" for group in self.groups)]
        means = self.total / self.count.clamp_min(1)
        return {
            name: mean
            for name, mean, count in zip(names, means, self.count, strict=True)
            if count > 0 or name == self.name
        }
