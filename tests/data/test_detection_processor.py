"""Images and boxes to tensors and back: sizes, padding, crowds, classes; settings that are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.augment import DetectionAugment
from mmattn.tasks.detection.boxes import cxcywh_to_xyxy
from mmattn.tasks.detection.data import DetectionDataset, DetectionSample
from mmattn.tasks.detection.demo import CATEGORIES, make
from mmattn.tasks.detection.metrics import DetectionMetric
from mmattn.tasks.detection.processor import DetectionProcessor
from tests.conftest import refused
from tests.data.files import bad_data

pytest.importorskip("PIL")
CLASSES = Categories(("cat", "dog"), (3, 7))


def sample(
    name: str, size: tuple[int, int], *boxes: tuple[float, ...], label: str = "dog", **more: Any
) -> DetectionSample:
    """An image (width, height) that is black but for its white boxes."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = 255
    return DetectionSample(name, pixels, np.array(boxes, np.float64).reshape(-1, 4), [label] * len(boxes), **more)


SAMPLES = [
    sample("1", (60, 40), (10, 10, 30, 20), (0, 0, 10, 40)),
    sample("2", (30, 50), (5, 10, 25, 40)),
    sample("3", (20, 20)),
]


def white(batch: Any, row: int) -> list[float]:
    """The box around the white pixels, in 0..1 of the image's part."""
    ys, xs = (batch.pixel_values[row, 0] > 0).nonzero(as_tuple=True)
    h, w = batch.sizes[row]
    return [int(xs.min()) / w, int(ys.min()) / h, (int(xs.max()) + 1) / w, (int(ys.max()) + 1) / h]


@pytest.mark.parametrize(
    ("options", "sizes", "padded"),
    [
        ({}, [(40, 60), (50, 30), (20, 20)], (64, 64)),
        ({"multiple": 1}, [(40, 60), (50, 30), (20, 20)], (50, 60)),
        ({"size": 96}, [(64, 96), (96, 58), (96, 96)], (96, 96)),
        ({"size": (40, 80), "multiple": 8}, [(40, 60), (66, 40), (40, 40)], (72, 64)),
        ({"size": (100, 90), "resize": "pad"}, [(60, 90), (100, 60), (90, 90)], (100, 90)),
        ({"size": (64, 48), "resize": "squash"}, [(64, 48)] * 3, (64, 48)),
    ],
)
def test_sizes(options: dict[str, Any], sizes: list[tuple[int, int]], padded: tuple[int, int]) -> None:
    processor = DetectionProcessor(CLASSES, **options)
    batch = processor.collate(SAMPLES)
    assert batch.sizes == sizes
    assert batch.pixel_values.shape == (3, 3, *padded)
    assert batch.pixel_mask.sum((1, 2)).tolist() == [h * w for h, w in sizes]
    assert not batch.pixel_values[~batch.pixel_mask[:, None].expand_as(batch.pixel_values)].any(), "zero in the padding"
    assert all(bool(batch.pixel_mask[n, h - 1, w - 1]) for n, (h, w) in enumerate(sizes))
    found = cxcywh_to_xyxy(batch.boxes_cxcywh[1, 0])
    torch.testing.assert_close(found, torch.tensor([1 / 6, 0.2, 5 / 6, 0.8]), atol=1e-6, rtol=0)
    assert np.allclose(white(batch, 1), found, atol=0.03), "the box is around its pixels"
    assert batch.original_sizes == [(40, 60), (50, 30), (20, 20)]
    for row, one in enumerate(SAMPLES):
        mask = batch.box_mask[row]
        assert int(mask.sum()) == len(one.labels)
        back = processor.detections(
            cxcywh_to_xyxy(batch.boxes_cxcywh[row, mask]),
            mask[mask].float(),
            batch.labels[row, mask],
            batch.original_sizes[row],
        )
        assert np.allclose(back.boxes_xyxy, one.boxes_xyxy, atol=1e-4)
        assert set(back.labels.tolist()) <= {1}


def test_padding_of_the_batch_does_not_matter() -> None:
    processor = DetectionProcessor(CLASSES, multiple=1)
    alone, together = processor.collate(SAMPLES[1:2]), processor.collate(SAMPLES)
    h, w = alone.sizes[0]
    assert torch.equal(together.pixel_values[1, :, :h, :w], alone.pixel_values[0])
    assert torch.equal(together.boxes_cxcywh[1, :1], alone.boxes_cxcywh[0])
    empty = processor.collate(SAMPLES[2:])
    assert empty.boxes_cxcywh.shape == (1, 1, 4)
    assert not empty.box_mask.any(), "no dimension is empty"
    assert len(together.to("cpu")) == 3


