"""Procedural scenes of textured shapes, from which the built-in data of the image tasks are made.

`place` and `dress` sample a scene, `paint` renders many scenes at once. All are frozen together with the data built on
them: random numbers come from the two streams that Python and NumPy promise never to change (`random.Random.random`,
`numpy.random.RandomState`), and rendering uses only arithmetic that every machine rounds the same way, so the bytes
are identical everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np

from mmattn.data.seeds import pick

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SIZES = ("small", "large")

RGB = ((212, 34, 44), (244, 130, 18), (248, 226, 60), (38, 160, 62), (44, 100, 228), (150, 62, 190), (246, 246, 246))
RELATIONS = (("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1))  # axis and sign
_APART = 9.0  # minimum distance of two centers in pixels for one object to be "left of" the other
_RADIUS = ((4.8, 5.8), (8.2, 9.4))  # pixels, by size
_REACH = (1.0, 0.96, 1.12, 1.3, 1.06, 1.0)  # half the side of a shape's box, in radii
_PATCH = 28  # pixels; contains the largest object
Drawn = Any  # an object with shape and color, indices into SHAPES and COLORS; x, y and radius, in pixels


def box_around(x: float, y: float, reach: float) -> tuple[float, float, float, float]:
    """Returns a square's box xyxy, in 0..1 of the image, from its center and half its side, in pixels."""
    x0, x1, y0, y1 = (round((place + side) / IMAGE_SIZE, 4) for place in (x, y) for side in (-reach, reach))
    return x0, y0, x1, y1


def apart(dx: float, dy: float, axis: int) -> float:
    """Returns the distance along an axis; 0 if it is too small for a relation, absolutely or beside the other axis."""
    along, across = (dx, dy) if axis == 0 else (dy, dx)
    return along if abs(along) >= _APART and 2 * abs(along) >= abs(across) else 0.0


def plural(noun: str) -> str:
    """Returns the plural of a shape's word, or of another regular noun."""
    return noun + ("es" if noun == "cross" else "s")


class Shading(NamedTuple):
    """Shading of an object's color."""

    at: Callable[..., np.ndarray]  # (things, across, down (n, patch, patch), draws (n, draws)): a factor per pixel
    turned: bool  # whether across and down are tilted with the object
    draws: int  # random numbers per object; the first five are tint and tilt


class SceneObject(NamedTuple):
    """One object of a scene: indices into SIZES, COLORS and SHAPES; center and radius in pixels."""

    size: int
    color: int
    shape: int
    x: float
    y: float
    radius: float

    def box(self) -> tuple[float, float, float, float]:
        """The bounding box xyxy, in 0..1 of the image."""
        return box_around(self.x, self.y, self.radius * _REACH[self.shape])

    def word(self, k: int) -> str:
        """Returns the word for the size (0), color (1) or shape (2)."""
        return (SIZES[self.size], COLORS[self.color], SHAPES[self.shape])[k]

    def labels(self) -> tuple[str, ...]:
        """Returns the words for shape, color and size."""
        return SHAPES[self.shape], COLORS[self.color], SIZES[self.size]


def place(rng: Random, number: int) -> list[tuple[int, float, float, float]]:
    """Samples size, x, y and radius of several objects that do not touch."""
    while True:
        places: list[tuple[int, float, float, float]] = []
        sizes = sorted((int(rng.random() * 2) for _ in range(number)), reverse=True)  # large ones first: easier to fit
        for size in sizes:
            low, high = _RADIUS[size]
            radius = low + rng.random() * (high - low)
            reach = 1.3 * radius + 0.5
            for _ in range(10):
                x = reach + rng.random() * (IMAGE_SIZE - 2 * reach)
                y = reach + rng.random() * (IMAGE_SIZE - 2 * reach)
                apart = [(1.18 * (radius + other) + 1.5, at_x, at_y) for _, at_x, at_y, other in places]
                if all((x - at_x) ** 2 + (y - at_y) ** 2 >= far * far for far, at_x, at_y in apart):
                    places.append((size, x, y, radius))
                    break
            else:
                break
        if len(places) == number:
            return places


def dress(rng: Random, places: list[tuple[int, float, float, float]]) -> list[SceneObject]:
    """Samples objects at these positions, of only two to four colors and shapes, for questions about counts."""
    colors = [int(rng.random() * len(COLORS)) for _ in range(2 + int(rng.random() * 3))]
    shapes = [int(rng.random() * len(SHAPES)) for _ in range(2 + int(rng.random() * 3))]
    return [SceneObject(size, pick(rng, colors), pick(rng, shapes), x, y, radius) for size, x, y, radius in places]


