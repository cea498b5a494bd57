"""Predictions and explanations of detection, and their plots: boxes, and the positions that their queries read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmattn.data.image.masks import palette
from mmattn.tasks.detection.boxes import Truth

MOST_PANELS = 11  # boxes whose positions are drawn, the best ones
LEAST_SHARE = 0.05  # of a box's greatest weight from which a position is drawn


@dataclass
class DetectedBox:
    """A box that was found."""

    label: str
    score: float  # 0..1
    box_xyxy: tuple[float, float, float, float]  # pixels of the original image: left, top, right, bottom


@dataclass
class DetectionPrediction:
    """The boxes that were found in an image."""

    id: str
    size: tuple[int, int]  # width and height of the image in pixels
    boxes: list[DetectedBox] = field(default_factory=list)  # the best first
    image: str | None = None  # path of the PNG with the boxes, if it was written

    @property
    def score(self) -> float | None:
        """The mean score of the boxes; None without any."""
        return sum(box.score for box in self.boxes) / len(self.boxes) if self.boxes else None


@dataclass
class Reading:
    """The positions that a query read in the decoder's last layer."""

    points_xy: Tensor  # (n, 2) in pixels of the image
    weights: Tensor  # (n,), whose sum is at most one

    def peak(self) -> tuple[float, float]:
        """The position with the greatest weight."""
        x, y = self.points_xy[int(self.weights.argmax())].tolist()
        return x, y


@dataclass
class DetectionExplanation:
    """The boxes of an image, and the positions that the query of each read."""

    prediction: DetectionPrediction
    image: Any  # a PIL image
    readings: list[Reading]  # one a box
    classes: Sequence[str]  # names of all classes
    truth: Truth | None = None  # the true boxes, if they are known

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image with its boxes, and of each of the best boxes with the positions read for it.

        The area of a position's mark is its weight; true boxes are dashed.
        """
        from matplotlib.figure import Figure

        from mmattn.plot import caption, plain

        boxes, image = self.prediction.boxes, self.image
        count = 1 + min(len(boxes), MOST_PANELS)
        rows = -(-count // 4)
        columns = max(-(-count // rows), 2 if count == 1 else 1)
        high = 3.0 * min(max(image.height / image.width, 0.3), 3.0)
        figure = Figure(figsize=(3.4 * columns, rows * (high + 0.4) + 0.9), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        extent = (0, image.width, image.height, 0)
        axes[0].imshow(image, extent=extent, interpolation="nearest")
        if self.truth is not None:
            for box_xyxy in self.truth.boxes_xyxy.tolist():
                _outline(axes[0], box_xyxy, "black")  # beneath, for white backgrounds
                _outline(axes[0], box_xyxy, "white", linestyle="--")
        for box in boxes:
            _outline(axes[0], box.box_xyxy, self._color(box.label))
        axes[0].set_title("found" if self.truth is None else "found; true: dashed", fontsize=9)
        grey = np.asarray(image.convert("L"))
        for axis, box, reading in zip(axes[1:], boxes, self.readings, strict=False):
            axis.imshow(grey, extent=extent, cmap="gray", interpolation="nearest")
            _outline(axis, box.box_xyxy, self._color(box.label))
            shown = reading.weights >= LEAST_SHARE * reading.weights.max()
            x, y = reading.points_xy[shown].T.tolist()
            area = (90 * reading.weights[shown] / reading.weights.max()).tolist()
            axis.scatter(x, y, area, color="red", alpha=0.6, linewidths=0)
            axis.set(xlim=(0, image.width), ylim=(image.height, 0))
            axis.set_title(plain(f"{box.label} {box.score:.2f}"), fontsize=9)
        left = len(boxes) + 1 - count
        title = caption(self.prediction.id, summary(self.prediction), width=3.4 * columns)
        title += "\nred: the positions that were read for a box" if boxes else ""
        figure.suptitle(plain(title) + (f"\n{left} more boxes without a panel" if left else ""), fontsize=10)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)

    def _color(self, label: str) -> Any:
        return palette(len(self.classes))[list(self.classes).index(label)] / 255


def summary(prediction: DetectionPrediction) -> str:
    """The number of boxes of each class, the most frequent first.

    >>> summary(DetectionPrediction("a", (9, 9), [DetectedBox("cat", 0.9, (0, 0, 1, 1))]))
    '1 cat'
    """
    names = [box.label for box in prediction.boxes]
    order = sorted(dict.fromkeys(names), key=lambda name: -names.count(name))
    return ", ".join(f"{names.count(name)} {name}" for name in order[:4]) or "nothing"


def drawn(image: Any, prediction: DetectionPrediction, classes: Sequence[str]) -> Any:
    """A PIL image with boxes and their labels.

    Args:
        image: A PIL image.
        prediction: Its boxes.
        classes: Names of all classes, which determine the colors.
    """
    from PIL import ImageDraw, ImageFont

    result, colors = image.convert("RGB"), palette(len(classes))
    draw = ImageDraw.Draw(result)
    size = max(10, round(max(result.size) / 60))  # of the font, in pixels
    font = ImageFont.load_default(size)
    width = max(1, round(max(result.size) / 400))
    for box in reversed(prediction.boxes):  # the best on top
        color = tuple(colors[list(classes).index(box.label)].tolist())
        x1, y1, x2, y2 = box.box_xyxy
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=width)
        text = f"{box.label} {box.score:.2f}"
        top = y1 - 1.3 * size if y1 >= 1.3 * size else y1
        draw.rectangle((x1, top, x1 + font.getlength(text) + 4, top + 1.3 * size), fill=color)
        draw.text((x1 + 2, top + 0.65 * size), text, _ink(color), font, "lm")
    return result


def _ink(color: tuple[int, ...]) -> str:
    red, green, blue = color
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "white"


def _outline(axis: Any, box_xyxy: Sequence[float], color: Any, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box_xyxy
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.5, **style))
