"""The labels of one task: conversion of samples to targets, and of a model's scores to predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest, shorten
from mmattn.data.names import nfc
from mmattn.tasks.text_classification.data import TextSample
from mmattn.tasks.text_classification.formats import MULTI, REGRESSION, SINGLE, TAGGING, TEXT

IGNORED = -100  # target of a word that has none
LEAST = {SINGLE: 2, MULTI: 1, TAGGING: 2}  # number of labels


@dataclass
class Labels:
    """The labels of a task.

    Args:
        kind: single_label, multi_label, regression or tagging.
        names: The labels; the model's output i is the score of ``names[i]``. Empty for regression.
        thresholds: Of multi-label tasks: the probability from which each label is predicted.
        mean: Mean of the training scores of regression.
        std: Their standard deviation.

    Raises:
        DataError: There are too few labels, or two of the same name.
    """

    kind: str
    names: list[str] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        self.index = {nfc(name): number for number, name in enumerate(self.names)}
        least = LEAST.get(self.kind, 0)
        if len(self.index) != len(self.names) or len(self.names) < least:
            raise DataError("labels", f"at least {least} different ones in the training data", shorten(self.names))
        if self.kind == MULTI and not self.thresholds:
            self.thresholds = [0.5] * len(self.names)

    @classmethod
    def fit(cls, kind: str, samples: Sequence[TextSample]) -> Labels | None:
        """The labels of training samples, in alphabetical order (numbers by value); None for plain text."""
        if kind == TEXT:
            return None
        if kind == REGRESSION:
            scores = torch.tensor([sample.score for sample in samples], dtype=torch.float64)
            std = float(scores.std(correction=0))
            if std == 0:
                raise DataError("scores", "different ones in the training data", f"{float(scores[0]):g} alone")
            return cls(kind, mean=float(scores.mean()), std=std)
        names = {nfc(label) for sample in samples for label in sample.labels}
        return cls(kind, sorted(names, key=_order))

    @property
    def size(self) -> int:
        """Number of the model's outputs."""
        return 1 if self.kind == REGRESSION else len(self.names)

    def settings(self) -> dict[str, Any]:
        """JSON values from which the object can be made again."""
        return asdict(self)

    def strange(self, sample: TextSample) -> str | None:
        """A label of a sample that the training data do not have."""
        return next((label for label in sample.labels if nfc(label) not in self.index), None)

    def wanted(self, label: str) -> tuple[str, str]:
        """What was expected in place of such a label, and what was found."""
        return f"one of the {len(self.names)} labels of the training data", f"{label!r}{nearest(label, self.names)}"

    def targets(self, samples: Sequence[TextSample]) -> Tensor:
        """Targets of samples that are not tagged: classes (n,) long; labels (n, K) of 0 and 1; or scores (n,)."""
        if self.kind == REGRESSION:
            scores = [float("nan") if sample.score is None else sample.score for sample in samples]
            return (torch.tensor(scores) - self.mean) / self.std
        if self.kind == MULTI:
            hot = torch.zeros(len(samples), len(self.names))
            for row, sample in enumerate(samples):
                hot[row, [self.index[nfc(label)] for label in sample.labels]] = 1.0
            return hot
        return torch.tensor([self.index[nfc(s.labels[0])] if s.labels else IGNORED for s in samples])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of logits (..., K); of regression the scores."""
        if self.kind == REGRESSION:
            return logits.float() * self.std + self.mean
        return logits.float().sigmoid() if self.kind == MULTI else logits.float().softmax(-1)


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before all others."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def labels_from(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Labels]:
    """The labels of each task from their settings.

    Raises:
        ValueError: Settings of a wrong type.
    """
    found = {}
    for name, given in settings.items():
        labels = Labels(**given)
        if labels.kind not in (SINGLE, MULTI, REGRESSION, TAGGING) or not all(isinstance(n, str) for n in labels.names):
            raise ValueError(f"labels of a kind that is not known, or names that are no texts: {given!r:.80}")
        if labels.kind == MULTI and len(labels.thresholds) != len(labels.names):
            raise ValueError(f"expected {len(labels.names)} thresholds, found {len(labels.thresholds)}")
        found[str(name)] = labels
    return found
