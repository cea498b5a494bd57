"""What was found in a picture, and pictures of it: classes laid over the photograph, gates beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmattn.data.image.masks import VOID, ClassList, palette


@dataclass
class SegmentationPrediction:
    """The classes of a picture's pixels."""

    id: str
    size: tuple[int, int]  # width and height of the picture
    shares: dict[str, float]  # the share of the pixels of each class that was found, the largest first
    labels: np.ndarray  # (H, W) uint8, places in the processor's class list
    mask: str | None = None  # the PNG that was written, if one was wanted
    overlay: str | None = None  # likewise


@dataclass
class SegmentationExplanation:
    """Where the model looked."""

    answer: SegmentationPrediction
    image: Any  # a PIL image
    class_name: str  # what `relevance` is about
    gates: list[Tensor]  # (h, w) each: how far each gate was open, the finest first; or how much keys were looked at
    relevance: Tensor  # (h, w) at the model's size: what of it spoke for the class
    classes: ClassList

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, its classes with a legend, and each gate's map and the relevance over the picture
        in grey, each scaled to its own largest value."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        from mmattn.plot import heat

        # Gates are seldom far from open or shut: what differs is drawn, and how much it differs said.
        maps = [*(gate - gate.min() for gate in self.gates), self.relevance]
        titles = [f"{g.shape[1]} x {g.shape[0]}, {float(g.min()):.2g} to {float(g.max()):.2g}" for g in self.gates]
        titles = [f"looked at: {title}" for title in titles] + [f"speaks for {self.class_name}"]
        image, names, number = self.image, self.classes.names, len(self.classes.names)
        grey = np.asarray(image.convert("L"))
        panels = [image, coloured(image, self.answer.labels, number), *[grey] * len(maps)]
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
        there = [k for k in range(number) if (self.answer.labels == k).any()]
        patches = [Patch(color=palette(number)[k] / 255, label=names[k].replace("$", r"\$")) for k in there]
        figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
        shares = ", ".join(f"{name} {share:.2f}" for name, share in list(self.answer.shares.items())[:4])
        figure.suptitle(shares.replace("$", r"\$"), fontsize=10)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def coloured(image: Any, labels: np.ndarray, number: int, opacity: float = 0.55) -> np.ndarray:
    """Classes (H, W) uint8 laid over a picture, PIL's or uint8 (H, W, 3): uint8 (H, W, 3).

    Their number decides the colours; void pixels show the picture alone.
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