def test_crowds_are_no_targets() -> None:
    one = sample(
        "1", (60, 40), (10, 10, 30, 20), (0, 0, 70, 40), crowd=np.array([False, True]), area=np.array([150.0, 9])
    )
    batch = DetectionProcessor(CLASSES).collate([one])
    assert batch.box_mask.tolist() == [[True]]
    truth = batch.truths[0]
    assert truth.crowd.tolist() == [False, True]
    assert truth.boxes_xyxy.tolist() == [[10, 10, 30, 20], [0, 0, 60, 40]], "clipped to the image"
    assert truth.area.tolist() == [150, 9]
    assert truth.labels.tolist() == [1, 1]


def test_targets_are_found_by_the_metric() -> None:
    pytest.importorskip("faster_coco_eval")
    processor, metric = DetectionProcessor(CLASSES, 50, "squash"), DetectionMetric(CLASSES.names)
    batch = processor.collate(SAMPLES)
    found = [
        processor.detections(cxcywh_to_xyxy(boxes[mask]), mask[mask].float(), labels[mask], size)
        for boxes, labels, mask, size in zip(
            batch.boxes_cxcywh, batch.labels, batch.box_mask, batch.original_sizes, strict=True
        )
    ]
    metric.update(found, batch.truths, batch.ids)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values["map"] == values["map/dog"] == 1.0


def test_unlabeled_images() -> None:
    batch = DetectionProcessor(CLASSES).collate([DetectionSample("x", SAMPLES[0].image)])
    assert not batch.box_mask.any()
    assert batch.truths[0].boxes_xyxy.shape == (0, 4)


def test_fit_and_retarget() -> None:
    dataset = DetectionDataset([*SAMPLES, sample("4", (20, 20), (0, 0, 9, 9), label="ant")])
    processor = DetectionProcessor.fit(dataset, 64)
    assert processor.classes == Categories(("ant", "dog"), (1, 2))
    assert processor.sizes() == {"num_classes": 2}
    model = DetectionProcessor(CLASSES, (48, 64), "pad", mean=(0.1, 0.2, 0.3), thresholds=[0.1, 0.9])
    for given, size in (({"size": None, "resize": None}, (48, 64)), ({"size": 32}, (32, 32))):
        other = model.retarget(dataset, given)
        assert (other.classes, other.size, other.resize) == (processor.classes, size, "pad")
        assert other.image.mean == (0.1, 0.2, 0.3)
        assert other.thresholds == [0.5, 0.5]
    declared = DetectionDataset(SAMPLES, classes=CLASSES)
    assert DetectionProcessor.fit(declared).classes == CLASSES, "also those without a box"


def test_other_classes(caplog: pytest.LogCaptureFixture) -> None:
    mixed = sample("4", (20, 20), (0, 0, 9, 9), (1, 1, 5, 5), crowd=np.array([False, True]))
    mixed.labels = ["dgo", "cat"]
    processor = DetectionProcessor(CLASSES)
    message = r"sample 3 \(id '4'\): expected one of the 2 classes .* \(box 0\), found 'dgo' \(did you mean 'dog'\?\)"
    bad_data(message, processor.check, DetectionDataset([*SAMPLES, mixed]))
    dataset = DetectionDataset([*SAMPLES, mixed], on_error="skip")
    processor.check(dataset)
    assert len(dataset) == 4
    assert dataset[3].labels == ["cat"]
    assert np.asarray(dataset[3].boxes_xyxy).tolist() == [[1, 1, 5, 5]]
    assert dataset[3].ignored.tolist() == [True]
    assert "excluded 1 bad item" in caplog.text
    other = DetectionDataset([sample("4", (20, 20), (0, 0, 9, 9), label="ant")], on_error="skip")
    bad_data(r"expected boxes of the classes \['cat', 'dog'\], found none", processor.check, other)
    bad_data("sample 4: expected one of the 2 classes .*, found 'ant'", processor.collate, other.samples)


