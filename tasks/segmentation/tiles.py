"""Logits of images that are too large for one pass, by blending overlapping tiles; and flip averaging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmattn.data.image.tiles import starts
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
    return torch.cat(list(bands(run, pixel_values, tile, overlap, flip)), -2)


def bands(
    run: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    tile: int | None = None,
    overlap: float = 0.25,
    flip: bool = False,
) -> Iterator[Tensor]:
    """Yield the logits of `segment` in bands of rows, from the top: those of a photograph would take gigabytes."""

    def both(x: Tensor) -> Tensor:
        return (run(x) + run(x.flip(-1)).flip(-1)) / 2 if flip else run(x)

    H, W = pixel_values.shape[2:]
    if tile is None or (tile >= H and tile >= W):
        yield both(pixel_values)
        return
    high, wide = min(tile, H), min(tile, W)
    window = _ramp(high, pixel_values)[:, None] * _ramp(wide, pixel_values)  # (h, w)
    total: Tensor | None = None  # (B, K, h, W), of the rows of a tile
    weight = pixel_values.new_zeros(high, W)
    for top, below in pairwise([*starts(H, high, overlap), H]):
        for left in starts(W, wide, overlap):
            logits = enlarge(both(pixel_values[..., top : top + high, left : left + wide]), (high, wide))
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], high, W)
            total[..., left : left + wide] += logits * window
            weight[..., left : left + wide] += window
        assert total is not None
        ready = below - top  # rows that the next tiles do not cover
        yield total[..., :ready, :] / weight[:ready]
        total, weight = (nn.functional.pad(x[..., ready:, :], (0, 0, 0, ready)) for x in (total, weight))


def _ramp(size: int, like: Tensor) -> Tensor:
    """Weights (size,) that fall linearly to the tile's edges, where logits have the least context."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, size - place) / size
