"""Boxes: conversion between formats, intersection over union, and what is predicted and true of an image.

Names carry the format. `xyxy`: left, top, right, bottom; `cxcywh`: center, width, height. Boxes in pixels are those of
the upright image; without a unit in the documentation, they are fractions of its width and height.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmattn.backbones.detection import cxcywh_to_xyxy as cxcywh_to_xyxy


class Truth(NamedTuple):
    """The annotated boxes of an image."""

    boxes_xyxy: np.ndarray  # (N, 4) float64, pixels of the original image
    labels: np.ndarray  # (N,) int64, indices of classes
    crowd: np.ndarray  # (N,) bool: regions that are neither trained on nor counted; see `DetectionSample`
    area: np.ndarray  # (N,) float64, pixels squared


class Detections(NamedTuple):
    """The predicted boxes of an image."""

    boxes_xyxy: Tensor  # (N, 4) float, pixels of the original image
    scores: Tensor  # (N,) float, 0..1
    labels: Tensor  # (N,) long, indices of classes
    queries: Tensor | None = None  # (N,) long, the query that found each; None: of several passes


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert boxes (..., 4), the inverse of `cxcywh_to_xyxy`.

    >>> xyxy_to_cxcywh(torch.tensor([0.25, 0.0, 0.75, 1.0])).tolist()
    [0.5, 0.5, 0.5, 1.0]
    """
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def areas(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4); zero for boxes whose corners are swapped."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp_min(0).prod(-1)


def intersections(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Areas (..., N, M) that boxes (..., N, 4) share with others (..., M, 4)."""
    low = torch.maximum(boxes_xyxy[..., :, None, :2], others_xyxy[..., None, :, :2])  # (..., N, M, 2)
    high = torch.minimum(boxes_xyxy[..., :, None, 2:], others_xyxy[..., None, :, 2:])
    return (high - low).clamp_min(0).prod(-1)


def box_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of boxes (..., N, 4) and others (..., M, 4); zero for two without area.

    >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).shape
    torch.Size([1, 1])
    """
    shared = intersections(boxes_xyxy, others_xyxy)
    union = areas(boxes_xyxy)[..., :, None] + areas(others_xyxy)[..., None, :] - shared
    return shared / union.clamp_min(torch.finfo(union.dtype).tiny)


def paired_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and its generalization, of boxes (..., 4) and others (..., 4) that broadcast.

    ``GIoU = IoU - (hull - union) / hull``, hull the smallest box around both (Rezatofighi et al. 2019, algorithm 1). It
    is in -1..1, and has a gradient where boxes do not overlap. Boxes need an area for either.

    >>> iou, giou = paired_iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    >>> iou.shape, giou.shape
    (torch.Size([1]), torch.Size([1]))
    """
    tiny = torch.finfo(boxes_xyxy.dtype).tiny
    low = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = (areas(boxes_xyxy) + areas(others_xyxy) - shared).clamp_min(tiny)
    low = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    hull = (high - low).prod(-1).clamp_min(tiny)
    iou = shared / union
    return iou, iou - (hull - union) / hull
