"""Labeled images from every format, errors for invalid ones, the processor, and batches."""

from __future__ import annotations

import errno
import io
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.image.augment import BatchAugment
from mmattn.data.image.files import TarImage
from mmattn.data.image.processor import ImageProcessor
from mmattn.tasks.classification.data import ClassificationDataset, ClassificationSample
from mmattn.tasks.classification.processor import ClassificationProcessor
from tests.conftest import refused
from tests.data.files import bad_data, write


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((12, 10, 3), value, np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes with three images, one of them in a subfolder."""
    for number, name in enumerate(["cat/a.png", "cat/b.jpg", "cat/deep/c.png", "dog/a.png", "dog/b.bmp", "dog/e.PNG"]):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image(10 * number).save(path)
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "tree"


def read(source: object, **options: object) -> list[tuple[str, list[str]]]:
    return [(sample.id, sample.labels) for sample in ClassificationDataset(source, **options).samples]


EXPECTED = [("cat/a.png", ["cat"]), ("cat/b.jpg", ["cat"]), ("cat/deep/c.png", ["cat"])]
EXPECTED += [("dog/a.png", ["dog"]), ("dog/b.bmp", ["dog"]), ("dog/e.PNG", ["dog"])]


@pytest.mark.parametrize("outer", ["", "set/", "./"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_of_class_folders(tree: Path, tmp_path: Path, outer: str, mode: str) -> None:
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        for path in sorted(tree.rglob("*.*")):
            archive.add(path, f"{outer}{path.relative_to(tree)}")
    dataset = ClassificationDataset(tmp_path / "set.tar")
    assert read(tree) == sorted((s.id, s.labels) for s in dataset.samples) == EXPECTED
    image = dataset.samples[0].image
    assert isinstance(image, TarImage)
    assert (image.path == tmp_path / "set.tar") == (mode == "w")
    assert dataset.preload(ImageProcessor((12, 10)))
    assert {sample.id: int(sample.image[5, 5, 0]) for sample in dataset.samples}["dog/a.png"] == 30


def test_limits_of_compressed_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w:xz") as archive:
        for name, size in (("notes.txt", 2 << 20), ("a/a.png", 600), ("b/b.png", 400)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("MMATTN_MAX_BYTES", "999")
    bad_data("at most 999 bytes of images in a compressed tar, found more", ClassificationDataset, path)
    monkeypatch.setenv("MMATTN_MAX_BYTES", "1000")
    assert [len(sample.image.read()) for sample in ClassificationDataset(path).samples] == [600, 400]
    monkeypatch.setattr(shutil, "copyfileobj", _raising(OSError(errno.ENOSPC, "No space left on device")))
    bad_data(r"expected space for its images in .* \(TMPDIR .*\), found a full disk", ClassificationDataset, path)
    assert len(list(tmp_path.glob("mmattn-*"))) == 1, "that of the data set"


def _raising(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_tar_raises(mode: str, tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(tree, "tree")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 3], whole[:40], whole[:60] + bytes(4) + whole[64:] if mode != "w" else b"?"):
        bad_data(r"set\.tar: expected a ", ClassificationDataset, write(path, content))


def test_table(tree: Path) -> None:
    rows = "image,labels\ncat/a.png,furry|small\ndog/a.png,\n"
    for name, content, expected in (
        ("a.csv", "path,label\ncat/a.png,cat\ndog/a.png,dog\n", [["cat"], ["dog"]]),
        ("b.csv", rows, [["furry", "small"], []]),
        ("c.jsonl", '{"path": "cat/a.png", "label": ["furry", "small"]}\n', [["furry", "small"]]),
    ):
        path = write(tree.parent / name, content)
        assert [labels for _, labels in read(path, root=tree, multi_label=name != "a.csv")] == expected
    assert [labels for _, labels in read(tree.parent / "b.csv", require_labels=False)] == [["furry|small"], []]


def test_torchvision_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"")
    for name, root, message in (
        ("CIFAR10", tmp_path, "torchvision/CIFAR10 in .*: expected its files, split train"),  # wrong checksums
        ("CIFAR11", tmp_path, r"no such name \(did you mean 'CIFAR10'\?\)"),
        ("CIFAR10", None, r"data\.root"),
    ):
        bad_data(message, ClassificationDataset, f"torchvision/{name}", root=root)
    assert read("torchvision/FakeData", root=tmp_path)[0][0] == "train-0"


def test_torchvision_dataset_with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split replaces a missing validation split; a missing data set raises an error."""
    from torchvision import datasets

    class Flowers102(list):
        classes = ("rose", "tulip")

        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if download or split == "val" or not Path(root).is_dir():
                raise ValueError(f"no {split} in {root}")
            super().__init__([(image(1), 1)] * {"train": 3, "test": 2}[split])

    monkeypatch.setattr(datasets, "Flowers102", Flowers102)
    found = {split: read("torchvision/Flowers102", split=split, root=tmp_path) for split in ("train", "val", "test")}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3, "val": 2, "test": 2}
    assert found["train"][0] == ("train-0", ["tulip"])
    message, nowhere = r"torchvision/Flowers102 in .*none: expected its files, split test", tmp_path / "none"
    bad_data(message, read, "torchvision/Flowers102", split="test", root=nowhere)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("all.csv", "file,class\na.png,cat\n", r"csv, header: .* column names path and label, found file, class"),
        ("all.csv", "image,class\na.png,cat\n", r"all\.csv, header: expected the column label, found image, class$"),
        ("all.csv", "path,label\ncat/a.png,\n", r"all\.csv, line 2: expected one label"),
        ("all.jsonl", '{"path": "a.png", "class": "cat"}', r"line 1: expected the key label, found path, class$"),
        ("all.csv", "path,label\n,cat\n", r"line 2: expected the path of an image"),
        ("all.csv", "path,label,id\ncat/a.png,cat,1\ndog/a.png,dog,1\n", r"line 3: expected an id of its own"),
        ("all.txt", "cat", r"all\.txt: expected a folder of class folders.*found a file that ends in '\.txt'"),
        ("none.csv", None, r"none\.csv: .*found no such file"),
        ("tree/loose.png", "x", r"tree: expected one sub-folder a class.*loose\.png in no class folder"),
        ("empty", None, "found an empty folder"),
    ],
)
def test_invalid_datasets_raise(tree: Path, name: str, content: str | None, message: str) -> None:
    path = tree.parent / name
    (tree.parent / "empty").mkdir()
    if content is not None:
        path.write_text(content)
    source = tree if name.startswith("tree") else path
    bad_data(message, ClassificationDataset, source)
    if "header" in message:  # an error of the file, not of each row
        bad_data(message, ClassificationDataset, source, on_error="skip")


