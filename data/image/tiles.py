"""Tiles: how an image that is too large for one pass is split."""

from __future__ import annotations


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
