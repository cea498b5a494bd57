"""Intersection over union from one confusion matrix of the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mmattn.data.image.masks import VOID


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each class was taken for each: (K, K) long, a row a true class, void pixels left out.

    Args:
        predicted: (...) integers in 0..K-1.
        labels: The same shape, in 0..K-1 or 255.
        num_classes: K.
    """
    real = labels != VOID
    pairs = labels[real].long() * num_classes + predicted[real].long()
    return torch.bincount(pairs, minlength=num_classes * num_classes).view(num_classes, num_classes)


def scores(matrix: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What a summed confusion matrix (K, K) says: `miou`, `pixel_accuracy`, `mean_accuracy` and `iou/NAME`.

    IoU of a class is hits / (its pixels + its predictions - hits); the mean is over the classes that occur, as truth or
    as prediction: one that does neither is left out, one that is only predicted counts as zero. mean_accuracy is the
    share of hits of each class that truly occurs. Without any pixel all three are zero.
    """
    matrix = matrix.double()
    hits, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = true + said - hits
    occurs, is_true = union > 0, true > 0
    iou = hits / union.clamp_min(1)
    found = {
        "miou": iou[occurs].mean() if occurs.any() else iou.new_zeros(()),
        "pixel_accuracy": hits.sum() / matrix.sum().clamp_min(1),
        "mean_accuracy": (hits / true.clamp_min(1))[is_true].mean() if is_true.any() else iou.new_zeros(()),
    }
    return found | {f"iou/{names[k]}": iou[k] for k in range(len(names)) if occurs[k]}


class SegmentationMetric(Metric):
    """mIoU over the data set: one confusion matrix, summed over all pictures and processes.

    Not the mean of each image's IoU, which torchmetrics' `MeanIoU` is.

    Args:
        names: Of the classes.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        size = len(self.names)
        self.add_state("matrix", torch.zeros(size, size, dtype=torch.long), dist_reduce_fx="sum")
        self.matrix: Tensor

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add pixels: predicted classes and labels of one shape."""
        self.matrix += confusion(predicted, labels, len(self.names))

    def compute(self) -> dict[str, Tensor]:
        return scores(self.matrix, self.names)