def test_invalid_images_are_skipped_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "cat" / "a.png").write_bytes(b"")
    (tree / "dog" / "a.png").write_bytes((tree / "dog" / "a.png").read_bytes()[:45])
    dataset = ClassificationDataset(tree, on_error="skip")
    assert len(dataset) == 4
    assert "excluded 2 bad items, kept 4" in caplog.text
    reasons = dict(dataset.skipped)
    assert reasons[f"{tree}/cat/a.png"] == "expected an image, found an empty file"
    assert reasons[f"{tree}/dog/a.png"].startswith("expected a whole image, found a truncated or damaged one ('")
    path = write(tree.parent / "all.csv", "path,label\ntree/cat/a.png,cat\ntree/cat/b.jpg,cat\n")
    where, reason = ClassificationDataset(path, on_error="skip").skipped[0]
    assert where == f"{path}, line 2"
    assert reason == f"image {tree}/cat/a.png: expected an image, found an empty file"
    message = rf"^image {tree}/cat/a\.png: expected an image, found an empty file$"
    bad_data(message, ClassificationDataset(tree).preload, ImageProcessor(8))


def test_class_unseen_in_training(tree: Path) -> None:
    processor = ClassificationProcessor(ImageProcessor(8), ["cat", "dogs"])
    message = r"dog/a\.png: expected one of the 2 classes .*'dog' \(did you mean 'dogs'\?\)"
    bad_data(message, processor.check, ClassificationDataset(tree))
    dataset = ClassificationDataset(tree, on_error="skip")
    processor.check(dataset)
    assert len(dataset) == 3


def test_processor(tree: Path, tmp_path: Path) -> None:
    processor = ClassificationProcessor.fit(ClassificationDataset(tree), image_size=8, mean=(0.1, 0.2, 0.3))
    assert processor.labels == ["cat", "dog"]
    assert processor.sizes() == {"num_classes": 2, "image_size": processor.image.size[0]}
    processor.save(tmp_path / "processor")
    loaded = ClassificationProcessor.load(tmp_path / "processor")
    assert (loaded.config(), loaded.fingerprint()) == (processor.config(), processor.fingerprint())
    message = "classes: expected different ones, at least 2, found"
    bad_data(message, ClassificationProcessor, ImageProcessor(8), ["cat"])


def test_batches(tree: Path) -> None:
    dataset = ClassificationDataset(tree)
    processor = ClassificationProcessor.fit(dataset, image_size=8)
    batch = processor.collate(dataset.samples)
    assert batch.pixel_values.shape == (6, 3, 8, 8)
    assert batch.pixel_values.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([processor.image(sample.image) for sample in dataset.samples])
    torch.testing.assert_close(batch.pixel_values, expected)
    assert batch.targets.tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    before = dataset.fingerprint()
    dataset.preload(processor.image)
    assert dataset.fingerprint() == before == ClassificationDataset(tree).fingerprint()
    torch.testing.assert_close(processor.collate(dataset.samples).pixel_values, expected)
    assert dataset.samples[0].image.base is dataset.samples[1].image.base, "one array holds all images"
    assert not dataset.preload(ImageProcessor(8), max_bytes=10)
    refused("augment needs seeds", processor.collate, dataset.samples, augment=BatchAugment(flip=True))
    (tree / "dog" / "a.png").rename(tree / "cat" / "z.png")
    assert ClassificationDataset(tree).fingerprint() != before


def test_in_memory_samples_and_multi_label() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    samples = [ClassificationSample("0", image, ["a", "b"]), ClassificationSample("1", image)]
    dataset = ClassificationDataset(samples, multi_label=True)
    processor = ClassificationProcessor.fit(dataset, image_size=8, multi_label=True)
    assert processor.targets(dataset.samples).tolist() == [[1, 1], [0, 0]]
    bad_data(r"sample 0 .*: expected one label", ClassificationDataset, samples)
