"""Denoising queries: true boxes and classes, disturbed, from which a decoder learns without matching.

Zhang et al. 2023 (DINO), section 3.3, after Li et al. 2022 (DN-DETR), section 4. Random numbers are from torch's
generator, which a training step seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmattn.tasks.detection.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

LEAST = 0.01  # side of a disturbed box, as a share of the image's


class Disturbed(NamedTuple):
    """Disturbed objects, group by group; the groups do not see each other."""

    boxes_cxcywh: Tensor  # (B, D, 4) in 0..1
    labels: Tensor  # (B, D) long
    objects: Tensor  # (B, D) long, index of the true box to find; -1: none
    query_mask: Tensor  # (B, D) bool, False = padding
    groups: list[int]  # number of queries of each group


def disturb(
    boxes_cxcywh: Tensor,
    labels: Tensor,
    box_mask: Tensor,
    num_classes: int,
    count: int = 48,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> Disturbed:
    """Disturbs the objects of a batch.

    A group has each object twice. The corners of the first are moved by less than `box_noise` halves of its sides, and
    it is to find the object; those of the second are moved by one to two times as much, and it is to find nothing.

    Args:
        boxes_cxcywh: True boxes (B, N, 4) in 0..1.
        labels: (B, N) long.
        box_mask: (B, N) bool, True = a box.
        num_classes: K.
        count: Number of queries, of which there are as many groups as fit, at least one.
        label_noise: Half of the probability with which a label is drawn anew.
        box_noise: Greatest movement of a corner, in halves of the sides.

    Returns:
        D queries; D is 0 if no image has boxes.
    """
    most = int(box_mask.sum(1).max())  # boxes of an image: others are padding in all
    order = box_mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, n), the boxes first
    true = boxes_cxcywh.gather(1, order[..., None].expand(-1, -1, 4))
    there, classes = box_mask.gather(1, order), labels.gather(1, order)
    groups = max(1, count // (2 * most)) if most else 0
    times = 2 * groups
    true, classes, there, order = (
        part.repeat(1, times, *[1] * (part.dim() - 2)) for part in (true, classes, there, order)
    )
    far = torch.arange(times, device=true.device).repeat_interleave(most) % 2 == 1  # (D,), the second of each
    true = torch.where(there[..., None], true, 0.5)
    amount = torch.rand_like(true) + far[:, None]  # (B, D, 4)
    sign = torch.where(torch.rand_like(true) < 0.5, -1.0, 1.0)
    corners = cxcywh_to_xyxy(true) + sign * amount * true[..., 2:].repeat(1, 1, 2) * (box_noise / 2)
    low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
    found = xyxy_to_cxcywh(torch.cat([low, high], -1).clamp(0, 1))
    found = torch.cat([found[..., :2], found[..., 2:].clamp_min(LEAST)], -1)
    drawn = torch.randint_like(classes, num_classes)
    classes = torch.where(torch.rand(classes.shape, device=true.device) < label_noise / 2, drawn, classes)
    return Disturbed(found, classes, order.masked_fill(far | ~there, -1), there, [2 * most] * groups)


def group_mask(own: int, apart: Sequence[int], denoising: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Which queries may attend to which.

    Queries of a group see each other alone; those of denoising also see the model's own, which see neither them nor
    others, so that no true box is given away.

    Args:
        own: Number of queries that the model has in evaluation, the first ones.
        apart: Sizes of the other groups, which follow.
        denoising: Sizes of the groups of denoising queries, which follow.
        device: Of the mask.

    Returns:
        (L, L) bool, True = may attend.

    >>> group_mask(1, [1], [1, 1]).int().tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    """
    sizes = torch.tensor([own, *apart, *denoising], device=device)
    group = torch.arange(len(sizes), device=device).repeat_interleave(sizes)  # (L,)
    is_denoising = group > len(apart)
    return (group[:, None] == group) | (is_denoising[:, None] & (group == 0))
