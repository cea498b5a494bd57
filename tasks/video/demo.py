"""Built-in clips for video classification: the class is the order of events, which no bag of frames tells.

A clip has two drifting distractors throughout and, in a part of its frames, a circle, a ring or both, which do
something. Every second class is its predecessor played backwards: a circle before a ring and a ring before a
circle; a circle that moves right and left, that speeds up and slows down, that pushes a ring and is pushed by one.
The clips of two such classes have the same distribution of frames, so that predictions from frames without their order
are right half of the time at most. Colors, sizes, places and distractors do not depend on the class.

Frozen: random numbers are from the two generators whose streams Python and NumPy guarantee not to change, and rendering
uses only arithmetic that is rounded equally on all machines. A change of the clips is a new `GENERATOR_VERSION`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from mmattn.data.image.shapes import RGB, SHAPES, distance, grounds
from mmattn.tasks.video.data import Region, VideoSample

GENERATOR_VERSION = 1
CLASSES: tuple[str, ...] = ("circle before ring", "ring before circle", "circle moves right", "circle moves left")
CLASSES += ("circle speeds up", "circle slows down", "circle pushes ring", "ring pushes circle")
SPLITS = {"train": 3200, "val": 400, "test": 800}
FRAMES, SIZE, FPS = 12, 32, 12  # of a clip: frames, pixels of a side, frames per second
CIRCLE, RING = SHAPES.index("circle"), SHAPES.index("ring")
CLUTTER = tuple(SHAPES.index(name) for name in ("triangle", "star", "cross"))
_PATCH = 14  # pixels; contains the largest object
_CHUNK = 64  # clips that are rendered together
Place = tuple[float, float]  # x and y in pixels


class Actor(NamedTuple):
    """An object of a clip: indices of SHAPES and RGB, radius in pixels, and its place in each frame."""

    shape: int
    color: int
    radius: float
    places: tuple[Place | None, ...]  # None: not visible


def make(split: str, size: int | None = None, seed: int = 0) -> list[VideoSample]:
    """Make the clips of a split, all or the first `size`; smaller sizes are prefixes of larger ones.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    size = SPLITS[split] if size is None else size
    source = [7919 * seed + 31 * list(SPLITS).index(split) + 5, GENERATOR_VERSION]
    rng = Random(f"video {source}")
    clips = [compose(rng, n % len(CLASSES)) for n in range(size)]
    videos = paint(clips, source)
    samples = []
    for n, (actors, video) in enumerate(zip(clips, videos, strict=True)):
        backwards = n % 2 == 1
        samples.append(
            VideoSample(
                id=f"{split}-{n}",
                video=np.ascontiguousarray(video[::-1]) if backwards else video,
                labels=[CLASSES[n % len(CLASSES)]],
                fps=float(FPS),
                regions=regions_of(actors, backwards),
            )
        )
    return samples


