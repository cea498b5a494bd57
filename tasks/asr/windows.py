"""Long recordings in overlapping windows, as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

QUIET = 0.1  # seconds: a border between windows lies amid the quietest so many


@dataclass
class Window:
    """A piece of a recording. Words that are said from `low` to `high` are its own; the rest is its neighbours'."""

    wave: Tensor  # (n,)
    start: float  # seconds from the recording's beginning
    low: float  # seconds, likewise
    high: float
    end: float
    said: Any = None  # what it says, where that had to be known to find the next one

    @property
    def whole(self) -> bool:
        """Whether it is all of the recording."""
        return self.low == 0.0 and self.high == math.inf


def windows(blocks: Iterable[Tensor], rate: int, seconds: float, overlap: float) -> Iterator[Window]:
    """Cuts a stream into windows that share `overlap` seconds; never more than a window and a block are in memory.

    The border between the words of two windows is the quietest place of what they share, so that no word is cut in two
    or said twice.

    Args:
        blocks: the recording, in pieces (n,) of any length.
        rate: samples a second.
        seconds: of a window.
        overlap: seconds that neighbours share.

    Raises:
        ValueError: they share more than half a window.

    >>> [(w.start, w.end) for w in windows([torch.zeros(50)], rate=10, seconds=2.0, overlap=0.5)]
    [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    size, shared = round(seconds * rate), round(overlap * rate)
    if not 0 < 2 * shared <= size:
        raise ValueError(f"windows of {seconds} s cannot share {overlap} s: expected more than 0, at most half")
    kept, first, low = torch.empty(0), 0, 0.0  # what is not done with, where it begins, where the words begin
    for block in blocks:
        kept = torch.cat([kept, block])
        while len(kept) > size:
            high = (first + size - shared + _quietest(kept[size - shared : size], rate)) / rate
            yield Window(kept[:size], first / rate, low, high, (first + size) / rate)
            kept, first, low = kept[size - shared :], first + size - shared, high
    end = (first + len(kept)) / rate
    yield Window(kept, first / rate, low, math.inf, end)


def _quietest(wave: Tensor, rate: int) -> int:
    """The middle of the quietest QUIET seconds of a wave (n,)."""
    width = max(1, min(round(QUIET * rate), len(wave)))
    energy = wave.double().square().cumsum(0)
    sums = energy[width - 1 :] - torch.cat([energy.new_zeros(1), energy[: len(energy) - width]])
    return int(sums.argmin()) + width // 2
