"""Attention supervision: the loss of attention outside the regions that determine an answer."""

from __future__ import annotations

import torch
from torch import Tensor

from mmattn.tasks.common.grid import cells_inside, pointing_loss


def attention_supervision_loss(
    attention: Tensor, regions: Tensor, region_mask: Tensor, phrases: Tensor, grid_size: tuple[int, int]
) -> Tensor:
    """Negative logarithm of the share of attention on the regions that determine the answer.

    If the question's phrases name different regions ("is the *star* left of the *square*?"), the latents are divided
    among the phrases in order. Questions without regions are excluded.

    Args:
        attention: (B, K, P), rows summing to one, of K latents or of the whole question (K = 1).
        regions: boxes_xyxy (B, R, 4) in 0..1.
        region_mask: (B, R) bool, True = a region.
        phrases: (B, R) long, the phrase that names each region, from 0.
        grid_size: (gh, gw), P = gh * gw.

    Returns:
        A scalar.
    """
    slots = attention.shape[1]
    inside = cells_inside(regions, region_mask, grid_size)  # (B, R, P)
    phrases = phrases * region_mask
    count = phrases.amax(1, keepdim=True) + 1  # (B, 1): phrases of each question
    count = torch.where(count > slots, 1, count)  # more phrases than latents: all latents attend to all regions
    phrases = torch.minimum(phrases, count - 1)
    slot_phrase = torch.arange(slots, device=attention.device) * count // slots  # (B, K)
    named = (slot_phrase[:, :, None] == phrases[:, None, :]).to(attention.dtype)  # (B, K, R)
    target = (named @ inside.to(attention.dtype)).clamp_max(1.0)  # (B, K, P)
    together = (slot_phrase[:, :, None] == slot_phrase[:, None, :]).to(attention.dtype)  # latents of one phrase
    share = ((together / together.sum(-1, keepdim=True)) @ attention * target).sum(-1)  # (B, K)
    return pointing_loss(share, target.any(-1))
