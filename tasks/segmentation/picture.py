"""Pictures of what was found: classes laid over the photograph, gates beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmattn.data.image.masks import VOID, ClassList, palette


def coloured(image: Any, labels: np.ndarray, number: int, opacity: float = 0.55) -> np.ndarray:
    """Classes laid over a picture.

    Args:
        image: PIL image or uint8 (H, W, 3).
        labels: (H, W) uint8; void pixels show the picture alone.
        number: of classes, which decides the colours.
        opacity: of the colours.

    Returns:
        uint8 (H, W, 3).
    """
    pixels = np.asarray(image).astype(np.float32)
    table = np.zeros((VOID + 1, 3), np.float32)
    table[:number] = palette(number)
    share = np.where(labels == VOID, 0.0, opacity)[..., None].astype(np.float32)
    return (pixels * (1 - share) + table[labels] * share + 0.5).clip(0, 255).astype(np.uint8)


def mask_image(labels: np.ndarray, classes: ClassList) -> Any:
    """A PIL image with a palette whose pixels are the numbers of the classes, as masks for training are."""
    from PIL import Image

    image = Image.fromarray(classes.mask(labels))
    colours = np.zeros((256, 3), np.uint8)
    colours[VOID] = 255
    colours[list(classes.ids)] = palette(len(classes.ids))
    image.putpalette(colours.reshape(-1).tolist())
    return image


def draw(
    image: Any,
    labels: np.ndarray,
    classes: ClassList,
    maps: Sequence[Tensor],
    titles: Sequence[str],
    title: str,
    path: str | Path,
) -> None:
    """Writes a PNG: the picture, its classes with a legend, and each map laid over the picture in grey.

    Args:
        image: PIL image.
        labels: (H, W) uint8.
        classes: their names.
        maps: (h, w) each, scaled to its own largest value.
        titles: one a map.
        title: over the whole.
        path: where to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from mmattn.plot import heat

    number = len(classes.names)
    grey = np.asarray(image.convert("L"))
    panels = [image, coloured(image, labels, number), *[grey] * len(maps)]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    high = 3.0 * min(max(image.height / image.width, 0.3), 3.0)
    figure = Figure(figsize=(3.0 * columns, rows * (high + 0.35) + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    extent = (0, image.width, image.height, 0)
    for n, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if n < len(panels):
            axis.imshow(panels[n], extent=extent, cmap="gray", interpolation="nearest")
        if 2 <= n < len(panels):
            heat(axis, maps[n - 2], extent)
            axis.set_title(titles[n - 2].replace("$", r"\$"), fontsize=9)
    colours = palette(number) / 255
    there = [k for k in range(number) if (labels == k).any()]
    patches = [Patch(color=colours[k], label=classes.names[k].replace("$", r"\$")) for k in there]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
