"""The built-in segmentation data: textured scenes with thin and small objects, drawn from a seed, in memory.

A scene is a 64x64 image of eight classes. `rows` and `waves` are wide regions that differ only in the direction of
their stripes. A `ring` is closed and a `hook` is the same line with a gap, so that the class of a pixel depends on
others up to twenty pixels away. A `buoy` and a `stone` are the same small disc; a buoy lies in waves, a stone does not.
A `pole` is a thin straight line. Colors have the same distribution for all classes.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_segmentation.py`. Random numbers
are from `numpy.random.RandomState`, whose stream NumPy guarantees not to change, and rendering uses only arithmetic
that is rounded equally on all machines.
"""

from __future__ import annotations

import numpy as np

from mmattn.data.image.masks import ClassList
from mmattn.data.image.shapes import IMAGE_SIZE, RGB, smooth
from mmattn.tasks.segmentation.data import SegmentationSample

GENERATOR_VERSION = 1
NAMES = ("ground", "rows", "waves", "ring", "hook", "buoy", "stone", "pole")
THINGS = NAMES[3:]
CLASSES = ClassList(NAMES, tuple(range(len(NAMES))))
NUM_SCENES = {"train": 2400, "val": 200, "test": 400}

_GROUND, _ROWS, _WAVES, _RING, _HOOK, _BUOY, _STONE, _POLE = range(len(NAMES))
_COLORS = np.array(RGB)
_GAP = 0.64  # cosine of half the angle of a hook's gap: 100 degrees
_APART = 2.5  # minimum distance of two objects in pixels
_Y, _X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5  # pixel centers


def make(split: str, size: int | None = None) -> list[SegmentationSample]:
    """Make the scenes of a split; smaller sizes are prefixes of larger ones.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in NUM_SCENES:
        raise ValueError(f"split: expected one of {', '.join(NUM_SCENES)}, found {split!r}")
    part = list(NUM_SCENES).index(split)
    number = NUM_SCENES[split] if size is None else size
    streams = (np.random.RandomState([GENERATOR_VERSION, part, n]) for n in range(number))
    return [SegmentationSample(f"{split}-{n:04d}", *_scene(stream)) for n, stream in enumerate(streams)]


def _scene(rs: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """An image (64, 64, 3) and its mask (64, 64), uint8."""
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    level = 60 + 90 * rs.random_sample()
    canvas = level + 30 * rs.random_sample(3) - 15 + _blotches(rs, 50, 1) + _blotches(rs, 30, 3)  # (64, 64, 3)
    plain = canvas.copy()
    for _ in range(2 + int(2 * rs.random_sample())):
        _region(rs, plain, canvas, mask)
    taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    grounds = mask.copy()
    wanted = [_RING, _HOOK, _BUOY, _STONE, _POLE]
    wanted += [wanted[int(5 * draw)] for draw in rs.random_sample(3)]
    for kind in wanted[int(3 * rs.random_sample()) :]:
        for _ in range(25):
            distance = _thing(rs, kind)  # to its edge in pixels, negative inside
            if (taken & (distance < _APART)).any() or not _fits(kind, distance, grounds):
                continue
            _paint(rs, canvas, distance)
            mask[distance < 0], taken[distance < _APART] = kind, True
            break
    canvas += 24 * rs.random_sample(canvas.shape) - 12
    return np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8), mask


def _blotches(rs: np.random.RandomState, strength: float, channels: int) -> np.ndarray:
    """Coarse noise, interpolated: (64, 64, channels), within half the strength of zero."""
    return smooth(strength * rs.random_sample((1, 7, 7, channels)) - strength / 2)[0]


def _region(rs: np.random.RandomState, plain: np.ndarray, canvas: np.ndarray, mask: np.ndarray) -> None:
    """Paint a wide striped region: stripes of rows are horizontal, those of waves vertical."""
    kind = _ROWS if rs.random_sample() < 0.5 else _WAVES
    x, y, wide, high = rs.random_sample(4) * (IMAGE_SIZE, IMAGE_SIZE, 14, 14) + (0, 0, 16, 16)
    across, down = (_X - x) / wide, (_Y - y) / high
    inside = across * across + down * down + _blotches(rs, 1.0, 1)[..., 0] < 1
    tilt, period, phase, contrast = rs.random_sample(4) * (0.6, 2.5, 1.0, 24.0) + (-0.3, 4.5, 0.0, 34.0)
    along, other = (_Y, _X) if kind == _ROWS else (_X, _Y)
    wave = (along + tilt * other) / np.sqrt(1 + tilt * tilt) / period + phase
    stripes = (np.abs(wave - np.floor(wave) - 0.5) * 4 - 1) * contrast  # a triangle wave of this height
    tint = 40 * rs.random_sample(3) - 20
    painted = plain + tint + stripes[..., None]
    canvas[inside], mask[inside] = painted[inside], kind


def _thing(rs: np.random.RandomState, kind: int) -> np.ndarray:
    """An object at a random position, as the distance of every pixel from its edge, negative inside."""
    u = rs.random_sample(6)
    direction = u[:2] - 0.5
    direction = direction / np.sqrt(direction[0] * direction[0] + direction[1] * direction[1] + 1e-9)
    if kind == _POLE:
        half, thick = 8 + 7 * u[2], 0.9 + 0.25 * u[3]
        x, y = IMAGE_SIZE * u[4], IMAGE_SIZE * u[5]
        along = (_X - x) * direction[0] + (_Y - y) * direction[1]
        beside = (_X - x) * direction[1] - (_Y - y) * direction[0]
        beyond = np.maximum(np.abs(along) - half, 0)
        return np.sqrt(beside * beside + beyond * beyond) - thick
    radius = 3.0 + 0.8 * u[2] if kind in (_BUOY, _STONE) else 7 + 3 * u[2]
    x, y = radius + 2 + (IMAGE_SIZE - 2 * radius - 4) * u[4:6]
    dx, dy = _X - x, _Y - y
    far = np.sqrt(dx * dx + dy * dy)
    if kind in (_BUOY, _STONE):
        return far - radius
    ring = np.abs(far - radius) - (1.0 + 0.25 * u[3])
    if kind == _HOOK:  # pixels in the gap's direction are removed
        ring = np.maximum(ring, dx * direction[0] + dy * direction[1] - _GAP * far)
    return ring


def _fits(kind: int, distance: np.ndarray, grounds: np.ndarray) -> bool:
    """Whether a disc lies on the ground of its class; other objects may lie anywhere."""
    if kind not in (_BUOY, _STONE):
        return True
    waves = grounds[distance < 4] == _WAVES
    return bool(waves.all()) if kind == _BUOY else not waves.any()


def _paint(rs: np.random.RandomState, canvas: np.ndarray, distance: np.ndarray) -> None:
    """Paint an object in a random color, independent of its class, with smooth edges."""
    u = rs.random_sample(5)
    color = _COLORS[int(len(_COLORS) * u[0])] * (0.85 + 0.15 * u[1]) + 20 * u[2:] - 10
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    canvas[:] = canvas * (1 - alpha) + color * alpha
