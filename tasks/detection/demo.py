"""The built-in detection data: textured plates of hardware whose parts decide the class, drawn from a seed, in memory.

A scene is a 128x128 image with one to twelve objects of five classes. An object is a plate, round or square, and the
part in its middle decides the class: a `washer` has a hole, a `screw` a slot, a `rivet` a cross, a `button` two holes
and a `valve` half a disc. Plates without a part are no objects. Outlines, colors, textures, sizes, tilts and the parts'
contrasts have the same distribution for all classes. Plates overlap, but no part is covered; those at the edge are cut,
and their boxes with them. Half of the objects are less than 19 pixels wide.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_detection.py`. Random numbers
are from `numpy.random.RandomState`, whose stream NumPy guarantees not to change, and rendering uses only arithmetic
that is rounded equally on all machines.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmattn.data.image.shapes import RGB
from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.data import DetectionSample

GENERATOR_VERSION = 1
SIDE = 128  # of an image, in pixels
NAMES = ("washer", "screw", "rivet", "button", "valve")  # of the parts
CATEGORIES = Categories(NAMES, tuple(range(1, len(NAMES) + 1)))
NUM_SCENES = {"train": 1500, "val": 200, "test": 300}

_MOST, _DISTRACTORS = 12, 2  # objects, and plates without a part
_TOUCHING = 0.4  # probability that a plate is tried beside another one
_SMALLEST, _LARGEST = 6.5, 21.0  # radius in pixels
_REACH = 0.66  # of the part, in radii
_HALF_SIDE, _CORNER = 0.84, 1.19  # of a square, and the distance of its corners from its center, in radii
_COLORS = np.array(RGB, np.float64)
_CELLS = 8  # of the coarse noise


class _Plate(NamedTuple):
    kind: int  # index of the class, thus of the part; -1: no part
    is_square: bool
    x: float  # center in pixels
    y: float
    radius: float
    cos: float  # of the tilt
    sin: float

    @property
    def reach(self) -> float:
        """Distance of the outline's farthest point from the center."""
        return self.radius * (_CORNER if self.is_square else 1.0)

    def box(self) -> tuple[float, float, float, float]:
        """The bounding box xyxy in pixels, cut at the image's edge."""
        half = self.radius
        if self.is_square:
            half = self.radius * _HALF_SIDE * (abs(self.cos) + abs(self.sin))
        x1, y1, x2, y2 = self.x - half, self.y - half, self.x + half, self.y + half
        x1, y1, x2, y2 = (round(min(max(value, 0.0), float(SIDE)), 2) for value in (x1, y1, x2, y2))
        return x1, y1, x2, y2


