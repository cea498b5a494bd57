"""Samples, processor and batches of VQA."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmattn.data.batching import EvalBatchSampler, make_loader
from mmattn.data.image.processor import ImageAugment
from mmattn.tasks.vqa.data import VQABatch, VQADataset, VQASample
from mmattn.tasks.vqa.module import drop_uncovered
from mmattn.tasks.vqa.processor import VQAProcessor
from tests.conftest import refused
from tests.data.fetching import measured_on
from tests.data.files import bad_data, write

RED = (((0.5, 0.0, 1.0, 0.5), ("red", "ball")),)


def pixels(seed: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def samples(num_images: int = 4, questions: int = 3, size: tuple[int, int] = (16, 16)) -> list[VQASample]:
    words = ["is it red?", "how many red balls are there?", "what is left of it?"]
    answers = [["Yes."], ["two", "2", "3"], ["a t-shirt"] * 10]
    return [
        VQASample(
            id=f"{image}-{q}",
            image=pixels(image, size),
            question=words[q % 3],
            answers=answers[q % 3],
            image_id=f"image {image}",
            question_type=f"type {q}",
            regions=[(0.25 * r, 0.25, 0.25 * r + 0.25, 0.5) for r in range(q)],
            objects=list(RED) * (image % 3),
        )
        for image in range(num_images)
        for q in range(questions)
    ]


@pytest.fixture(scope="module")
def processor() -> VQAProcessor:
    return VQAProcessor.fit(VQADataset(samples()), image_size=16)


def same(a: VQABatch, b: VQABatch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(VQABatch)]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


# Processor


def test_fit(processor: VQAProcessor) -> None:
    assert processor.answers == ["2", "t shirt", "yes"]  # normalized; equally frequent, hence in alphabetical order
    assert processor.object_labels == ["ball", "red"]
    assert processor.sizes() == {
        "vocab_size": processor.tokenizer.vocab_size,
        "num_answers": 3,
        "image_size": processor.image.size[0],
    }


def test_answer_vocabulary_keeps_the_most_frequent() -> None:
    rows = [VQASample(str(i), pixels(0), "x?", [answer]) for i, answer in enumerate(["a1"] * 3 + ["b1"] * 2 + ["c1"])]
    data = VQADataset(rows)
    assert VQAProcessor.fit(data).answers == ["a1", "b1", "c1"]
    assert VQAProcessor.fit(data, max_answers=1).answers == ["a1"]
    assert VQAProcessor.fit(data, min_answer_count=2).answers == ["a1", "b1"]
    bad_data("an answer given to 4 or more questions", VQAProcessor.fit, data, min_answer_count=4)


def test_targets_are_soft_scores(processor: VQAProcessor) -> None:
    others = [VQASample("u", pixels(0), "x?"), VQASample("o", pixels(0), "x?", ["no"])]
    targets = processor.targets([*samples()[:3], *others])
    expected = torch.tensor([[0, 0, 1], [2 / 3, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert torch.allclose(targets, expected)


def test_answers_outside_the_vocabulary_are_counted(processor: VQAProcessor, caplog: pytest.LogCaptureFixture) -> None:
    answers = {"in": ["yes"], "part": ["yes"] * 2 + ["maybe"] * 8, "out": ["maybe"]}
    data = VQADataset([VQASample(name, pixels(0), "x?", given) for name, given in answers.items()])
    coverage = processor.coverage(data)
    assert (coverage.total, coverage.covered) == (3, 2)
    assert coverage.ceiling == pytest.approx((1 + 0.6 + 0) / 3)
    assert str(coverage).startswith("1 of 3 questions (33.3%) have no answer in the vocabulary")
    with caplog.at_level(logging.WARNING):
        kept = drop_uncovered(data, processor)
    assert [sample.id for sample in kept] == ["in", "part"]
    assert len(kept.groups) == 2
    assert "1 of 3 questions" in caplog.text
    assert len(data) == 3
    assert drop_uncovered(kept, processor) is kept
    out = data.filter(lambda sample: sample.id == "out")
    bad_data("at least one question with an answer in the vocabulary", drop_uncovered, out, processor)


def test_save_load_and_fingerprint(processor: VQAProcessor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["processor.json", "tokenizer.json"]
    loaded = VQAProcessor.load(tmp_path)
    assert loaded.fingerprint() == processor.fingerprint() == pickle.loads(pickle.dumps(processor)).fingerprint()
    assert same(loaded.collate(samples()), processor.collate(samples()))
    other = VQAProcessor.fit(VQADataset(samples()), image_size=8)
    assert other.fingerprint() != processor.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("answers"), "expected the keys"),
        (lambda c: c.update(more=1), "expected the keys"),
        (lambda c: c.update(format_version=2), "format_version 1, found 2"),
        (lambda c: c.update(answers=[]), "at least one"),
        (lambda c: c.update(answers=["a", "a"]), "different answers"),
        (lambda c: c["image"].update(resize="x"), "processor's settings"),
        (lambda c: c["image"].update(wrong=1), "processor's settings"),
        (lambda c: c["text"].update(wrong=1), "processor's settings"),
        (lambda c: c.update(text=3), "processor's settings"),
        (lambda c: c.update(image=None), "processor's settings"),
    ],
)
def test_invalid_settings(processor: VQAProcessor, tmp_path: Path, change: Any, message: str) -> None:
    processor.save(tmp_path)
    config = json.loads((tmp_path / "processor.json").read_text())
    change(config)
    write(tmp_path / "processor.json", json.dumps(config))
    assert str(tmp_path) in bad_data(message, VQAProcessor.load, tmp_path)


def test_missing_settings(tmp_path: Path) -> None:
    bad_data("no such file", VQAProcessor.load, tmp_path)
    bad_data("JSON", VQAProcessor.load, write(tmp_path / "processor.json", "{").parent)


# Batches


def test_batch(processor: VQAProcessor) -> None:
    rows = samples()
    mixed = [rows[i] for i in (3, 0, 4, 1, 5, 8)]  # images 1, 0, 1, 0, 1, 2
    batch = processor.collate(mixed)
    assert len(batch) == 6
    assert batch.image_index.tolist() == [0, 1, 0, 1, 0, 2]
    assert batch.pixel_values.shape == (3, 3, 16, 16)
    for n, image in enumerate((1, 0, 2)):
        expected = torch.from_numpy(pixels(image)).permute(2, 0, 1) / 255
        assert torch.allclose(batch.pixel_values[n], (expected - 0.5) / 0.5, atol=1e-6)
    assert batch.input_ids.shape == batch.key_mask.shape == (6, 7)
    assert batch.targets.shape == (6, 3)
    assert batch.ids == ["1-0", "0-0", "1-1", "0-1", "1-2", "2-2"]
    assert batch.answers[2] == ["two", "2", "3"]
    assert batch.question_types[4] == "type 2"
    assert batch.region_mask.sum(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.regions[4].tolist() == [[0.0, 0.25, 0.25, 0.5], [0.25, 0.25, 0.5, 0.5]]
    assert batch.object_mask.sum(1).tolist() == [1, 0, 2]
    assert batch.object_boxes[0, 0].tolist() == [0.5, 0.0, 1.0, 0.5]
    assert batch.object_labels[0, 0].tolist() == [1.0, 1.0]
    assert batch.object_labels[1].sum() == 0
    assert batch.is_repeat is False
    assert processor.collate(mixed, is_repeat=True).is_repeat is True


def test_single_question_equals_batched(processor: VQAProcessor) -> None:
    rows = samples()
    batch = processor.collate(rows)
    for b, sample in enumerate(rows):
        alone = processor.collate([sample])
        length = alone.input_ids.shape[1]
        assert torch.equal(alone.pixel_values[0], batch.pixel_values[batch.image_index[b]])
        assert torch.equal(alone.input_ids[0], batch.input_ids[b, :length])
        assert int(batch.key_mask[b].sum()) == length
        assert torch.equal(alone.targets[0], batch.targets[b])


def test_regions_and_objects_are_optional() -> None:
    rows = [VQASample("a", pixels(0), "what?", ["b"]), VQASample("c", pixels(1), "what?", ["b"])]
    batch = VQAProcessor.fit(VQADataset(rows), image_size=16).collate(rows)
    assert batch.regions.shape == (2, 0, 4)
    assert batch.object_boxes.shape == (2, 0, 4)
    assert batch.object_labels.shape == (2, 0, 0)
    assert batch.image_index.tolist() == [0, 1]


def test_each_image_is_read_once(processor: VQAProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels(3, (20, 30))).save(path)
    rows = [VQASample(str(i), path, "what?", ["b"]) for i in range(5)]  # no image_id: grouped by path
    read = []
    original = processor.image.pixels
    monkeypatch.setattr(processor.image, "pixels", lambda *a, **k: read.append(a) or original(*a, **k))
    assert processor.collate(rows).pixel_values.shape[0] == 1
    assert len(read) == 1
    rows = [VQASample(str(i), tmp_path / name, "what?", image_id="1") for i, name in enumerate(("a.png", "b.png"))]
    bad_data("question 1: expected one image with the image_id '1'", processor.collate, rows)


def test_augmented_batch(processor: VQAProcessor) -> None:
    pytest.importorskip("torchvision")
    rows, augment = samples(), ImageAugment(shift=0.1, flip=True)
    seeds = [index // 3 for index in range(len(rows))]
    batch = processor.collate(rows, augment=augment, seeds=seeds)
    assert same(batch, processor.collate(rows, augment=augment, seeds=seeds))
    assert not same(batch, processor.collate(rows, augment=augment, seeds=[seed + 9 for seed in seeds]))
    plain = processor.collate(rows)
    assert not torch.equal(batch.pixel_values, plain.pixel_values)
    for b, sample in enumerate(rows):
        _, window = augment(sample.image, seeds[b])
        for box, moved in zip(sample.regions, batch.regions[b][batch.region_mask[b]].tolist(), strict=True):
            left, right = sorted((x - window[0]) / (window[2] - window[0]) for x in (box[0], box[2]))
            assert moved[0] == pytest.approx(max(left, 0), abs=1e-6)
            assert moved[2] == pytest.approx(min(right, 1), abs=1e-6)
    refused("needs seeds", processor.collate, rows, augment=augment)


def test_to_and_pin(processor: VQAProcessor) -> None:
    batch = processor.collate(samples())
    moved = batch.to("meta")
    assert moved.pixel_values.device.type == moved.object_labels.device.type == "meta"
    assert moved.ids == batch.ids
    assert batch.pixel_values.device.type == "cpu"
    assert same(batch.to("cpu", non_blocking=True), batch)


def test_invalid_image_is_reported_from_a_worker(processor: VQAProcessor, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    data = VQADataset([VQASample("q 9", path, "what?", ["yes"])])
    for workers in (0, 1):
        loader = make_loader(data, EvalBatchSampler(data.groups, 1), processor.collate, workers)
        error = bad_data(r"expected an image \(PNG, JPEG, .*\), found", list, loader)
        assert error.startswith(f"question q 9: image {path}: expected an image")
        assert "\n" not in error


# Data set


def test_in_memory_samples_are_validated() -> None:
    good = samples(1, 1)[0]
    for change, message in (
        ({"image": None}, r"^sample 1 \(id 'x'\): expected an image, found none"),
        ({"objects": [((0.5, 0.5, 0.5, 0.9), ("a",))]}, "x1 < x2"),
        ({"phrases": [3]}, "a phrase number from 0 for each of the 0 regions"),
    ):
        bad_data(message, VQADataset, [good, dataclasses.replace(good, id="x", **change)])


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_preload_gives_the_same_batches(resize: str, tmp_path: Path) -> None:
    rows = samples(3, 3, size=(20, 30))
    for sample in rows:
        path = tmp_path / f"{sample.image_id}.png"
        Image.fromarray(sample.image).save(path)
        sample.image = str(path)
    data = VQADataset(rows)
    processor = VQAProcessor.fit(data, image_size=12, resize=resize)
    expected = processor.collate(list(data))
    assert not data.preload(processor.image, max_bytes=12 * 12 * 3 * 3 - 1)
    assert data.preload(processor.image)
    for sample in rows:
        Path(sample.image).unlink(missing_ok=True)
    actual = processor.collate(list(data))
    assert torch.allclose(actual.regions, expected.regions)
    assert torch.allclose(actual.object_boxes, expected.object_boxes)
    assert same(dataclasses.replace(actual, regions=expected.regions, object_boxes=expected.object_boxes), expected)


def test_data_fingerprint(tmp_path: Path) -> None:
    base = VQADataset(samples()).fingerprint()
    assert base == VQADataset(samples()).fingerprint()
    for change in ({"question": "other?"}, {"answers": ["other"]}, {"image": pixels(99)}, {"regions": []}):
        rows = samples()
        rows[-1] = dataclasses.replace(rows[-1], **change)
        if "image" in change:
            rows[-1].image_id = "new"
        assert VQADataset(rows).fingerprint() != base


@pytest.mark.parametrize(("name", "train", "val"), [("easy_vqa", 33_815, 4_760), ("daquar", 5_957, 838)])
def test_real_data(name: str, train: int, val: int, real_data: Path) -> None:
    folder = measured_on(real_data, name)
    data = {split: VQADataset(folder / f"questions_{split}.json") for split in ("train", "val")}
    assert (len(data["train"]), len(data["val"])) == (train, val)
    processor = VQAProcessor.fit(data["train"])
    assert processor.coverage(data["train"]).share == 1.0
    assert processor.coverage(data["val"]).share > 0.9
    batch = processor.collate([data["val"][i] for i in range(50)])
    assert batch.pixel_values.shape[1:] == (3, 64, 64)
    assert batch.targets.max() == 1
