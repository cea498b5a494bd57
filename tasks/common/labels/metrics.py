"""Metrics of label prediction: those of torchmetrics, under names that state the variant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities import dim_zero_cat

BINS = 15  # of the calibration error, as in Guo et al. 2017


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Average precision, averaged over the classes that occur; torchmetrics counts the others as zero."""

    def compute(self) -> Tensor:  # type: ignore[override]
        return _mean(super().compute(), dim_zero_cat(self.target).any(0))


class MacroF1(MultilabelF1Score):
    """F1 at a probability of 0.5, averaged over the classes that occur; torchmetrics counts the others as zero."""

    def compute(self) -> Tensor:
        hits, missed = (dim_zero_cat(state) for state in (self.tp, self.fn))  # (K,)
        return _mean(super().compute(), hits + missed > 0)


def _mean(values: Any, occurs: Any) -> Tensor:
    """The mean of the values (K,) of the classes that occur (K,) bool; zero without any."""
    return values[occurs].mean() if occurs.any() else values.new_zeros(())


class ClassificationMetric(nn.Module):
    """Accuracy and calibration of classification, or average precision and F1 of multi-label classification.

    `compute()` returns, over all samples,

    - `top1`, and `top5` for more than five classes: the share of samples whose class is among the k best (micro);
    - `ece`, the expected calibration error: the mean difference between confidence and accuracy in fifteen bins of
      equal width, weighted by their samples (Guo et al. 2017, section 2);

    or, for multi-label classification,

    - `map`: average precision, averaged over the classes that occur in the samples;
    - `f1_macro`: F1 at a probability of 0.5, averaged over the same classes.

    After `compute()`, `confusion` (K, K) counts true (rows) and predicted classes (columns); None for multi-label.

    Args:
        num_classes: Number of classes K.
        multi_label: Whether classes are not mutually exclusive.
    """

    def __init__(self, num_classes: int, multi_label: bool = False) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.parts: Any = nn.ModuleDict()
        if multi_label:
            self.parts["map"] = MeanAveragePrecision(num_classes, average="none")
            self.parts["f1_macro"] = MacroF1(num_classes, average="none")
        else:
            self.parts["top1"] = MulticlassAccuracy(num_classes, average="micro")
            if num_classes > 5:
                self.parts["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
            self.parts["ece"] = MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1")
            self.parts["confusion"] = MulticlassConfusionMatrix(num_classes)
        self.confusion: Tensor | None = None

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, K) and targets (B, K), which are 1 for each label of a sample."""
        given = targets.long() if self.multi_label else targets.argmax(1)
        scores = logits.sigmoid() if self.multi_label else logits.softmax(1)
        for part in self.parts.values():
            part.update(scores, given)

    def compute(self) -> dict[str, Tensor]:
        values = {name: part.compute() for name, part in self.parts.items()}
        self.confusion = values.pop("confusion", None)
        return {name: value.to(torch.float64) for name, value in values.items()}

    def reset(self) -> None:
        """Reset the state; the last confusion matrix is kept."""
        for part in self.parts.values():
            part.reset()
