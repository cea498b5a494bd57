"""Boxes on a model's grid of cells, and losses of attention and of object labels in these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cell_coverage(boxes: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The fraction of each grid cell that a box covers.

    Args:
        boxes: boxes_xyxy (..., 4) in 0..1.
        grid_size: Height and width of the grid (gh, gw).

    Returns:
        (..., gh * gw) in 0..1, row by row.
    """
    gh, gw = grid_size
    rows = torch.arange(gh + 1, device=boxes.device, dtype=boxes.dtype) / gh
    columns = torch.arange(gw + 1, device=boxes.device, dtype=boxes.dtype) / gw
    left, top, right, bottom = (boxes[..., n : n + 1] for n in range(4))
    x = (torch.minimum(right, columns[1:]) - torch.maximum(left, columns[:-1])).clamp_min(0) * gw  # (..., gw)
    y = (torch.minimum(bottom, rows[1:]) - torch.maximum(top, rows[:-1])).clamp_min(0) * gh  # (..., gh)
    return (y[..., :, None] * x[..., None, :]).flatten(-2)


def cells_inside(boxes: Tensor, mask: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The cells of each box: those that it covers by more than a quarter, and the one that it covers most.

    Args:
        boxes: boxes_xyxy (B, R, 4) in 0..1.
        mask: (B, R) bool, True = a box.
        grid_size: Height and width of the grid (gh, gw).

    Returns:
        (B, R, gh * gw) bool.
    """
    coverage = cell_coverage(boxes, grid_size) * mask[..., None]
    return (coverage > 0.25) | ((coverage > 0) & (coverage == coverage.amax(-1, keepdim=True)))


def pointing_loss(share: Tensor, known: Tensor) -> Tensor:
    """Mean negative logarithm of the shares of attention (B, K) that lie where they should, of those that are known."""
    return -(share.clamp_min(1e-4).log() * known).sum() / known.sum().clamp_min(1)


def object_loss(
    object_logits: Tensor, boxes: Tensor, mask: Tensor, labels: Tensor, grid_size: tuple[int, int]
) -> Tensor:
    """Binary cross-entropy of each object label in each cell, summed over labels.

    Args:
        object_logits: (N, P, K).
        boxes: boxes_xyxy (N, O, 4) in 0..1.
        mask: (N, O) bool, True = an object.
        labels: (N, O, K), one for each label of an object.
        grid_size: (gh, gw), P = gh * gw.

    Returns:
        A scalar.
    """
    inside = ((cell_coverage(boxes, grid_size) > 0.3) & mask[..., None]).to(labels.dtype)  # (N, O, P)
    targets = torch.einsum("nop,nok->npk", inside, labels).clamp_max(1.0)
    return F.binary_cross_entropy_with_logits(object_logits.float(), targets, reduction="none").sum(-1).mean()