def compose(rng: Random, number: int) -> list[Actor]:
    """The objects of a clip of a class, distractors first, as played forwards."""
    event = (_one_by_one, _across, _faster, _push)[number // 2](rng)
    length = len(event[0][1])
    begin = int(rng.random() * (FRAMES - length + 1))
    before, after = (None,) * begin, (None,) * (FRAMES - length - begin)
    found = [_distractor(rng) for _ in range(2)]
    for shape, places in event:
        found.append(Actor(shape, _color(rng), 3.6 + 0.8 * rng.random(), (*before, *places, *after)))
    return found


def regions_of(actors: Sequence[Actor], backwards: bool) -> list[Region]:
    """When and where circles and rings are seen, frame by frame."""
    found: list[Region] = []
    for frame in range(FRAMES):
        for actor in actors:
            place = actor.places[FRAMES - 1 - frame if backwards else frame]
            if actor.shape in (CIRCLE, RING) and place is not None:
                x0, y0, x1, y1 = (round(side, 4) for side in _box(place, actor.radius))
                found.append((frame / FPS, (frame + 1) / FPS, (x0, y0, x1, y1)))
    return found


def _box(place: Place, radius: float) -> tuple[float, float, float, float]:
    x, y = place
    low_x, low_y, high_x, high_y = x - radius, y - radius, x + radius, y + radius
    return max(low_x / SIZE, 0.0), max(low_y / SIZE, 0.0), min(high_x / SIZE, 1.0), min(high_y / SIZE, 1.0)


Event = list[tuple[int, tuple[Place | None, ...]]]  # shapes, and their places in the frames of the event


def _between(rng: Random, low: float, high: float) -> float:
    return low + rng.random() * (high - low)


def _color(rng: Random) -> int:
    return int(rng.random() * len(RGB))


def _place(rng: Random, edge: float = 5.5) -> Place:
    return _between(rng, edge, SIZE - edge), _between(rng, edge, SIZE - edge)


def _one_by_one(rng: Random) -> Event:
    """A circle is seen for three frames and, after one frame, a ring elsewhere."""
    first, second = _place(rng), _place(rng)
    nothing = (None,) * 4
    return [(CIRCLE, (*[first] * 3, *nothing)), (RING, (*nothing, *[second] * 3))]


def _across(rng: Random) -> Event:
    """A circle moves to the right at constant speed."""
    length = 6 + int(rng.random() * 2)
    start, way = _between(rng, 5.5, 9.0), _between(rng, 15.0, 17.5)
    y, slope = _place(rng)[1], _between(rng, -2.0, 2.0)
    shares = [n / (length - 1) for n in range(length)]
    return [(CIRCLE, tuple((start + way * s, y + slope * (s - 0.5)) for s in shares))]


def _faster(rng: Random) -> Event:
    """A circle moves up or down, ever faster."""
    length = 6 + int(rng.random() * 2)
    start, way = _between(rng, 5.5, 7.5), _between(rng, 17.0, 19.0)
    x, down = _place(rng)[0], rng.random() < 0.5
    shares = [(n / (length - 1)) ** 2 for n in range(length)]
    places = [start + way * s for s in shares]
    return [(CIRCLE, tuple((x, y if down else SIZE - y) for y in places))]


def _push(rng: Random) -> Event:
    """A circle moves to a ring, which then moves on while the circle rests."""
    middle, y = _between(rng, 13.5, 18.5), _between(rng, 6.0, SIZE - 6.0)
    mirrored = rng.random() < 0.5
    hit, gap = middle - 4.0, 8.5  # the place of the circle when they touch, and the ring's distance from it
    step = _between(rng, 1.8, 2.4)
    circle = [hit - step * n for n in (3, 2, 1, 0, 0, 0, 0)]
    ring = [hit + gap + step * n for n in (0, 0, 0, 0, 1, 2, 3)]
    turned = [[SIZE - x if mirrored else x for x in line] for line in (circle, ring)]
    return [(shape, tuple((x, y) for x in line)) for shape, line in zip((CIRCLE, RING), turned, strict=True)]


def _distractor(rng: Random) -> Actor:
    """An object that drifts slowly, in all frames."""
    (x, y), (dx, dy) = _place(rng, 8.0), (_between(rng, -0.5, 0.5), _between(rng, -0.5, 0.5))
    places = tuple((x + dx * (n - FRAMES / 2), y + dy * (n - FRAMES / 2)) for n in range(FRAMES))
    return Actor(CLUTTER[int(rng.random() * len(CLUTTER))], _color(rng), _between(rng, 2.6, 3.4), places)


def paint(clips: Sequence[Sequence[Actor]], seed: list[int]) -> np.ndarray:
    """Render clips: one background each, shapes with smooth edges, noise. Returns (N, T, 32, 32, 3) uint8."""
    videos = np.empty((len(clips), FRAMES, SIZE, SIZE, 3), np.uint8)
    streams = [np.random.RandomState([*seed, i]) for i in range(2)]
    for start in range(0, len(clips), _CHUNK):
        some = clips[start : start + _CHUNK]
        wide = grounds(len(some), streams[0])  # (n, 64, 64, 3)
        ground = (wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]) / np.float32(4)
        canvas = np.repeat(ground[:, None], FRAMES, axis=1).reshape(-1, SIZE, SIZE, 3)  # (n T, 32, 32, 3)
        for layer in range(max(map(len, some))):
            for shape in range(len(SHAPES)):
                _draw(canvas, some, layer, shape)
        canvas += streams[1].randint(0, 256, canvas.shape, np.uint8).astype(np.float32) * np.float32(16 / 255) - 8
        rounded = np.floor(np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)
        videos[start : start + _CHUNK] = rounded.reshape(-1, FRAMES, SIZE, SIZE, 3)
    return videos


def _draw(canvas: np.ndarray, clips: Sequence[Sequence[Actor]], layer: int, shape: int) -> None:
    """Blend the objects of a shape into the frames (n T, 32, 32, 3), the given one of each clip."""
    found = [
        (n * FRAMES + frame, place, actors[layer])
        for n, actors in enumerate(clips)
        if layer < len(actors) and actors[layer].shape == shape
        for frame, place in enumerate(actors[layer].places)
        if place is not None
    ]
    if not found:
        return
    rows = np.array([row for row, *_ in found])
    x, y = (np.array([place[k] for _, place, _ in found], np.float32)[:, None, None] for k in (0, 1))
    radius = np.array([actor.radius for *_, actor in found], np.float32)[:, None, None]
    rgb = np.array([RGB[actor.color] for *_, actor in found], np.float32)[:, None, None]
    half, span = _PATCH // 2, np.arange(_PATCH)
    down = np.floor(y).astype(np.int64) - half + span[None, :, None]  # (m, patch, 1)
    across = np.floor(x).astype(np.int64) - half + span[None, None, :]
    alpha = np.clip(0.5 - distance(shape, across + np.float32(0.5) - x, down + np.float32(0.5) - y, radius), 0, 1)
    inside = (down >= 0) & (down < SIZE) & (across >= 0) & (across < SIZE)
    share = (alpha * inside).astype(np.float32)[..., None]
    index = rows[:, None, None], down.clip(0, SIZE - 1), across.clip(0, SIZE - 1)
    blended = canvas[index] * (1 - share) + rgb * share
    at = np.nonzero(inside)
    canvas[
        np.broadcast_to(index[0], inside.shape)[at],
        np.broadcast_to(index[1], inside.shape)[at],
        np.broadcast_to(index[2], inside.shape)[at],
    ] = blended[at]
