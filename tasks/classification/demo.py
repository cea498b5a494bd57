"""Built-in images for classification: the class is the spatial relation of a circle and a square.

Each image has one circle and one square among three to five other objects. Its class is the relation of the two: the
circle left of, right of, above or below the square, inside it, or around it. Colors, textures, sizes, tilts and the
clutter are drawn independently of the class, so that neither they nor any single position predict it.

Frozen: random numbers are from the two generators whose streams Python and NumPy guarantee not to change, and rendering
uses only arithmetic that is rounded equally on all machines. A change of the images is a new `GENERATOR_VERSION`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from mmattn.data.image.shapes import IMAGE_SIZE, RGB, SHAPES, Shading, box_around, paint
from mmattn.tasks.classification.data import ClassificationSample

GENERATOR_VERSION = 1
CLASSES: tuple[str, ...] = ("circle above square", "circle around square", "circle below square")
CLASSES += ("circle inside square", "circle left of square", "circle right of square")
SPLITS = {"train": 8000, "val": 600, "test": 1200}
CLUTTER = tuple(SHAPES.index(name) for name in ("triangle", "star", "cross", "ring"))
CIRCLE, SQUARE = SHAPES.index("circle"), SHAPES.index("square")
TEXTURES = ("plain", "stripes", "checks", "dots")
_PATCH = 40  # pixels; contains the largest object
_MARGIN = 6.0  # minimum difference of the two distances in pixels, so that classes are unambiguous
# Mean pooling over a convolutional map must not encode positions: the gap between adjacent parts exceeds a small
# receptive field, and their centers are not near the edge, which is detectable by padding.
_GAP = 13.0
_EDGE = 16.0


class Part(NamedTuple):
    """An object of an image: index of SHAPES, center and radius in pixels, indices of the colors and TEXTURES."""

    shape: int
    x: float
    y: float
    radius: float
    color: int
    texture: int

    def box(self) -> tuple[float, float, float, float]:
        """The bounding box, boxes_xyxy in 0..1 of the image."""
        return box_around(self.x, self.y, self.radius)


def make(split: str, size: int | None = None, seed: int = 0) -> list[ClassificationSample]:
    """Make the images of a split, all or the first `size`; smaller sizes are prefixes of larger ones.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    size = SPLITS[split] if size is None else size
    source = [7919 * seed + 31 * list(SPLITS).index(split) + 5, GENERATOR_VERSION]
    rng = Random(f"classification {source}")
    scenes = [compose(rng, CLASSES[n % len(CLASSES)]) for n in range(size)]
    pictures = paint(scenes, source, Shading(_texture, turned=False, draws=8), most=7, patch=_PATCH)
    return [
        ClassificationSample(
            id=f"{split}-{n}",
            image=picture,
            labels=[CLASSES[n % len(CLASSES)]],
            regions=[part.box() for part in scene if part.shape in (CIRCLE, SQUARE)],
        )
        for n, (scene, picture) in enumerate(zip(scenes, pictures, strict=True))
    ]


def compose(rng: Random, label: str) -> list[Part]:
    """The objects of an image of a class, in the order of rendering."""
    relation = label.split()[1]
    while True:
        circle, square = _pair(rng, relation)
        parts = [square, circle] if relation != "around" else [circle, square]
        for _ in range(3 + int(rng.random() * 3)):
            clutter = _free(rng, parts)
            if clutter is None:
                break
            parts.append(clutter)
        else:
            return parts[2:] + parts[:2]


def _look(rng: Random) -> tuple[int, int]:
    return int(rng.random() * len(RGB)), int(rng.random() * len(TEXTURES))


def _part(rng: Random, shape: int, low: float, high: float, edge: float = 0.0) -> Part:
    """An object at a random position, its center at least `edge` pixels from the edge."""
    radius = low + rng.random() * (high - low)
    edge = max(edge, radius + 1)
    x, y = (edge + rng.random() * (IMAGE_SIZE - 2 * edge) for _ in range(2))
    return Part(shape, x, y, radius, *_look(rng))


def _pair(rng: Random, relation: str) -> tuple[Part, Part]:
    """Circle and square in a given relation."""
    if relation in ("inside", "around"):
        outer = _part(rng, SQUARE if relation == "inside" else CIRCLE, 9.5, 12.5, _EDGE)
        radius = 0.4 * outer.radius + rng.random() * 0.1 * outer.radius
        play = outer.radius * 0.15
        x, y = (place + (2 * rng.random() - 1) * play for place in (outer.x, outer.y))
        color, texture = _look(rng)
        # The colors of the inner and the outer one must differ.
        while sum(abs(a - b) for a, b in zip(RGB[color], RGB[outer.color], strict=True)) < 200:
            color, texture = _look(rng)
        inner = Part(CIRCLE if relation == "inside" else SQUARE, x, y, radius, color, texture)
        return (inner, outer) if relation == "inside" else (outer, inner)
    while True:
        circle, square = (_part(rng, shape, 4.5, 7.5, _EDGE) for shape in (CIRCLE, SQUARE))
        dx, dy = circle.x - square.x, circle.y - square.y
        apart = abs(dx) if relation in ("left", "right") else abs(dy)
        beside = abs(dy) if relation in ("left", "right") else abs(dx)
        towards = {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}[relation]
        if towards and apart >= max(beside + _MARGIN, circle.radius + square.radius + _GAP):
            return circle, square


def _touch(a: Part, b: Part) -> bool:
    reach = 1.2 * (a.radius + b.radius) + 1.5
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < reach * reach


def _free(rng: Random, parts: list[Part]) -> Part | None:
    """An additional object that touches none of the others; None if none was found."""
    for _ in range(20):
        part = _part(rng, CLUTTER[int(rng.random() * len(CLUTTER))], 4.5, 8.5)
        if not any(_touch(part, other) for other in parts):
            return part
    return None


def _texture(parts: Sequence[Part], dx: np.ndarray, dy: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Factors of the color at each pixel, (n, patch, patch): triangle waves of 4 to 6 pixels."""
    kind, u = np.array([part.texture for part in parts]), u[:, 5:]
    pace = (1 / (4 + 2 * u[:, 0]))[:, None, None]
    slant = (2 * u[:, 1] - 1)[:, None, None]
    one, other = dx * pace + dy * pace * slant + u[:, 2, None, None], dy * pace - dx * pace * slant
    one, other = (4 * np.abs(wave - np.floor(wave) - 0.5) - 1 for wave in (one, other))  # -1..1
    pattern = np.choose(kind[:, None, None], [np.zeros_like(one), one, one * other, np.minimum(one, other)])
    return (1 + 0.28 * np.clip(2.5 * pattern, -1, 1)).astype(np.float32)
