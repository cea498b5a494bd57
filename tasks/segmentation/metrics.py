"""Intersection over union from one confusion matrix of the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mmattn.data.image.masks import VOID


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix (K, K) long, with rows of true and columns of predicted classes; void pixels are ignored.

    Args:
        predicted: (...) integers in 0..K-1.
        labels: Integers of the same shape, in 0..K-1 or 255.
        num_classes: Number of classes K.
    """
    real = labels != VOID
    pairs = labels[real].long() * num_classes + predicted[real].long()
    return torch.bincount(pairs, minlength=num_classes * num_classes).view(num_classes, num_classes)


def scores(matrix: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """`miou`, `pixel_accuracy`, `mean_accuracy` and `iou/NAME` from a confusion matrix (K, K).

    IoU of a class is hits / (its pixels + its predictions - hits). The mean is over the classes that occur in labels or
    predictions: a class that occurs in neither is excluded, one that occurs in predictions only counts as zero.
    mean_accuracy is the accuracy of each class, averaged over the classes that occur in the labels. Without labeled
    pixels all three are zero.
    """
    matrix = matrix.double()
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = true + predicted - hits
    occurs, is_true = union > 0, true > 0
    iou = hits / union.clamp_min(1)
    found = {
        "miou": iou[occurs].mean() if occurs.any() else iou.new_zeros(()),
        "pixel_accuracy": hits.sum() / matrix.sum().clamp_min(1),
        "mean_accuracy": (hits / true.clamp_min(1))[is_true].mean() if is_true.any() else iou.new_zeros(()),
    }
    return found | {f"iou/{names[k]}": iou[k] for k in range(len(names)) if occurs[k]}


class SegmentationMetric(Metric):
    """mIoU over the data set, from one confusion matrix summed over all images and processes.

    torchmetrics' `MeanIoU`, in contrast, is the mean of each image's IoU.

    Args:
        names: Names of the classes.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        size = len(self.names)
        self.add_state("matrix", torch.zeros(size, size, dtype=torch.long), dist_reduce_fx="sum")
        self.matrix: Tensor
        self.confusion: Tensor | None = None  # of all processes, after `compute`

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add predicted classes and labels of the same shape."""
        self.matrix += confusion(predicted, labels, len(self.names))

    def compute(self) -> dict[str, Tensor]:
        self.confusion = self.matrix.clone()
        return scores(self.matrix, self.names)
