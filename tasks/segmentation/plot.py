"""Predictions and explanations of segmentation, and their plots: overlays of classes and attention maps."""

from __future__ import annotations

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

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image, its classes with a legend, each attention map, and the relevance.

        Maps are overlaid on the image in grey, each scaled to its maximum.
        """
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        from mmattn.plot import heat

        # Coefficients of a gate vary little: their difference from the minimum is plotted, the range is in the title.
        maps = [*(gate - gate.min() for gate in self.gates), self.relevance]
        titles = [f"{g.shape[1]} x {g.shape[0]}, {float(g.min()):.2g} to {float(g.max()):.2g}" for g in self.gates]
        titles = [f"attention: {title}" for title in titles] + [f"relevance for {self.class_name}"]
        image, names, number = self.image, self.classes.names, len(self.classes.names)
        grey = np.asarray(image.convert("L"))
        panels = [image, colored(image, self.prediction.labels, number), *[grey] * len(maps)]
        columns = min(4, len(panels))
        rows = -(-len(panels) // columns)
        high = 3.0 * min(max(image.height / image.width, 0.3), 3.0)
        figure = Figure(figsize=(3.0 * columns, rows * (high + 0.35) + 1.0), layout="constrained")
        extent = (0, image.width, image.height, 0)
        for n, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axis.set_axis_off()
            if n < len(panels):
                axis.imshow(panels[n], extent=extent, cmap="gray", interpolation="nearest")
            if 2 <= n < len(panels):
                heat(axis, maps[n - 2], extent)
                axis.set_title(titles[n - 2].replace("$", r"\$"), fontsize=9)
        there = [k for k in range(number) if (self.prediction.labels == k).any()]
        patches = [Patch(color=palette(number)[k] / 255, label=names[k].replace("$", r"\$")) for k in there]
        figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
        shares = ", ".join(f"{name} {share:.2f}" for name, share in list(self.prediction.shares.items())[:4])
        figure.suptitle(shares.replace("$", r"\$"), fontsize=10)
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


def mask_image(labels: np.ndarray, classes: ClassList) -> Any:
    """A PIL image with a palette, whose pixels are the numbers of the classes, as in masks for training."""
    from PIL import Image

    image = Image.fromarray(classes.mask(labels))
    colors = np.zeros((256, 3), np.uint8)
    colors[VOID] = 255
    colors[list(classes.ids)] = palette(len(classes.ids))
    image.putpalette(colors.reshape(-1).tolist())
    return image
