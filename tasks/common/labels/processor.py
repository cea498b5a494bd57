"""Conversion of labels to targets and of logits to labels, and the check that data have the model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, nearest, shorten
from mmattn.data.names import nfc
from mmattn.data.processor import B, Processor, S


@dataclass
class LabelPrediction:
    """The prediction of one item."""

    id: str
    label: str  # the most probable class
    score: float  # its probability, 0..1
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next most probable, with probabilities
    labels: list[str] | None = None  # multi-label: all classes with a probability of at least 0.5


class LabelProcessor(Processor[S, B]):
    """A processor of samples with `labels`, a list of names.

    Args:
        labels: The classes; the model's output i is the logit of ``labels[i]``.
        multi_label: Whether classes are not mutually exclusive.

    Raises:
        DataError: There are too few classes, or two with the same name.
    """

    least: ClassVar[int] = 2  # minimum number of classes; one fewer for multi-label

    def __init__(self, labels: Sequence[str], multi_label: bool = False) -> None:
        self.labels, self.multi_label = list(labels), bool(multi_label)
        self.index = {nfc(label): number for number, label in enumerate(self.labels)}
        least = self.least - self.multi_label
        if len(self.index) != len(self.labels) or len(self.labels) < least:
            raise DataError("classes", f"different ones, at least {least}", shorten(self.labels))

    def sizes(self) -> dict[str, Any]:
        return {"num_classes": len(self.labels)}

    def targets(self, samples: Sequence[Any]) -> Tensor:
        """Targets (B, K): 1 for each label of a sample, 0 otherwise."""
        targets = torch.zeros(len(samples), len(self.labels))
        for row, sample in enumerate(samples):
            for label in sample.labels:
                targets[row, self.index[nfc(label)]] = 1.0
        return targets

    def check(self, dataset: SampleDataset[Any]) -> None:
        """Raise a ``DataError``, or skip the sample, if a label is not a class of the training data."""
        kept = []
        for where, sample in zip(dataset.places, dataset.samples, strict=True):
            strange = next((label for label in sample.labels if nfc(label) not in self.index), None)
            if strange is None:
                kept.append((where, sample))
            else:
                wanted = f"one of the {len(self.labels)} classes of the training data"
                dataset.problems.add(where, wanted, f"{strange!r}{nearest(strange, self.labels)}")
        if len(kept) < len(dataset):
            dataset.keep(kept)

    def named(self, samples: Sequence[Any], logits: Tensor, top_k: int = 1) -> list[LabelPrediction]:
        """Predictions of samples from logits (B, K), each with `top_k - 1` alternatives."""
        scores = logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)
        best, order = scores.topk(min(top_k, scores.shape[1]))
        found = []
        for sample, row, top, ids in zip(samples, scores.tolist(), best.tolist(), order.tolist(), strict=True):
            pairs = [(self.labels[i], round(score, 4)) for i, score in zip(ids, top, strict=True)]
            several = [label for label, score in zip(self.labels, row, strict=True) if score >= 0.5]
            found.append(LabelPrediction(sample.id, *pairs[0], pairs[1:], several if self.multi_label else None))
        return found


def labels_in(dataset: SampleDataset[Any]) -> list[str]:
    """The labels of a data set, in alphabetical order."""
    return sorted({nfc(label) for sample in dataset.samples for label in sample.labels})
