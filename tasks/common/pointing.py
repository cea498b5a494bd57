"""The pointing game: how often the peak of an explanation lies in the region that determines the prediction.

Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.2: the maximum of the map is a hit if
it lies in one of the true regions, up to a tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Box = tuple[float, float, float, float]


@dataclass
class PointingGame:
    """Counts of items, hits and near hits by kind of item."""

    tolerance: str  # the tolerance of a near hit, in words
    rows: dict[str, list[int]] = field(default_factory=dict)  # by kind: number of items, hits, near hits
    notes: list[str] = field(default_factory=list)  # other measurements

    def add(self, kind: str, hit: Any, near: Any, count: int = 1) -> None:
        """Add one item, or the numbers of hits and near hits among several."""
        row = self.rows.setdefault(kind, [0, 0, 0])
        for place, value in enumerate((count, hit, near)):
            row[place] += int(value)

    def add_peak(self, kind: str, attention: Tensor, regions: Sequence[Box]) -> None:
        """Add a map (gh, gw) over an image; a near hit is within half a cell of a region."""
        half = (0.5 / attention.shape[1], 0.5 / attention.shape[0])
        near = peaks_in_regions(attention, regions, half)
        self.add(kind, peaks_in_regions(attention, regions, (0.0, 0.0)), near)


def in_parts(samples: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Split samples into parts of at most `size`."""
    return (samples[start : start + size] for start in range(0, len(samples), size))


def peaks_in_regions(
    attention: Tensor, regions: Sequence[Sequence[float]], tolerance: tuple[float, float] = (0.0, 0.0)
) -> bool:
    """Whether the center of the map's maximum lies in one of the regions.

    Args:
        attention: Map (gh, gw) over the image.
        regions: boxes_xyxy in 0..1.
        tolerance: Horizontal and vertical distance from a region that still counts, in 0..1 of the image.
    """
    gh, gw = attention.shape
    place = int(attention.argmax())
    x, y = (place % gw + 0.5) / gw, (place // gw + 0.5) / gh
    dx, dy = tolerance
    return any(x1 - dx <= x <= x2 + dx and y1 - dy <= y <= y2 + dy for x1, y1, x2, y2 in regions)
