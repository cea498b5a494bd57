"""Exact match and F1 of SQuAD as a torchmetrics metric, gathered over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mmattn.tasks.qa.metrics import best_threshold, exact_match, f1


class SquadMetric(Metric):
    """Exact match and F1 in 0..1, over all questions and, if some have no answer, over those with one and without.

    Names are like those of the official script: `f1`, `em`, `has_ans_f1`, `has_ans_em`, `no_ans_f1`; and `threshold`.

    Args:
        threshold: The context has no answer if the difference of scores exceeds it; None: there always is one.
        chooses: Whether `em` and `f1` are those of the best threshold, as on validation data.
        groups: Names of the kinds of questions whose F1 is reported, too.
    """

    full_state_update = False

    def __init__(
        self, threshold: float | None, chooses: bool = False, groups: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.threshold, self.chooses, self.groups = threshold, chooses, tuple(groups)
        # Of each question: em and f1 of the best span, whether it has an answer, the difference, the group.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.rows: list[Tensor]

    def set_dtype(self, dst_type: Any) -> SquadMetric:
        """Keep float64 for any precision of the model."""
        return self

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        differences: Sequence[float],
        groups: Sequence[str],
    ) -> None:
        """Add questions: their best spans, answers, differences of scores, and kinds."""
        rows = [
            [exact_match(text, true), f1(text, true), float(list(true) != [""]), difference, self._group(kind)]
            for text, true, difference, kind in zip(predictions, answers, differences, groups, strict=True)
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, 5))

    def _group(self, kind: str) -> float:
        return float(self.groups.index(kind)) if kind in self.groups else -1.0

    def compute(self) -> dict[str, Tensor]:
        rows = torch.cat(list(self.rows)) if isinstance(self.rows, list) else self.rows
        em, f1_of_span, answerable, difference, group = rows.cpu().unbind(1)
        has = answerable.bool()
        threshold = self.threshold
        if threshold is not None and self.chooses:
            threshold = best_threshold(f1_of_span, has, difference)
        if threshold is not None:
            none = difference > threshold
            em, f1_of_span = (torch.where(none, (~has).double(), torch.where(has, x, 0.0)) for x in (em, f1_of_span))
        values = {"f1": f1_of_span.mean(), "em": em.mean()}
        if not has.all() and has.any():
            values |= {"has_ans_f1": f1_of_span[has].mean(), "has_ans_em": em[has].mean()}
            values |= {"no_ans_f1": f1_of_span[~has].mean()}
        if threshold is not None:
            values["threshold"] = torch.tensor(threshold)
        for number, name in enumerate(self.groups):
            if (group == number).any():
                values[f"f1/{name}"] = f1_of_span[group == number].mean()
        return values
