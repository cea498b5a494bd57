"""Logits of images that are too large for one pass, by blending overlapping tiles; and flip averaging."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmattn.tasks.segmentation.model import enlarge


def segment(
    run: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    tile: int | None = None,
    overlap: float = 0.25,
    flip: bool = False,
) -> Tensor:
    """Compute the logits of images, by tiles if they are larger than one.

    Args:
        run: Function of pixel values (B, 3, h, w) to logits (B, K, h', w') of the same or lower resolution.
        pixel_values: (B, 3, H, W).
        tile: Side of the tiles in pixels; None: no tiles.
        overlap: Share of a tile that overlaps with the next one, in [0, 1).
        flip: Whether to average with the logits of the mirror image.

    Returns:
        (B, K, H, W), or the output of `run` if one pass suffices.
    """

    def both(x: Tensor) -> Tensor:
        return (run(x) + run(x.flip(-1)).flip(-1)) / 2 if flip else run(x)

    H, W = pixel_values.shape[2:]
    if tile is None or (tile >= H and tile >= W):
        return both(pixel_values)
    high, wide = min(tile, H), min(tile, W)
    window = _ramp(high, pixel_values)[:, None] * _ramp(wide, pixel_values)  # (h, w)
    total: Tensor | None = None
    weight = pixel_values.new_zeros(H, W)
    for top in starts(H, high, overlap):
        for left in starts(W, wide, overlap):
            place = (..., slice(top, top + high), slice(left, left + wide))
            logits = enlarge(both(pixel_values[place]), (high, wide))
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], H, W)
            total[place] += logits * window
            weight[place] += window
    assert total is not None
    return total.div_(weight)  # in place: the logits of a photograph take gigabytes


def starts(size: int, tile: int, overlap: float) -> list[int]:
    """Start positions of tiles that cover a side evenly and overlap by at least the share `overlap`.

    >>> starts(100, 40, 0.25)
    [0, 30, 60]
    """
    if tile >= size:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    number = -(-(size - tile) // step)
    return [round(n * (size - tile) / number) for n in range(number + 1)]


def _ramp(size: int, like: Tensor) -> Tensor:
    """Weights (size,) that fall linearly to the tile's edges, where logits have the least context."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, size - place) / size
