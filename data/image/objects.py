"""Annotated boxes of images as padded tensors: regions, and objects with their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.image.processor import Box, move_box

Objects = Sequence[tuple[Box, tuple[str, ...]]]  # boxes_xyxy in 0..1 and labels, of one image


def object_names(samples: Iterable[Any]) -> list[str]:
    """Returns the labels of the samples' ``objects``, in alphabetical order."""
    return sorted({label for sample in samples for _, names in sample.objects for label in names})


def object_tensors(
    images: Sequence[Objects], windows: Sequence[Box], labels: Mapping[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Converts the objects of N images, relative to windows of these.

    Args:
        images: The objects of each image.
        windows: The window of each image.
        labels: The index of each known label; without any, there are no objects.

    Returns:
        Boxes (N, O, 4), mask (N, O), True = an object, and labels (N, O, K), 1 for each of an object.
    """
    moved = [
        [(inside, names) for box, names in objects if (inside := move_box(box, window))] if labels else []
        for objects, window in zip(images, windows, strict=True)
    ]
    boxes, mask = pad_boxes([[box for box, _ in row] for row in moved])
    found = np.zeros((*mask.shape, len(labels)), np.float32)
    for n, row in enumerate(moved):
        for o, (_, names) in enumerate(row):
            for name in names:
                if name in labels:
                    found[n, o, labels[name]] = 1.0
    return boxes, mask, torch.from_numpy(found)


def pad_boxes(rows: Sequence[Sequence[Box]]) -> tuple[Tensor, Tensor]:
    """Returns boxes (B, R, 4) and mask (B, R), True = a box; R is the longest row, possibly 0."""
    longest = max(map(len, rows), default=0)
    nowhere: Box = (0.0, 0.0, 0.0, 0.0)
    padded = [[*row, *[nowhere] * (longest - len(row))] for row in rows]
    boxes = torch.from_numpy(np.array(padded, dtype=np.float32).reshape(len(rows), longest, 4))
    return boxes, torch.arange(longest) < torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
