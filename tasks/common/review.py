"""Predictions beside the truth: what explanations and reports show of items whose truth is known."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MOST, BATCH = 200, 8  # items that are predicted again: in all, and together


class Reviewing:
    """What a predictor knows of the truth, by default of samples with `labels` or `label`."""

    answer: ClassVar[str] = "label"  # the field of a prediction that says what was predicted
    graded_by: ClassVar[str] = "right"  # name of the grade

    def truth(self, item: Any) -> Any:
        """The truth of an item, as its explanation shows it beside the prediction; None: unknown."""
        labels = getattr(item, "labels", None)
        return ", ".join([getattr(item, "label", "")] if labels is None else labels) or None

    def grade(self, item: Any, truth: Any, prediction: Any) -> float:
        """How good a prediction is, from 0 to 1 (right)."""
        return float(self.words_of(truth) == self.answer_of(prediction))

    def text(self, item: Any) -> str:
        """The text of an item, if it has one."""
        return ""

    def kind(self, item: Any) -> str:
        """The kind of an item, by which grades are grouped, such as the type of the answer; empty: none."""
        return ""

    def words_of(self, truth: Any) -> str:
        """The truth in words."""
        return str(truth)

    def answer_of(self, prediction: Any) -> str:
        """The prediction in words."""
        return str(getattr(prediction, self.answer, ""))

    def with_truth(self, explanations: list[Any], items: Sequence[Any]) -> list[Any]:
        """Set the `truth` of the explanations of items where it is known."""
        for explanation, item in zip(explanations, items, strict=True):
            if (truth := self.truth(item)) is not None:
                explanation.truth = truth
        return explanations


@dataclass(frozen=True)
class Review:
    """A prediction of an item, beside the truth."""

    item: Any
    predicted: str
    true: str
    grade: float
    score: float | None  # the prediction's own: a probability, or a log-probability
    kind: str


def review(predictor: Any, items: Sequence[Any], seconds: float) -> list[Review]:
    """Predict some items whose truth is known, and compare; the worst come first, of these the surest.

    Args:
        predictor: The predictor.
        items: The items; at most `MOST` of them are predicted, chosen by a fixed seed.
        seconds: Time after which no more are; a batch is in any case.
    """
    chosen = random.Random(0).sample(items, min(MOST, len(items)))
    end = time.monotonic() + seconds
    found, rows = predictor.stream(chosen, min(BATCH, predictor.batch_size), "skip"), list[Review]()
    for place, (item, prediction) in enumerate(zip(chosen, found, strict=True)):
        if place >= BATCH and time.monotonic() > end:
            break
        if isinstance(prediction, Exception) or (truth := predictor.truth(item)) is None:
            continue
        score, grade = getattr(prediction, "score", None), predictor.grade(item, truth, prediction)
        words = (predictor.answer_of(prediction), predictor.words_of(truth))
        rows.append(Review(item, *words, grade, score, predictor.kind(item)))
    return sorted(rows, key=lambda row: (row.grade, -(row.score or 0.0)))


def by_kind(rows: Sequence[Review]) -> Iterator[tuple[str, int, float]]:
    """Each kind of the items, their number and mean grade; nothing if all are of one kind."""
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(row.kind or "none", []).append(row.grade)
    for kind, grades in sorted(kinds.items()) if len(kinds) > 1 else ():
        yield kind, len(grades), sum(grades) / len(grades)
