"""The built-in scenes: frozen, and as their description says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mmattn.tasks.segmentation.data import SegmentationDataset
from mmattn.tasks.segmentation.demo import CLASSES, GENERATOR_VERSION, NAMES, NUM_SCENES, THINGS, make
from tests.conftest import refused

DIGESTS = {  # of version 1; another generator is another version, with every figure measured anew
    "train": "a584bd7d632aa4419bccfa43428169006b6902603bd90457135700eb926ed8c0",
    "val": "fba695326289e5931e4e56def5109f9a95a7c36589a7cba41bf2ff18195c3142",
    "test": "7ba0f511d666a687e3cce0441c2d36f161e03a42535e563fde5e8702b3ee888b",
}


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return {split: make(split) for split in NUM_SCENES}


@pytest.mark.parametrize("split", DIGESTS)
def test_the_generator_is_frozen(split: str, parts: dict[str, list]) -> None:
    digest = hashlib.sha256()
    for sample in parts[split]:
        digest.update(sample.id.encode() + sample.image.tobytes() + sample.mask.tobytes())
    assert (GENERATOR_VERSION, digest.hexdigest()) == (1, DIGESTS[split])
    assert len(parts[split]) == NUM_SCENES[split]


def test_the_first_scenes_are_the_first_of_more() -> None:
    few, more = make("test", 3), make("test", 9)[:3]
    for a, b in zip(few, more, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.mask, b.mask)


def test_no_scene_stands_in_two_parts(parts: dict[str, list]) -> None:
    pictures = [sample.image.tobytes() for samples in parts.values() for sample in samples]
    assert len(set(pictures)) == len(pictures)


def test_each_class_is_there_often_enough(parts: dict[str, list]) -> None:
    masks = np.stack([sample.mask for sample in parts["test"]])
    assert masks.max() < len(NAMES)
    shares = np.bincount(masks.reshape(-1), minlength=len(NAMES)) / masks.size
    scenes = [(masks == k).any((1, 2)).mean() for k in range(len(NAMES))]
    assert min(scenes) > 0.5
    assert (shares[3:] < 0.03).all(), "thin and small"
    assert (shares[3:] > 0.005).all()


def test_colours_do_not_tell_the_class(parts: dict[str, list]) -> None:
    """The nearest of the classes' mean colours, by training scenes, is right about as often as the commonest class."""

    def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
        some = parts[split][:150]
        colours = np.concatenate([s.image.reshape(-1, 3) for s in some]).astype(np.int64) // 32
        return colours @ np.array([64, 8, 1]), np.concatenate([s.mask.reshape(-1) for s in some])

    table = np.zeros((512, len(NAMES)))
    np.add.at(table, pixels("train"), 1)
    test_colours, test_classes = pixels("test")
    said = table.argmax(1)[test_colours]
    pairs = [(said == k, test_classes == k) for k in range(len(NAMES))]
    assert np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]) < 0.25


def test_a_buoy_lies_in_waves_and_a_stone_does_not(parts: dict[str, list]) -> None:
    waves, buoy, stone = (NAMES.index(name) for name in ("waves", "buoy", "stone"))
    for mask in (sample.mask for sample in parts["val"]):
        for y, x in zip(*np.nonzero(np.isin(mask, (buoy, stone))), strict=True):
            around = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert np.isin(around, (waves, buoy)).all() if mask[y, x] == buoy else (around != waves).all()


def test_things_do_not_touch(parts: dict[str, list]) -> None:
    things = [NAMES.index(name) for name in THINGS]
    for sample in parts["val"]:
        mask = np.where(np.isin(sample.mask, things), sample.mask, 0)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert not ((a != b) & (a > 0) & (b > 0)).any()


def test_it_is_a_data_set() -> None:
    dataset = SegmentationDataset(make("val", 4), CLASSES)
    assert len(dataset) == 4
    assert dataset.classes is CLASSES


def test_unknown_part() -> None:
    refused("expected one of train, val, test, found 'dev'", make, "dev")
