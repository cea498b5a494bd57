"""The built-in pictures: frozen, balanced, and what the class says is so."""

from __future__ import annotations

import hashlib
import time
from collections import Counter

import numpy as np
import pytest

from data.demo import classification as demo

# Any change of these is a new GENERATOR_VERSION, and every figure stated for the built-in data has to be measured anew.
DIGESTS = {
    "train": "916cbf70fa7080b6c99dc4234afd1f39c78820770e7f18be8d96b448a225b8e6",
    "val": "52436ae90da8b08777d15fe2d0820d752702dbde44098fd5237e0b23748f68c1",
    "test": "0ee70dd489f2f022955ed9568c378ca953f792b8001d342166fe87f63b2c7776",
}


def digest(samples) -> str:
    sha = hashlib.sha256()
    for sample in samples:
        sha.update(sample.image.tobytes())
        sha.update(repr((sample.id, sample.labels, sample.regions)).encode())
    return sha.hexdigest()


@pytest.mark.parametrize("split", DIGESTS)
def test_frozen(split):
    assert demo.GENERATOR_VERSION == 1
    assert digest(demo.make(split, 12)) == DIGESTS[split]


def test_the_beginning_does_not_depend_on_the_number():
    assert digest(demo.make("val", 3)) == digest(demo.make("val", 30)[:3])
    assert digest(demo.make("val", 3, seed=1)) != digest(demo.make("val", 3))


def test_classes_are_balanced_and_pictures_differ():
    splits = {split: demo.make(split, 120) for split in demo.SPLITS}
    pictures = [sample.image.tobytes() for samples in splits.values() for sample in samples]
    assert len(set(pictures)) == len(pictures)
    for samples in splits.values():
        assert Counter(label for sample in samples for label in sample.labels) == dict.fromkeys(demo.CLASSES, 20)
        assert all(sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8 for sample in samples)


def test_the_class_follows_from_the_regions():
    """Each picture has one circle and one square, and their boxes stand to each other as the class says."""
    from random import Random

    rng = Random("test")
    for n in range(300):
        label = demo.CLASSES[n % 6]
        scene = demo.compose(rng, label)
        (circle,) = [part for part in scene if part.shape == demo.CIRCLE]
        (square,) = [part for part in scene if part.shape == demo.SQUARE]
        assert 5 <= len(scene) <= 7
        dx, dy = circle.x - square.x, circle.y - square.y
        gap = (dx * dx + dy * dy) ** 0.5
        if gap < max(circle.radius, square.radius) / 2:
            assert label.split()[1] == ("inside" if circle.radius < square.radius else "around")
            assert scene[-1].radius < scene[-2].radius, "the inner one is painted last"
        elif abs(dx) > abs(dy):
            assert label.split()[1] == ("left" if dx < 0 else "right")
            assert abs(dx) - abs(dy) >= 6
        else:
            assert label.split()[1] == ("above" if dy < 0 else "below")
            assert abs(dy) - abs(dx) >= 6


def test_regions_are_boxes_of_the_two_parts():
    for sample in demo.make("test", 60):
        assert len(sample.regions) == 2
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in sample.regions)


def test_neither_colour_nor_texture_tells_the_class():
    """Colours and textures of the two parts are drawn alike in every class."""
    from random import Random

    rng = Random("colours")
    counts = {label: Counter() for label in demo.CLASSES}
    for n in range(2400):
        label = demo.CLASSES[n % 6]
        for part in demo.compose(rng, label):
            if part.shape in (demo.CIRCLE, demo.SQUARE):
                counts[label][part.colour, "colour"] += 1
                counts[label][part.texture, "texture"] += 1
    for found in counts.values():
        assert all(count < 800 * 0.24 for (_, kind), count in found.items() if kind == "colour")
        assert all(count < 800 * 0.33 for (_, kind), count in found.items() if kind == "texture")


def test_unknown_split():
    with pytest.raises(ValueError, match="train, val, test; got 'training'"):
        demo.make("training")


def test_it_is_fast():
    start = time.process_time()
    demo.make("val")
    assert time.process_time() - start < 6  # 0.7 s on an idle core
