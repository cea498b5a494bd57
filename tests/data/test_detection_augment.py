"""Augmentation moves boxes with their pixels, and is a pure function of images and seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmattn.tasks.detection.augment import DetectionAugment, Target
from tests.conftest import refused

pytest.importorskip("torchvision")
PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "zoom": {"scale": (0.6, 2.0), "aspect": 1.5},
    "shrink": {"scale": (0.5, 0.5), "flip": 1.0},
    "crop": {"crop": 1.0},
    "mosaic": {"mosaic": 1.0},
    "small mosaic": {"mosaic": 1.0, "mosaic_scale": (0.3, 0.5)},
}


def target(seed: int, size: tuple[int, int] = (48, 64)) -> Target:
    """A black image with a white and a gray square, of the classes 0 and 1, that do not touch."""
    rs = np.random.RandomState(seed)
    pixels, boxes = np.zeros((*size, 3), np.uint8), []
    for k, left in enumerate((0, size[1] // 2)):
        side = rs.randint(10, 16)
        x, y = left + 4 + rs.randint(0, size[1] // 2 - side - 8), 4 + rs.randint(0, size[0] - side - 8)
        pixels[y : y + side, x : x + side] = (250, 100)[k]
        boxes.append([x, y, x + side, y + side])
    return Target(pixels, np.array(boxes, np.float64), np.array([0, 1]))


TARGETS = [
    target(0),
    target(1),
    target(2, (60, 56)),
    target(3, (33, 65)),
    Target(np.zeros((30, 30, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, np.int64)),
]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_boxes_move_with_their_pixels(options: dict[str, Any]) -> None:
    augment = DetectionAugment(visible=0.5, **options, **PLAIN)
    counts, filled = [], []
    for seed in range(30):
        results = augment(TARGETS, range(5 * seed, 5 * seed + 5))
        for given, found in zip(TARGETS, results, strict=True):
            assert found.pixels.shape == given.pixels.shape
            assert found.pixels.dtype == np.uint8
            h, w = found.pixels.shape[:2]
            x1, y1, x2, y2 = found.boxes_xyxy.T
            assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= w + 1e-4).all() and (y2 <= h + 1e-4).all()  # noqa: PT018
            assert (x2 - x1 >= 1).all() and (y2 - y1 >= 1).all()  # noqa: PT018
            for (left, top, right, bottom), k in zip(found.boxes_xyxy, found.labels, strict=True):
                inside = found.pixels[round(top + 0.5) : round(bottom - 0.5), round(left + 0.5) : round(right - 0.5), 0]
                if inside.size > 9:
                    wanted = inside > 170 if k == 0 else (inside > 60) & (inside < 170)
                    filled.append(wanted.mean())
            counts.append(len(found.labels))
    assert np.mean(filled) > 0.97
    assert np.quantile(filled, 0.02) > 0.7
    assert np.mean(counts) > (1.5 if "mosaic" in options else 1.0)


def test_a_window_keeps_a_box_where_there_is_one() -> None:
    augment = DetectionAugment(scale=(3.0, 3.0), **PLAIN)
    counts = [len(augment(TARGETS[:1], [seed])[0].labels) for seed in range(100)]
    assert min(counts) > 0
    assert max(counts) <= 2
    assert not len(augment(TARGETS[4:], [3])[0].labels)


def test_depends_on_the_seed_alone() -> None:
    augment = DetectionAugment(mosaic=0.5, crop=0.5, hue=0.1)
    state, before = torch.get_rng_state(), [one.pixels.copy() for one in TARGETS]
    first, again, other = (augment(TARGETS, seeds) for seeds in (range(5), range(5), range(5, 10)))
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(one.pixels, pixels) for one, pixels in zip(TARGETS, before, strict=True))
    plain = DetectionAugment(crop=0.5)
    assert np.array_equal(plain(TARGETS, range(5))[1].pixels, plain(TARGETS[1:], range(1, 5))[0].pixels)


def test_none_is_identity_and_half_are_flipped() -> None:
    none = DetectionAugment(scale=(1.0, 1.0), aspect=1.0, flip=0.0, **PLAIN)
    for given, found in zip(TARGETS, none(TARGETS, range(5)), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(given, found, strict=True))
    flip = DetectionAugment(scale=(1.0, 1.0), aspect=1.0, flip=0.5, **PLAIN)
    flipped = [flip(TARGETS[:1], [seed])[0].pixels for seed in range(60)]
    assert 15 < sum(np.array_equal(pixels, TARGETS[0].pixels[:, ::-1]) for pixels in flipped) < 45


def test_mosaic_has_images_of_the_batch() -> None:
    colors = [
        Target(np.full((40, 40, 3), 50 * n, np.uint8), np.array([[0.0, 0, 40, 40]]), np.array([n])) for n in range(5)
    ]
    augment = DetectionAugment(mosaic=1.0, mosaic_scale=(1.0, 1.0), visible=0.0, flip=0.0, **PLAIN)
    for place, found in enumerate(augment(colors, range(5))):
        assert set(found.labels) == {int(value) // 50 for value in np.unique(found.pixels)}
        assert place in found.labels
        assert len(found.labels) == 4
        sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
        assert sides.prod(1).sum() == 1600, "the four boxes tile the image"
    assert len(augment(colors[:1], [1])[0].labels) == 4, "a batch of one"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"scale": (2.0, 1.0)}, "scale: expected a smallest and a largest zoom"),
        ({"mosaic_scale": (0.5,)}, "mosaic_scale: expected a smallest and a largest zoom"),
        ({"aspect": 0.5}, "aspect: expected 1 to 4, found 0.5"),
        ({"mosaic": 1.5}, "mosaic: expected 0 to 1"),
        ({"visible": -0.1}, "visible: expected 0 to 1"),
        ({"hue": 0.7}, "hue: expected 0 to 0.5"),
    ],
)
def test_invalid_options(option: dict[str, Any], message: str) -> None:
    refused(message, DetectionAugment, **option)
