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
        "d2a594d6e0a6ea05002678136f0354034d78022e90489a55581c50edeba758f4",
        "7fce43f25121c4e6b250efb0bbe860cf3054778dea68bf3865d6fbab099b7c6e",
        "623840c3d7c3d9354f93ebebd8733fa89e19b55d47b067a2f1d121e94a95fa82",
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
    assert all(0.12 < count / total < 0.21 for count in counts.values())


def test_small_and_overlapping_objects(parts: dict[str, list]) -> None:
    boxes = np.concatenate([sample.boxes_xyxy for sample in parts["train"]])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert 10 < sides.min() < 13
    assert 40 < sides.max() < 51
    assert 17 < np.median(sides) < 19
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


@pytest.mark.parametrize(("inner", "most"), [(1.0, 0.4), (0.3, 0.45)])
def test_colors_and_sizes_do_not_reveal_the_class(inner: float, most: float, parts: dict[str, list]) -> None:
    """The nearest box of the training scenes by size and colors has another class in most cases; chance is 0.17."""
    known, known_classes = features(parts["train"], inner)
    asked, classes = features(parts["test"], inner)
    nearest = ((asked[:, None] - known) ** 2).sum(-1).argmin(1)
    assert (known_classes[nearest] == classes).mean() < most


def test_boxes_fit_the_plates(parts: dict[str, list]) -> None:
    """A plate on an otherwise empty ground: the image differs from the ground within the box alone, and up to it."""
    for kind in range(len(NAMES)):
        for tilt in ((1.0, 0.0), (0.6, 0.8)):
            plate = demo._Plate(kind, kind // 3, 60.3, 50.8, 15.0, *tilt)
            canvas = np.full((SIDE, SIDE, 3), -500.0)
            demo._paint(np.random.RandomState(kind), canvas, plate)
            rows, columns = np.nonzero((canvas > -250).any(-1))  # at least half covered
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(found - np.array(plate.box())).max() <= 1.01