def make(split: str, size: int | None = None) -> list[DetectionSample]:
    """Make the scenes of a split; smaller sizes are prefixes of larger ones.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in NUM_SCENES:
        raise ValueError(f"split: expected one of {', '.join(NUM_SCENES)}, found {split!r}")
    part = list(NUM_SCENES).index(split)
    number = NUM_SCENES[split] if size is None else size
    return [_scene(np.random.RandomState([GENERATOR_VERSION, part, n]), f"{split}-{n:04d}") for n in range(number)]


def _scene(rs: np.random.RandomState, name: str) -> DetectionSample:
    plates = _plates(rs)
    canvas = _ground(rs)  # (128, 128, 3)
    for plate in plates:
        _paint(rs, canvas, plate)
    canvas += rs.randint(0, 256, canvas.shape, np.uint8) * (20 / 255) - 10
    image = np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)
    things = [plate for plate in plates if plate.kind >= 0]
    boxes_xyxy = np.array([plate.box() for plate in things], np.float64).reshape(-1, 4)
    return DetectionSample(name, image, boxes_xyxy, [NAMES[plate.kind] for plate in things])


def _plates(rs: np.random.RandomState) -> list[_Plate]:
    """The plates of a scene, in the order in which they are painted."""
    placed: list[_Plate] = []
    distractors = int((_DISTRACTORS + 1) * rs.random_sample())
    objects = 1 + int(_MOST * rs.random_sample())
    for number in range(distractors + objects):
        kind = -1 if number < distractors else int(len(NAMES) * rs.random_sample())
        for _ in range(40):
            u = rs.random_sample(8)
            radius = _SMALLEST + (_LARGEST - _SMALLEST) * u[1] * u[1]
            margin = (_REACH + 0.06) * radius  # the part is whole, the outline may be cut
            x, y = (margin + (SIDE - 2 * margin) * draw for draw in u[2:4])
            dx, dy = u[4] - 0.5, u[5] - 0.5
            far = np.sqrt(dx * dx + dy * dy + 1e-9)
            plate = _Plate(kind, bool(u[0] < 0.5), x, y, radius, dx / far, dy / far)
            if placed and u[6] < _TOUCHING:  # beside another, whose outline it covers in part
                other = placed[int(len(placed) * u[7])]
                far = np.sqrt((x - other.x) * (x - other.x) + (y - other.y) * (y - other.y) + 1e-9)
                near = 1.001 * _least(other, plate) / far
                x, y = (a + (b - a) * near for a, b in ((other.x, x), (other.y, y)))
                if not all(margin <= value <= SIDE - margin for value in (x, y)):
                    continue
                plate = plate._replace(x=x, y=y)
            if all(_part_is_free(other, plate) for other in placed):
                placed.append(plate)
                break
    return placed


def _part_is_free(below: _Plate, above: _Plate) -> bool:
    """Whether a plate leaves the part of another one free; of plates without a part, that much is free, too."""
    dx, dy, least = below.x - above.x, below.y - above.y, _least(below, above)
    return dx * dx + dy * dy >= least * least


def _least(below: _Plate, above: _Plate) -> float:
    """Least distance of the centers of two plates, in pixels."""
    return (_REACH + 0.06) * below.radius + above.reach


def _ground(rs: np.random.RandomState) -> np.ndarray:
    """A muted background of bands and soft blotches, (128, 128, 3)."""
    u = rs.random_sample(8)
    grid = np.arange(SIDE) + 0.5
    phase = grid[:, None] * (0.16 * u[0] - 0.08) + grid * (0.16 * u[1] - 0.08) + u[2]
    bands = np.abs(phase - np.floor(phase) - 0.5) * (120 * u[3] - 60)
    level = 60 + 100 * u[4] + 24 * u[5:] - 12
    noise = rs.random_sample((_CELLS + 1, _CELLS + 1, 4)) - 0.5
    return level + (bands + 60 * _smooth(noise[..., 0]))[..., None] + 30 * _smooth(noise[..., 1:])


def _smooth(coarse: np.ndarray) -> np.ndarray:
    """Interpolate (9, 9, ...) bilinearly to (128, 128, ...)."""
    place = np.arange(SIDE) * (_CELLS / SIDE)
    low = place.astype(np.int64)
    part = (place - low).reshape(-1, *[1] * (coarse.ndim - 1))
    rows = coarse[low] * (1 - part) + coarse[low + 1] * part
    part = np.moveaxis(part, 0, 1)
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _paint(rs: np.random.RandomState, canvas: np.ndarray, plate: _Plate) -> None:
    """Paint a plate with smooth edges; what is random does not depend on its class."""
    u = rs.random_sample(13)
    reach = plate.reach + 1
    left, top = max(int(plate.x - reach), 0), max(int(plate.y - reach), 0)
    right, bottom = min(int(plate.x + reach) + 1, SIDE), min(int(plate.y + reach) + 1, SIDE)
    dx, dy = np.arange(left, right) + 0.5 - plate.x, (np.arange(top, bottom) + 0.5 - plate.y)[:, None]
    across, down = dx * plate.cos + dy * plate.sin, dy * plate.cos - dx * plate.sin
    r = plate.radius
    outer = _square(across, down, _HALF_SIDE * r) if plate.is_square else np.sqrt(dx * dx + dy * dy) - r
    color = _COLORS[int(len(_COLORS) * u[0])] * (0.75 + 0.25 * u[1]) + 30 * u[2:5] - 15
    own = 0.45 + 0.55 * u[12]
    color = own * color + (1 - own) * canvas[int(plate.y), int(plate.x)]  # some stand out less than others
    # Texture: stripes of random direction and strength, and light that falls off to one side.
    wave = (dx * (u[5] - 0.5) + dy * (u[6] - 0.5)) * (2.4 / (1 + 0.08 * r)) + u[7]
    shade = (np.abs(wave - np.floor(wave) - 0.5) * 4 - 1) * (26 * u[8]) + (dx + dy) * ((u[9] - 0.5) * 24 / r)
    painted = color + shade[..., None]
    if plate.kind >= 0:
        inner = _part(plate.kind, across, down, r * (0.92 + 0.16 * u[10]))
        contrast = 75 + 45 * u[11]
        contrast = -contrast if color.sum() > 330 else contrast
        painted = painted + (np.clip(0.5 - inner, 0, 1) * contrast)[..., None]
    alpha = np.clip(0.5 - outer, 0, 1)[..., None]
    window = canvas[top:bottom, left:right]
    window[:] = window * (1 - alpha) + painted * alpha


def _square(across: np.ndarray, down: np.ndarray, half: float) -> np.ndarray:
    """Distance from a square's edge, negative inside."""
    return np.maximum(np.abs(across), np.abs(down)) - half


def _part(kind: int, across: np.ndarray, down: np.ndarray, r: float) -> np.ndarray:
    """Distance from the edge of a class's part, negative inside; all have about the same area."""
    far = np.sqrt(across * across + down * down)
    if NAMES[kind] == "washer":  # a hole
        return far - 0.38 * r
    if NAMES[kind] == "button":  # two holes
        beside = np.abs(across) - 0.36 * r
        return np.sqrt(beside * beside + down * down) - 0.25 * r
    if NAMES[kind] == "valve":  # half a disc
        return np.maximum(far - 0.58 * r, down + 0.06 * r)
    long, wide = 0.58 * r, (0.2 if NAMES[kind] == "screw" else 0.14) * r
    slot = np.maximum(np.abs(across) - long, np.abs(down) - wide)
    if NAMES[kind] == "screw":
        return slot
    return np.minimum(slot, np.maximum(np.abs(down) - long, np.abs(across) - wide))  # a cross
