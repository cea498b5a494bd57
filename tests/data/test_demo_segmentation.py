"""The built-in scenes: frozen, and as documented."""

from __future__ import annotations

import numpy as np
import pytest

from mmattn.tasks.segmentation import demo
from mmattn.tasks.segmentation.data import SegmentationSample
from mmattn.tasks.segmentation.demo import NAMES, NUM_SCENES, THINGS, make
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return {split: make(split, 200) for split in NUM_SCENES}  # prefixes of all


@pytest.fixture(scope="module")
def whole() -> dict[str, list]:
    return {split: make(split) for split in NUM_SCENES}


class TestFrozen(DemoTests):
    demo = demo
    first = 100
    digests = (
        "38e21e9edc1468c4da2b95e4120f4a0aa9664080c6a4618dcbf6841c36107c35",
        "af230049a68c276bb7fb0bcb130189cbb12b22de277083697050754d408c70f6",
        "909ce6625139cdeadd42787f9086870c862e1db91bdf5218628fca1dc17568eb",
    )

    def content(self, sample: SegmentationSample) -> bytes:
        return sample.id.encode() + sample.image.tobytes() + sample.mask.tobytes()


@pytest.mark.slow
class TestWhole(TestFrozen):
    first = None
    digests = (
        "a584bd7d632aa4419bccfa43428169006b6902603bd90457135700eb926ed8c0",
        "fba695326289e5931e4e56def5109f9a95a7c36589a7cba41bf2ff18195c3142",
        "7ba0f511d666a687e3cce0441c2d36f161e03a42535e563fde5e8702b3ee888b",
    )

    @pytest.fixture
    def made(self, whole: dict[str, list]) -> dict[str, list]:
        return whole


@pytest.mark.parametrize("size", ["parts", pytest.param("whole", marks=pytest.mark.slow)])
def test_splits_share_no_scene(size: str, request: pytest.FixtureRequest) -> None:
    parts = request.getfixturevalue(size)
    assert size == "parts" or {split: len(samples) for split, samples in parts.items()} == NUM_SCENES
    images = [sample.image.tobytes() for samples in parts.values() for sample in samples]
    assert len(set(images)) == len(images)


def test_every_class_is_frequent_enough(parts: dict[str, list]) -> None:
    masks = np.stack([sample.mask for sample in parts["test"]])
    assert masks.max() < len(NAMES)
    shares = np.bincount(masks.reshape(-1), minlength=len(NAMES)) / masks.size
    scenes = [(masks == k).any((1, 2)).mean() for k in range(len(NAMES))]
    assert min(scenes) > 0.5
    assert (shares[3:] < 0.03).all(), "thin and small objects"
    assert (shares[3:] > 0.005).all()


def test_colors_do_not_reveal_the_class(parts: dict[str, list]) -> None:
    """A lookup table from colors to the most frequent class of the training scenes has a low mIoU."""

    def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
        some = parts[split][:150]
        colours = np.concatenate([s.image.reshape(-1, 3) for s in some]).astype(np.int64) // 32
        return colours @ np.array([64, 8, 1]), np.concatenate([s.mask.reshape(-1) for s in some])

    table = np.zeros((512, len(NAMES)))
    np.add.at(table, pixels("train"), 1)
    test_colours, test_classes = pixels("test")
    predicted = table.argmax(1)[test_colours]
    pairs = [(predicted == k, test_classes == k) for k in range(len(NAMES))]
    assert np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]) < 0.25


def test_buoys_lie_in_waves_and_stones_do_not(parts: dict[str, list]) -> None:
    waves, buoy, stone = (NAMES.index(name) for name in ("waves", "buoy", "stone"))
    for mask in (sample.mask for sample in parts["val"]):
        for y, x in zip(*np.nonzero(np.isin(mask, (buoy, stone))), strict=True):
            around = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert np.isin(around, (waves, buoy)).all() if mask[y, x] == buoy else (around != waves).all()


def test_objects_do_not_touch(parts: dict[str, list]) -> None:
    things = [NAMES.index(name) for name in THINGS]
    for sample in parts["val"]:
        mask = np.where(np.isin(sample.mask, things), sample.mask, 0)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert not ((a != b) & (a > 0) & (b > 0)).any()
