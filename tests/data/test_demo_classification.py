"""The built-in images: frozen, balanced, and consistent with their classes."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

import numpy as np
import pytest

from mmattn.tasks.classification import demo
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts():
    return {split: demo.make(split, 120) for split in demo.SPLITS}


class TestFrozen(DemoTests):
    demo, first = demo, 12
    digests = (
        "899d10dd88e2e44f5e2afe30a76d87e798fcce288422f5ee1f86455ea1b3ccc9",
        "5373d677371fb65b48e313f188434ee54eb0e12a7d443f81744b067194d63c8b",
        "9f292d9bbd282e5cdf46b37fc32bf7f7a760e8756722caec7e6e3412aa922aa6",
    )

    def content(self, sample):
        return sample.image.tobytes() + repr((sample.id, sample.labels, sample.regions)).encode()


def test_classes_are_balanced_and_images_differ(parts):
    images = [sample.image.tobytes() for samples in parts.values() for sample in samples]
    assert len(set(images)) == len(images)
    for samples in parts.values():
        assert Counter(label for sample in samples for label in sample.labels) == dict.fromkeys(demo.CLASSES, 20)
        assert all(sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8 for sample in samples)
        assert {len(sample.regions) for sample in samples} == {2}
        boxes = [box for sample in samples for box in sample.regions]
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)


def test_class_follows_from_the_regions():
    """Each image has one circle and one square, and the relation of their boxes determines the class."""
    rng = Random("test")
    for n in range(300):
        label = demo.CLASSES[n % 6]
        scene = demo.compose(rng, label)
        (circle,) = [part for part in scene if part.shape == demo.CIRCLE]
        (square,) = [part for part in scene if part.shape == demo.SQUARE]
        assert 5 <= len(scene) <= 7
        dx, dy = circle.x - square.x, circle.y - square.y
        gap = (dx * dx + dy * dy) ** 0.5
        assert all(13 < place < 51 for part in (circle, square) for place in (part.x, part.y)), "not at the edge"
        if gap < max(circle.radius, square.radius) / 2:
            assert label.split()[1] == ("inside" if circle.radius < square.radius else "around")
            assert scene[-1].radius < scene[-2].radius, "the inner one is painted last"
        elif abs(dx) > abs(dy):
            assert label.split()[1] == ("left" if dx < 0 else "right")
            assert abs(dx) >= max(abs(dy) + 6, circle.radius + square.radius + 13)
        else:
            assert label.split()[1] == ("above" if dy < 0 else "below")
            assert abs(dy) >= max(abs(dx) + 6, circle.radius + square.radius + 13)


def test_color_and_texture_do_not_reveal_the_class():
    """Colors and textures of the two shapes have the same distribution in every class."""
    rng = Random("colours")
    counts = {label: Counter() for label in demo.CLASSES}
    for n in range(2400):
        label = demo.CLASSES[n % 6]
        for part in demo.compose(rng, label):
            if part.shape in (demo.CIRCLE, demo.SQUARE):
                counts[label][part.color, "colour"] += 1
                counts[label][part.texture, "texture"] += 1
    for found in counts.values():
        assert all(count < 800 * 0.24 for (_, kind), count in found.items() if kind == "colour")
        assert all(count < 800 * 0.33 for (_, kind), count in found.items() if kind == "texture")


def test_generation_is_fast():
    start = time.process_time()
    demo.make("val")
    assert time.process_time() - start < 6  # 0.7 s on an idle core
