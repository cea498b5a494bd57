"""Exact match and F1 of SQuAD, and the choice of the threshold for questions without an answer.

Rajpurkar et al. 2016, section 6.1, and Rajpurkar et al. 2018, section 4, as in the official evaluation script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case a text and remove punctuation, articles and repeated white space.

    >>> normalize_answer("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether a prediction equals one of the answers, after normalization: 0 or 1.

    Args:
        prediction: The predicted answer; "" if the context is predicted to have none.
        answers: The annotators' answers; [""] if the context has none.
    """
    return float(any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Greatest F1 of the prediction's words and those of an answer, in 0..1; see `exact_match`.

    >>> round(f1("the old mill", ["old stone mill"]), 4)
    0.8
    """
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in answers)


def _f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    common = (Counter(found) & Counter(true)).total()
    return 2 * common / (len(found) + len(true))


def best_threshold(f1_of_span: Tensor, answerable: Tensor, null_difference: Tensor) -> float:
    """The threshold with the greatest F1, of equal ones the least, halfway between two questions' differences.

    Args:
        f1_of_span: (N,), F1 of the best span of each question.
        answerable: (N,) bool.
        null_difference: (N,), by how much the score of no answer exceeds that of the best span.
    """
    order = null_difference.argsort(stable=True)
    differences = null_difference[order]
    # With a threshold between the k-th and the next, the first k questions are answered.
    gain = torch.where(answerable, f1_of_span, 0.0)[order] - (~answerable[order]).to(f1_of_span)
    totals = torch.cat([gain.new_zeros(1), gain.cumsum(0)])  # (N + 1,)
    edges = torch.cat([differences[:1] - 1, (differences[1:] + differences[:-1]) / 2, differences[-1:] + 1])
    distinct = torch.ones_like(totals, dtype=torch.bool)
    distinct[1:-1] = differences[1:] > differences[:-1]
    return float(edges[totals.masked_fill(~distinct, -torch.inf).argmax()])


class SquadMetric(Metric):
    """Exact match and F1 in 0..1, over all questions and, if some have no answer, over those with one and without.

    Names are those of the official script: `em`, `f1`, `has_ans_em`, `has_ans_f1`, `no_ans_f1`; `best_f1` is that
    of `best_threshold`, which is chosen on these questions.

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