def light(things: Sequence[Drawn], across: np.ndarray, down: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns the factor of the color at each pixel: light that falls off to one side."""
    r = np.array([thing.radius for thing in things], np.float32)[:, None, None]
    return 1 + (across * (u[:, 5] - 0.5)[:, None, None] + down * (u[:, 6] - 0.5)[:, None, None]) * 0.2 / r


LIGHT = Shading(light, turned=True, draws=7)


def paint(
    scenes: Sequence[Sequence[Drawn]], seed: list[int], shading: Shading = LIGHT, most: int = 5, patch: int = _PATCH
) -> np.ndarray:
    """Renders scenes: textured backgrounds, tilted shapes with smooth edges, noise.

    Args:
        scenes: The objects of each scene.
        seed: Seed of backgrounds, tilts, tints and noise. The first images do not depend on the number of scenes.
        shading: Shading of the objects' colors.
        most: Maximum number of objects in a scene.
        patch: Side of a square that contains the largest object, in pixels.

    Returns:
        Images (N, 64, 64, 3), uint8.
    """
    images = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    streams = [np.random.RandomState([*seed, i]) for i in range(3)]
    for start in range(0, len(scenes), 256):  # in chunks that fit the CPU cache
        some = scenes[start : start + 256]
        canvas = grounds(len(some), streams[0])
        _draw(canvas, some, streams[1], shading, most, patch)
        canvas += streams[2].randint(0, 256, canvas.shape, np.uint8).astype(np.float32) * (20 / 255) - 10
        images[start : start + 256] = np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)
    return images


def grounds(number: int, rs: np.random.RandomState) -> np.ndarray:
    """Returns muted backgrounds of bands and soft blotches, (N, 64, 64, 3) float32."""
    u = rs.random_sample((number, 8 + 49 + 49 * 3)).astype(np.float32)
    grid = np.arange(IMAGE_SIZE, dtype=np.float32)
    level = 45 + 60 * u[:, :1]
    tint = 24 * u[:, 1:4] - 12
    # bands: a triangle wave along a random direction, 5 to 14 pixels wide, of random strength
    step_x, step_y = ((0.2 * u[:, k] - 0.1)[:, None, None] for k in (4, 5))
    phase = grid[:, None] * step_y + grid[None, :] * step_x + u[:, 6, None, None]
    bands = np.abs(phase - np.floor(phase) - 0.5) * (80 * u[:, 7] - 40)[:, None, None]
    # blotches: coarse noise, interpolated
    light = smooth(u[:, 8:57].reshape(number, 7, 7, 1)) * 44 - 22
    hue = smooth(u[:, 57:].reshape(number, 7, 7, 3)) * 28 - 14
    return (level + tint)[:, None, None, :] + bands[..., None] + light + hue


def smooth(coarse: np.ndarray) -> np.ndarray:
    """Interpolates (N, 7, 7, C) bilinearly to (N, 64, 64, C)."""
    place = np.arange(IMAGE_SIZE, dtype=np.float32) * np.float32(6 / IMAGE_SIZE)
    low = place.astype(np.int64)
    part = (place - low)[None, :, None, None]
    rows = coarse[:, low] * (1 - part) + coarse[:, low + 1] * part
    part = part.transpose(0, 2, 1, 3)
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


def _draw(
    canvas: np.ndarray,
    scenes: Sequence[Sequence[Drawn]],
    rs: np.random.RandomState,
    shading: Shading,
    most: int,
    patch: int,
) -> None:
    """Blends the objects into the canvas, the n-th object of every scene at once."""
    size = patch // 2
    padded = np.pad(canvas, ((0, 0), (size, size), (size, size), (0, 0)))
    draws = rs.random_sample((len(scenes), most, shading.draws)).astype(np.float32)
    span = np.arange(patch)
    for n in range(most):
        for shape in range(len(SHAPES)):
            where = np.array([i for i, s in enumerate(scenes) if len(s) > n and s[n].shape == shape], np.int64)
            if not len(where):
                continue
            things = [scenes[i][n] for i in where]
            x, y, r = (
                np.array([getattr(t, k) for t in things], np.float32)[:, None, None] for k in ("x", "y", "radius")
            )
            rgb = np.array([RGB[t.color] for t in things], np.float32)
            u = draws[where, n]
            rgb = rgb * (0.9 + 0.14 * u[:, 3:4]) + (16 * u[:, :3] - 8)
            rows = np.floor(y).astype(np.int64) + span[None, :, None]  # the patch, in the padded canvas
            cols = np.floor(x).astype(np.int64) + span[None, None, :]
            tilt = (0.44 * u[:, 4] - 0.22)[:, None, None]
            cos = 1 / np.sqrt(1 + tilt * tilt)
            dx, dy = cols - size + np.float32(0.5) - x, rows - size + np.float32(0.5) - y
            across, down = (dx + dy * tilt) * cos, (dy - dx * tilt) * cos
            alpha = np.clip(0.5 - distance(shape, across, down, r), 0, 1).astype(np.float32)[..., None]
            shade = shading.at(things, *((across, down) if shading.turned else (dx, dy)), u)
            index = where[:, None, None], rows, cols
            padded[index] = padded[index] * (1 - alpha) + rgb[:, None, None, :] * shade[..., None] * alpha
    canvas[:] = padded[:, size:-size, size:-size]


_STAR = ((0.0, 1.0), (0.951057, 0.309017), (0.587785, -0.809017), (-0.587785, -0.809017), (-0.951057, 0.309017))


def distance(shape: int, u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Returns the signed distance in pixels, negative inside, of points (u, v) from a shape of radius r at (0, 0)."""
    across, down = np.abs(u), np.abs(v)
    if SHAPES[shape] == "circle":
        return np.sqrt(u * u + v * v) - r
    if SHAPES[shape] == "square":
        return np.maximum(across, down) - 0.88 * r
    if SHAPES[shape] == "triangle":
        return np.maximum(v - 0.62 * r, 0.875 * across - 0.485 * v - 0.56 * r)
    if SHAPES[shape] == "star":  # the intersection of at least four of five half-planes
        planes = np.sort(np.stack([a * u + b * v for a, b in _STAR]), axis=0)
        return planes[3] - 0.41 * r
    if SHAPES[shape] == "cross":
        return np.minimum(np.maximum(across - r, down - 0.34 * r), np.maximum(across - 0.34 * r, down - r))
    return np.abs(np.sqrt(u * u + v * v) - 0.76 * r) - 0.24 * r  # ring
