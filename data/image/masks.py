"""Segmentation masks, and the list of the classes that their values denote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import DataError, shorten
from mmattn.data.image.processor import read_image
from mmattn.data.readers import read_text

VOID = 255  # ignored pixels in labels, excluded from loss and metrics; in masks too, unless 255 is a class id
VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
MASK_EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff")
CLASS_FILE = "classes.txt"
MAX_CLASSES = 255

MaskSource = Any  # str | Path | bytes | np.ndarray (unsigned integers, HxW)


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, and the mask values that are void, i.e. ignored.

    Labels are indices into `names`; masks contain the values in `ids`, which need not be 0, 1, 2, ...

    >>> classes = ClassList(("sky", "road"), (3, 7), void=(0,))
    >>> classes.labels(np.array([[3, 7], [0, 255]], dtype=np.uint8)).tolist()
    [[0, 1], [255, 255]]
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]  # one per name, 0..255
    void: tuple[int, ...] = ()  # ignored values; 255 is always one of them unless it is in ids

    def labels(self, mask: np.ndarray, where: str = "mask") -> np.ndarray:
        """Converts the values of a mask (H, W) to labels (H, W), uint8, `VOID` for ignored pixels.

        Raises:
            DataError: An unknown value; the message gives it, its count and its first position.
        """
        table = np.full(MAX_CLASSES + 2, -1, np.int16)  # by value; -1: unknown
        table[[*self.void, VOID]] = VOID
        table[list(self.ids)] = np.arange(len(self.ids))
        labels = table[mask if mask.dtype == np.uint8 else np.minimum(mask, MAX_CLASSES + 1)]
        wrong = labels < 0
        if wrong.any():
            row, column = (int(place[0]) for place in np.nonzero(wrong))
            numbers = ", ".join(str(number) for number in np.unique(mask[wrong])[:5])
            found = f"{numbers} ({int(wrong.sum())} pixels, first at row {row}, column {column})"
            void = sorted({*self.void, *({VOID} - set(self.ids))})
            wanted = f"class ids of the {len(self.ids)} classes ({_ranges(self.ids)})"
            raise DataError(where, wanted + (f" or void ({_ranges(void)})" if void else ""), found)
        return labels.astype(np.uint8)

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """Converts labels to the values of a mask, the inverse of `labels`; void remains 255."""
        table = np.full(256, VOID, np.uint8)
        table[: len(self.ids)] = self.ids
        return table[labels]


def read_classes(path: str | Path) -> ClassList:
    """Reads a class list: one class per line, ``NUMBER NAME``, or names alone, which are numbered from 0.

    Empty lines and lines that begin with # are ignored. Pixels of a class called void, ignore or unlabelled are
    excluded from loss and metrics.

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


def load_mask(source: MaskSource, name: str | None = None, max_pixels: int | None = None) -> np.ndarray:
    """Reads the values of a mask from a file of one channel or with a palette, whose indices are the values.

    Args:
        source: A path, the file's bytes, or an array of unsigned integers (H, W).
        name: Location of the item, which errors name besides the file.
        max_pixels: See ``load_image``.

    Returns:
        Values (H, W), uint8 or uint16.

    Raises:
        DataError: The mask is missing, damaged, in color, or compressed with loss.
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
    """Returns distinct colors (number, 3), uint8: the index's bits spread over channels (Everingham et al. 2010).

    >>> palette(3).tolist()
    [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    places = np.arange(1, number + 1)  # 0 would be black
    colors = np.zeros((number, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((places >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def _ranges(numbers: Sequence[int]) -> str:
    """Formats numbers as ranges, e.g. ``0 to 4, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in parts)
