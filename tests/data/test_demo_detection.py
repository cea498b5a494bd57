"""The built-in scenes of hardware: frozen, and as documented."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mmattn.tasks.detection import demo
from mmattn.tasks.detection.boxes import box_iou
from mmattn.tasks.detection.data import DetectionDataset, DetectionSample
from mmattn.tasks.detection.demo import NAMES, NUM_SCENES, SIDE, make
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return {split: make(split, 150) for split in NUM_SCENES}  # prefixes of all


class TestFrozen(DemoTests):
    demo = demo
    first = 100
    digests = (
        "a7a253b24ff2d88029f598f31cb24b7ae6f95d3644bd7f1dfc01c0c3aa13a51d",
        "a1109498fd55fa8d72a194d4d6caf60af5a8e2ee625bff89d8eb9c5cc91ecf13",
        "e96a566cf942def3ff51e64885304b03754718bec6f4f1f302623675891f2c3b",
    )

    def content(self, sample: DetectionSample) -> bytes:
        boxes = np.asarray(sample.boxes_xyxy)
        return sample.id.encode() + sample.image.tobytes() + boxes.tobytes() + "|".join(sample.labels).encode()


def test_splits_share_no_scene(parts: dict[str, list]) -> None:
    images = [sample.image.tobytes() for samples in parts.values() for sample in samples]
    assert len(set(images)) == len(images)


def test_scenes_are_valid_data(parts: dict[str, list]) -> None:
    for split, samples in parts.items():
        dataset = DetectionDataset(samples, split, classes=demo.CATEGORIES)
        assert not dataset.skipped
        assert all(sample.image.shape == (SIDE, SIDE, 3) for sample in dataset.samples)
        numbers = [len(sample.labels) for sample in dataset.samples]
        assert (min(numbers), max(numbers)) == (1, 12)


def test_classes_are_balanced(parts: dict[str, list]) -> None:
    counts = Counter(label for sample in parts["train"] for label in sample.labels)
    total = sum(counts.values())
    assert set(counts) == set(NAMES)
    assert all(0.16 < count / total < 0.24 for count in counts.values())


def test_small_and_overlapping_objects(parts: dict[str, list]) -> None:
    boxes = np.concatenate([sample.boxes_xyxy for sample in parts["train"]])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert 10 < sides.min() < 13
    assert 40 < sides.max() < 51
    assert 17.5 < np.median(sides) < 19.5
    overlaps = []
    for sample in parts["train"]:
        own = torch.tensor(sample.boxes_xyxy)
        overlaps.append(float(box_iou(own, own).fill_diagonal_(0).max()))
    assert np.mean(np.array(overlaps) > 0.05) > 0.5
    assert max(overlaps) < 0.25, "no object is hidden"


def features(samples: list, inner: float) -> tuple[np.ndarray, np.ndarray]:
    """Size, and mean and deviation of the colors in the middle of each box; and the classes."""
    rows, classes = [], []
    for sample in samples:
        for (x1, y1, x2, y2), label in zip(sample.boxes_xyxy, sample.labels, strict=True):
            half, x, y = (x2 - x1) / 2 * inner, (x1 + x2) / 2, (y1 + y2) / 2
            top, left = max(int(y - half), 0), max(int(x - half), 0)
            patch = sample.image[top : int(y + half) + 1, left : int(x + half) + 1].reshape(-1, 3)
            rows.append([2 * (x2 - x1), *patch.mean(0), *patch.std(0)])
            classes.append(NAMES.index(label))
    return np.array(rows), np.array(classes)


@pytest.mark.parametrize(("inner", "most"), [(1.0, 0.4), (0.3, 0.5)])
def test_colors_and_sizes_do_not_reveal_the_class(inner: float, most: float, parts: dict[str, list]) -> None:
    """The nearest box of the training scenes by size and colors has another class in most cases; chance is 0.2."""
    known, known_classes = features(parts["train"], inner)
    asked, classes = features(parts["test"], inner)
    nearest = ((asked[:, None] - known) ** 2).sum(-1).argmin(1)
    assert (known_classes[nearest] == classes).mean() < most


def test_boxes_fit_the_plates(parts: dict[str, list]) -> None:
    """A plate on an otherwise empty ground: the image differs from the ground within the box alone, and up to it."""
    for kind in range(len(NAMES)):
        for is_square, tilt in ((False, (1.0, 0.0)), (True, (1.0, 0.0)), (True, (0.6, 0.8))):
            plate = demo._Plate(kind, is_square, 60.3, 50.8, 15.0, *tilt)
            canvas = np.full((SIDE, SIDE, 3), -500.0)
            demo._paint(np.random.RandomState(kind), canvas, plate)
            rows, columns = np.nonzero((canvas > -250).any(-1))  # at least half covered
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(found - np.array(plate.box())).max() <= 1.01
