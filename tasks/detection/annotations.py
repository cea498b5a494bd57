"""What the readers of all formats share: the check of annotated boxes and of their images' sizes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmattn.data.errors import Problems, shorten
from mmattn.data.image.finder import BadItem
from mmattn.data.image.processor import ORIENTATION, image_size, read_image

logger = logging.getLogger(__name__)
Fields = dict[str, Any]  # of a sample, by its attributes' names
Row = tuple[str, Fields]  # location of an image, for messages, and its fields


class Categories(NamedTuple):
    """The classes of a data set."""

    names: tuple[str, ...]
    ids: tuple[int, ...]  # the numbers by which the data's files name them, not always 0, 1, 2, ...


class Annotation(NamedTuple):
    """A box as a file has it."""

    where: str  # location for messages: "train.json, annotations[3] (id 7)"
    label: str
    box_xyxy: Sequence[float]  # pixels of the upright image
    crowd: bool = False
    area: float | None = None  # pixels squared, if the file states it
    written: Any = None  # the box as written, for messages


def box_problem(box_xyxy: Any, size: tuple[int, int], written: Any = None) -> tuple[str, str] | None:
    """What is wrong with a box: (expected, found), or None.

    Args:
        box_xyxy: Four numbers, pixels.
        size: Width and height of the image in pixels.
        written: The box as the file has it; by default the box itself.
    """
    found = shorten(list(box_xyxy) if written is None else written)
    if len(box_xyxy) != 4 or not all(isinstance(x, (int, float)) and isfinite(x) for x in box_xyxy):
        return "a box of four finite numbers", found
    x1, y1, x2, y2 = box_xyxy
    if x2 < x1 or y2 < y1:
        return "a box whose left and top corner comes first", f"{found}, swapped corners or a negative size"
    if x1 == x2 or y1 == y2:
        return "a box with an area", f"{found}, a width or height of zero"
    width, height = size
    if x2 <= 1 and y2 <= 1 and x1 >= 0 and y1 >= 0 and width > 1 and height > 1:
        return f"a box in pixels of the image of {width} x {height}", f"{found}, which looks normalized to 0..1"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return f"a box within the image of {width} x {height} pixels", f"{found}, which lies outside"
    return None


def numbers(values: Any, count: int) -> list[float] | None:
    """The values as floats; None if they aren't so many numbers."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    return [float(value) for value in values]


class BoxCheck:
    """Checks the boxes of a file's images, clips those that reach beyond their image, and drops repeated ones.

    Args:
        problems: Collects the invalid boxes; the other boxes of their image are kept.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.clipped: list[str] = []  # locations
        self.repeated: list[str] = []

    def fields(self, annotations: Iterable[Annotation], size: tuple[int, int]) -> Fields:
        """The fields `boxes_xyxy`, `labels`, `crowd` and `area` of an image of this width and height."""
        width, height = size
        kept: dict[tuple[str, tuple[float, ...]], tuple[bool, float]] = {}
        for one in annotations:
            problem = box_problem(one.box_xyxy, size, one.written)
            if problem is not None:
                self.problems.add(one.where, *problem)
                continue
            x1, y1, x2, y2 = one.box_xyxy
            inside = (max(float(x1), 0.0), max(float(y1), 0.0), min(float(x2), width), min(float(y2), height))
            if (one.label, inside) in kept:
                self.repeated.append(one.where)
                continue
            if inside != (x1, y1, x2, y2):
                self.clipped.append(one.where)
            area = one.area if one.area and isfinite(one.area) and one.area > 0 else None
            own = (inside[2] - inside[0]) * (inside[3] - inside[1])
            kept[one.label, inside] = one.crowd, own if area is None else area
        return {
            "boxes_xyxy": np.array([box for _, box in kept], np.float64).reshape(-1, 4),
            "labels": [label for label, _ in kept],
            "crowd": np.array([crowd for crowd, _ in kept.values()], bool),
            "area": np.array([area for _, area in kept.values()], np.float64),
        }

    def report(self, name: str) -> None:
        """Log the boxes that were changed."""
        for places, done in (
            (self.clipped, "clipped to their image, beyond which they reached"),
            (self.repeated, "dropped, which repeated another of the same class and place"),
        ):
            if places:
                number = f"{len(places):,} box{'es' if len(places) > 1 else ''}"
                logger.warning("%s: %s %s (first: %s)", name, number, done, places[0])


def sized_image(path: str | Path, width: Any, height: Any) -> tuple[int, int]:
    """Width and height of the upright image, which must be those that the annotations state.

    Args:
        path: The image.
        width: Stated width in pixels; None or 0: not stated.
        height: Stated height.

    Raises:
        BadItem: They differ, or the stated ones are no numbers.
        DataError: The image cannot be read.
    """
    size = image_size(path)
    if width in (None, 0) and height in (None, 0):
        return size
    if any(isinstance(side, bool) or not isinstance(side, (int, float)) for side in (width, height)):
        raise BadItem("numbers for width and height", shorten([width, height]))
    if (width, height) != size:
        turned = read_image(path, lambda image, _: image.getexif().get(ORIENTATION, 1)) != 1
        hint = ""
        if turned and (height, width) == size:
            hint = ", turned upright by its EXIF orientation; boxes are those of the upright image"
        raise BadItem(
            f"an image of the annotated size, {width:g} x {height:g}", f"{size[0]} x {size[1]} of {path}{hint}"
        )
    return size
