"""Masks: which class each pixel of an image is, and the list that says what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import DataError, shorten
from mmattn.data.image.processor import MAX_PIXELS, read_image
from mmattn.data.readers import read_text

VOID = 255  # in labels: a pixel that neither teaches nor counts; in masks too, unless a class has that number
VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
MASK_EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff")
CLASS_FILE = "classes.txt"
MAX_CLASSES = 255

MaskSource = Any  # str | Path | bytes | np.ndarray (unsigned integers, HxW)


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set: what is learnt, and which numbers of the masks are void.

    Labels are the places in `names`; a mask holds the numbers in `ids`, which need not be 0, 1, 2, ...

    >>> classes = ClassList(("sky", "road"), (3, 7), void=(0,))
    >>> classes.labels(np.array([[3, 7], [0, 255]], dtype=np.uint8)).tolist()
    [[0, 1], [255, 255]]
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]  # one a name, 0..255
    void: tuple[int, ...] = ()  # numbers that are left out; 255 is one of them anyway unless it is in ids

    def labels(self, mask: np.ndarray, where: str = "mask") -> np.ndarray:
        """The numbers of a mask (H, W) as labels, uint8, `VOID` where nothing is said.

        Raises:
            DataError: A number that is in no list; says which, how often and where first.
        """
        table = np.full(MAX_CLASSES + 2, -1, np.int16)  # by number; -1: in no list
        table[[*self.void, VOID]] = VOID
        table[list(self.ids)] = np.arange(len(self.ids))
        labels = table[mask if mask.dtype == np.uint8 else np.minimum(mask, MAX_CLASSES + 1)]
        wrong = labels < 0
        if wrong.any():
            row, column = (int(place[0]) for place in np.nonzero(wrong))
            numbers = ", ".join(str(number) for number in np.unique(mask[wrong])[:5])
            found = f"{numbers} ({int(wrong.sum())} pixels, first at row {row}, column {column})"
            void = sorted({*self.void, *({VOID} - set(self.ids))})
            wanted = f"class ids of the {len(self.ids)} classes ({_ranges(self.ids)}) or void ({_ranges(void)})"
            raise DataError(where, wanted, found)
        return labels.astype(np.uint8)

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """Labels as the numbers of a mask, the way back; void stays 255."""
        table = np.full(256, VOID, np.uint8)
        table[: len(self.ids)] = self.ids
        return table[labels]


def read_classes(path: str | Path) -> ClassList:
    """A class list: one class a line, ``NUMBER NAME``, or names alone, which are then numbered from 0.

    Empty lines and what begins with # are passed over. A class called void, ignore or unlabelled is one that neither
    teaches nor counts.

    Raises:
        DataError: Names the file and the line.
    """
    rows: list[tuple[int, str]] = []
    lines = [(n, line.strip()) for n, line in enumerate(read_text(path).split("\n"), start=1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    numbered = all(line.replace(",", " ").split()[0].isdigit() for _, line in lines)
    seen: dict[int | str, int] = {}
    for n, line in lines:
        where, number, name = f"{path}, line {n}", len(rows), line
        if numbered:
            first, *rest = line.replace(",", " ").split()
            number, name = int(first), " ".join(rest)
        if not name or number > MAX_CLASSES:
            raise DataError(where, f"a number from 0 to {MAX_CLASSES} and a name, or a name alone", shorten(line))
        for key in (number, name):
            if key in seen:
                raise DataError(where, "a number and a name of its own", f"{key}, which line {seen[key]} has already")
            seen[key] = n
        rows.append((number, name))
    kept = [(number, name) for number, name in rows if name.lower() not in VOID_NAMES]
    if not kept or len(kept) > MAX_CLASSES:
        raise DataError(str(path), f"1 to {MAX_CLASSES} classes beside void", f"{len(kept)}")
    void = tuple(number for number, name in rows if name.lower() in VOID_NAMES)
    return ClassList(tuple(name for _, name in kept), tuple(number for number, _ in kept), void)


def load_mask(source: MaskSource, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a mask as its numbers: a file of one channel, or with a palette, whose places are the numbers.

    Args:
        source: A path, the file's bytes, or an array of unsigned integers (H, W).
        name: What the error calls it besides the file.
        max_pixels: See ``load_image``.

    Returns:
        (H, W), uint8 or uint16.

    Raises:
        DataError: Missing, damaged, in colour, or compressed with loss; by name.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.dtype not in (np.uint8, np.uint16):
            found = f"{source.dtype} of shape {source.shape}"
            raise DataError(f"{name}: mask" if name else "mask", "a uint8 or uint16 array HxW", found)
        return source
    return read_image(source, _numbers, name, max_pixels)


def _numbers(image: Any, where: str) -> np.ndarray:
    from PIL import ImageOps

    where = where.replace("image", "mask", 1)
    if image.format == "JPEG":
        raise DataError(where, "a mask without loss, such as PNG", "a JPEG, which changes the numbers")
    image.load()
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise DataError(where, "a mask of one channel or with a palette, pixels being class ids", f"mode {image.mode}")
    values = np.asarray(ImageOps.exif_transpose(image))
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values if values.dtype == np.uint8 else np.clip(values, 0, 65535).astype(np.uint16)


def palette(number: int) -> np.ndarray:
    """Colours that are told apart, (number, 3) uint8: bits of the place dealt to the channels (Everingham et al. 2010).

    >>> palette(3).tolist()
    [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    places = np.arange(1, number + 1)  # 0 would be black
    colours = np.zeros((number, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((places >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _ranges(numbers: Sequence[int]) -> str:
    """``0 to 4, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in parts)