def test_preload(tmp_path: Path) -> None:
    dataset, processor = DetectionDataset(SAMPLES), DetectionProcessor(CLASSES, 32)
    fingerprint, batch = dataset.fingerprint(), processor.collate(SAMPLES)
    assert not processor.preload(dataset, max_bytes=100)
    assert processor.preload(dataset)
    assert dataset[0].image.shape == (21, 32, 3)
    same = processor.collate([dataset[n] for n in range(3)])
    assert torch.equal(same.pixel_values, batch.pixel_values)
    assert torch.equal(same.boxes_cxcywh, batch.boxes_cxcywh)
    assert same.original_sizes == batch.original_sizes
    assert dataset.fingerprint() == fingerprint


def test_save_and_load(tmp_path: Path) -> None:
    for number, options in enumerate(
        ({}, {"size": 64, "thresholds": [0.2, 0.7]}, {"size": (32, 64), "resize": "squash"})
    ):
        processor = DetectionProcessor(CLASSES, std=(0.1, 0.2, 0.3), **options)
        folder = tmp_path / str(number)
        processor.save(folder)
        other = DetectionProcessor.load(folder)
        assert (other.config(), other.fingerprint()) == (processor.config(), processor.fingerprint())
        assert (other.classes, other.size, other.thresholds) == (
            processor.classes,
            processor.size,
            processor.thresholds,
        )


HOSTILE = [("image", {"size": bad}) for bad in (10**9, 0, -1, "x", [], [1, 2, 3], 1e308, {"kind": 1})]
HOSTILE += [("image", {"multiple": bad}) for bad in (0, 10**9, "x", None)]
HOSTILE += [("image", {"resize": bad}) for bad in ("crop", 7, None)]
HOSTILE += [("image", {"std": [0, 1, 1]}), ("image", {"other": 1})]
HOSTILE += [("classes", {"names": bad}) for bad in (["cat"], [], ["cat", "cat"], 7)]
HOSTILE += [("classes", {"ids": bad}) for bad in ([3, 3], ["x", 1], [3])]


@pytest.mark.parametrize(("section", "values"), HOSTILE)
def test_hostile_settings(section: str, values: dict[str, Any], tmp_path: Path) -> None:
    DetectionProcessor(CLASSES, 64).save(tmp_path)
    path = tmp_path / "processor.json"
    settings = json.loads(path.read_text())
    settings[section] |= values
    path.write_text(json.dumps(settings))
    bad_data("processor.json|classes", DetectionProcessor.load, tmp_path)


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 2.0], ["x", 0.5], 3])
def test_hostile_thresholds(thresholds: Any, tmp_path: Path) -> None:
    DetectionProcessor(CLASSES, 64).save(tmp_path)
    path = tmp_path / "processor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"thresholds": thresholds}))
    bad_data("processor.json: expected a processor's settings", DetectionProcessor.load, tmp_path)


def test_ablation_hides_the_image() -> None:
    processor = DetectionProcessor(CLASSES)
    batch = processor.ablate(processor.collate(SAMPLES), "image")
    assert not batch.pixel_values.any()
    assert batch.box_mask.any()
    refused(r"data\.ablate: expected 'image', found 'boxes'", processor.ablate, batch, "boxes", error=ConfigError)


def test_augmented_batches() -> None:
    dataset = DetectionDataset(make("train", 8), classes=CATEGORIES)
    processor = DetectionProcessor.fit(dataset)
    augment = DetectionAugment(mosaic=0.5, crop=0.2)
    batch = processor.collate(dataset.samples, augment=augment, seeds=range(8))
    again = processor.collate(dataset.samples, augment=augment, seeds=range(8))
    assert torch.equal(batch.pixel_values, again.pixel_values)
    assert torch.equal(batch.boxes_cxcywh, again.boxes_cxcywh)
    corners = cxcywh_to_xyxy(batch.boxes_cxcywh[batch.box_mask])
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    assert [len(truth.labels) for truth in batch.truths] == [len(sample.labels) for sample in dataset.samples]


def test_invalid_options() -> None:
    refused(
        "resize: expected one of fit, pad, squash, found 'padd' .did you mean 'pad'",
        DetectionProcessor,
        CLASSES,
        3,
        "padd",
    )
    refused("size: expected a side or .* for resize 'pad', found none", DetectionProcessor, CLASSES, None, "pad")
    refused("collate: augment needs seeds", DetectionProcessor(CLASSES).collate, SAMPLES, augment=lambda *_: [])
    one = DetectionSample("7", Path("none.png"), np.zeros((0, 4)))
    bad_data(
        r"sample 7: image none\.png: expected an image file, found no such file",
        DetectionProcessor(CLASSES).collate,
        [one],
    )
