"""Predictions and explanations of segmentation, and their plots: overlays of classes and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmattn.data.image.masks import VOID, ClassList, palette


@dataclass
class SegmentationPrediction:
    """The predicted classes of an image's pixels."""

    id: str
    size: tuple[int, int]  # width and height of the image
    shares: dict[str, float]  # the share of pixels of each predicted class, the largest first
    labels: np.ndarray  # (H, W) uint8, indices of the processor's class list
    mask: str | None = None  # path of the mask's PNG, if it was written
    overlay: str | None = None  # path of the overlay's PNG, if it was written


@dataclass
class SegmentationExplanation:
    """The attention of a prediction, and the relevance of image regions for one class."""

    prediction: SegmentationPrediction
    image: Any  # a PIL image
    class_name: str  # the class that `relevance` explains
    gates: list[Tensor]  # (h, w) each, the finest first: coefficients of gates, or attention weights of keys
    relevance: Tensor  # (h, w) at the model's input size: relevance for the class
    classes: ClassList
    gated: bool = True  # whether `gates` are coefficients of gates, from 0 to 1; otherwise they are weights of keys
    truth: np.ndarray | None = None  # (H, W) uint8, the true classes, if they are known

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image, its classes with a legend, each attention map, and the relevance.

        Maps are overlaid on the image in grey. Gates have a scale from 0 to 1, other maps one of multiples of what
        uniform attention would give.
        """
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        from mmattn.plot import FLAT, NEARLY_UNIFORM, caption, color_bar, heat, in_uniform, is_flat, plain, scale_end

        image, names, number = self.image, self.classes.names, len(self.classes.names)
        labels = {"predicted": self.prediction.labels} | ({} if self.truth is None else {"true": self.truth})
        panels = [("", image), *((title, colored(image, shown, number)) for title, shown in labels.items())]
        maps = []  # title, map, whether it is relative to uniform attention
        for gate in self.gates:
            low, high = float(gate.min()), float(gate.max())
            flat = high < FLAT * low if self.gated else is_flat(in_uniform(gate))
            kind = f"gate, {low:.2f} to {high:.2f}" if self.gated else "attention"
            title = f"{kind}, {gate.shape[1]} x {gate.shape[0]}" + (f",\n{NEARLY_UNIFORM}" if flat else "")
            maps.append((title, gate, not self.gated))
        maps.append((f"relevance for {self.class_name}", self.relevance, True))
        count = len(panels) + len(maps)
        rows = -(-count // 4)
        columns = -(-count // rows)
        high = 3.0 * min(max(image.height / image.width, 0.3), 3.0)
        figure = Figure(figsize=(3.4 * columns, rows * (high + 0.4) + 1.0), layout="constrained")
        extent = (0, image.width, image.height, 0)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for axis, (title, panel) in zip(axes, panels, strict=False):
            axis.imshow(panel, extent=extent, interpolation="nearest")
            axis.set_title(title, fontsize=9)
        grey = np.asarray(image.convert("L"))
        for axis, (title, weight, relative) in zip(axes[len(panels) :], maps, strict=False):
            axis.imshow(grey, extent=extent, cmap="gray", interpolation="nearest")
            weight = in_uniform(weight) if relative else weight
            found = heat(axis, weight, extent, scale_end([weight]) if relative else 1.0)
            color_bar(figure, found, axis, "times uniform" if relative else "coefficient", 1.0 if relative else None)
            axis.set_title(plain(title), fontsize=9)
        there = sorted({int(k) for shown in labels.values() for k in np.unique(shown)} - {VOID})
        patches = [Patch(color=palette(number)[k] / 255, label=plain(names[k])) for k in there]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(len(patches), 8), fontsize=8, frameon=False
        )
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(self.prediction.shares.items())[:4])
        figure.suptitle(plain(caption(self.prediction.id, shares, width=3.4 * columns)), fontsize=10)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def colored(image: Any, labels: np.ndarray, number: int, opacity: float = 0.55) -> np.ndarray:
    """Overlay classes (H, W) uint8 on an image (PIL or uint8 (H, W, 3)); returns uint8 (H, W, 3).

    The colors depend on the number of classes; void pixels are not colored.
    """
    result = np.array(image)
    table = np.zeros((VOID + 1, 3), np.float32)
    table[:number] = palette(number)
    for pixels, row in zip(result, labels, strict=True):  # floats of a whole photograph would take gigabytes
        share = np.where(row == VOID, 0.0, opacity)[:, None].astype(np.float32)
        pixels[:] = (pixels.astype(np.float32) * (1 - share) + table[row] * share + 0.5).clip(0, 255)
    return result


def with_legend(overlay: np.ndarray, there: Sequence[int], classes: ClassList) -> Any:
    """A PIL image of an overlay (H, W, 3) with the names and colors of its classes, by index, in a strip below it."""
    from PIL import Image, ImageDraw, ImageFont

    (height, width), colors = overlay.shape[:2], palette(len(classes.names))
    size = max(11, round(width / 60))  # of the font, in pixels
    font = ImageFont.load_default(size)
    widths = [round(font.getlength(classes.names[k])) + 3 * size for k in there]
    places, x, y = [], 0, 0
    for wide in widths:
        if x and x + wide > width:
            x, y = 0, y + round(1.5 * size)
        places.append((x, y))
        x += wide
    strip = round(1.5 * size) + y if there else 0
    image = Image.new("RGB", (max(width, *widths, 1), height + strip), "white")
    image.paste(Image.fromarray(overlay))
    draw = ImageDraw.Draw(image)
    for k, (x, y) in zip(there, places, strict=True):
        top = height + y + size // 4
        draw.rectangle((x + size // 4, top, x + size // 4 + size, top + size), fill=tuple(colors[k].tolist()))
        draw.text((x + round(1.6 * size), top + size // 2), classes.names[k], "black", font, "lm")
    return image


def mask_image(labels: np.ndarray, classes: ClassList) -> Any:
    """A PIL image with a palette, whose pixels are the numbers of the classes, as in masks for training."""
    from PIL import Image

    image = Image.fromarray(classes.mask(labels))
    colors = np.zeros((256, 3), np.uint8)
    colors[VOID] = 255
    colors[list(classes.ids)] = palette(len(classes.ids))
    image.putpalette(colors.reshape(-1).tolist())
    return image
