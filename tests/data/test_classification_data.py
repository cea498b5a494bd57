"""Labelled pictures from every format, the errors of bad ones, the processor, and batches."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.data.image.augment import BatchAugment
from mmattn.data.image.files import TarImage
from mmattn.data.image.processor import ImageProcessor
from mmattn.tasks.classification.data import (
    ClassificationDataset,
    ClassificationProcessor,
    ClassificationSample,
    collate,
)


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((12, 10, 3), value, np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of three pictures, one of them deeper down."""
    for number, name in enumerate(["cat/a.png", "cat/b.jpg", "cat/deep/c.png", "dog/a.png", "dog/b.bmp", "dog/e.PNG"]):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(10 * number).save(path)
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("not a picture")
    return tmp_path / "tree"


def read(source: object, **options: object) -> list[tuple[str, list[str]]]:
    return [(sample.id, sample.labels) for sample in ClassificationDataset(source, **options).samples]


EXPECTED = [("cat/a.png", ["cat"]), ("cat/b.jpg", ["cat"]), ("cat/deep/c.png", ["cat"])]
EXPECTED += [("dog/a.png", ["dog"]), ("dog/b.bmp", ["dog"]), ("dog/e.PNG", ["dog"])]


def test_a_tree_of_class_folders(tree: Path) -> None:
    assert read(tree) == EXPECTED


@pytest.mark.parametrize("outer", ["", "set/", "./"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_of_a_tree(tree: Path, tmp_path: Path, outer: str, mode: str) -> None:
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        for path in sorted(tree.rglob("*.*")):
            archive.add(path, f"{outer}{path.relative_to(tree)}")
    dataset = ClassificationDataset(tmp_path / "set.tar")
    assert sorted((s.id, s.labels) for s in dataset.samples) == EXPECTED
    assert isinstance(dataset.samples[0].image, TarImage if mode == "w" else bytes)
    assert dataset.preload(ImageProcessor((12, 10)))
    values = {sample.id: int(sample.image[5, 5, 0]) for sample in dataset.samples}
    assert values["dog/a.png"] == 30


def test_a_truncated_tar_is_named(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tree, "tree")
    whole = (tmp_path / "set.tar").read_bytes()
    (tmp_path / "set.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"set\.tar.*expected a whole tar"):
        ClassificationDataset(tmp_path / "set.tar")


def test_a_table(tree: Path) -> None:
    (tree / "all.csv").write_text("path,label\ncat/a.png,cat\ndog/a.png,dog\n")
    assert [labels for _, labels in read(tree / "all.csv")] == [["cat"], ["dog"]]
    (tree / "all.csv").write_text("image,labels\ncat/a.png,furry|small\ndog/a.png,\n")
    assert [labels for _, labels in read(tree / "all.csv", multi_label=True)] == [["furry", "small"], []]
    (tree / "all.jsonl").write_text('{"path": "cat/a.png", "label": ["furry", "small"]}\n')
    assert [labels for _, labels in read(tree / "all.jsonl", multi_label=True)] == [["furry", "small"]]
    assert read(tree.parent / "tree" / "all.csv", root=tree, require_labels=False)


def test_torchvision_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.randint(0, 256, (2, 3072), np.uint8), "labels": [3, 5]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    with pytest.raises(DataError, match=r"torchvision/CIFAR10 in .*: expected its files, split train"):
        ClassificationDataset("torchvision/CIFAR10", root=tmp_path)  # its checksums are not those of the real one
    with pytest.raises(DataError, match=r"no such name \(did you mean 'CIFAR10'\?\)"):
        ClassificationDataset("torchvision/CIFAR11", root=tmp_path)
    with pytest.raises(DataError, match=r"data\.root"):
        ClassificationDataset("torchvision/CIFAR10")
    fake = read("torchvision/FakeData", root=tmp_path)
    assert fake[0][0] == "train-0"


def test_a_torchvision_set_with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no validation part the test part stands in; a set that is not there is named."""
    from torchvision import datasets

    class Flowers102(list):
        classes = ("rose", "tulip")

        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if download or split == "val" or not Path(root).is_dir():
                raise ValueError(f"no {split} in {root}")
            super().__init__([(picture(1), 1)] * {"train": 3, "test": 2}[split])

    monkeypatch.setattr(datasets, "Flowers102", Flowers102)
    sizes = {
        split: len(read("torchvision/Flowers102", split=split, root=tmp_path)) for split in ("train", "val", "test")
    }
    assert sizes == {"train": 3, "val": 2, "test": 2}
    assert read("torchvision/Flowers102", root=tmp_path)[0] == ("train-0", ["tulip"])
    with pytest.raises(DataError, match=r"torchvision/Flowers102 in .*none: expected its files, split test"):
        read("torchvision/Flowers102", split="test", root=tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "all.csv",
            "file,class\na.png,cat\n",
            r"csv, header: expected a first line with the column names path and label, found file, class",
        ),
        ("all.csv", "path,label\ncat/a.png,\n", r"all\.csv, line 2: expected one label"),
        ("all.csv", "path,label\n,cat\n", r"line 2: expected the path of a picture"),
        ("all.csv", "path,label,id\ncat/a.png,cat,1\ndog/a.png,dog,1\n", r"line 3: expected an id of its own"),
        ("all.txt", "cat", r"all\.txt: expected a folder of class folders.*found a file that ends in '\.txt'"),
        ("none.csv", None, r"none\.csv: .*found no such file"),
        ("tree/loose.png", b"x", r"tree: expected one sub-folder a class.*loose\.png in no class folder"),
    ],
)
def test_bad_sets_are_named(tree: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tree.parent / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        ClassificationDataset(tree if name.startswith("tree") else path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found an empty folder"):
        ClassificationDataset(tmp_path)


def test_bad_pictures_are_left_out_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "cat" / "a.png").write_bytes(b"")
    (tree / "dog" / "a.png").write_bytes((tree / "dog" / "a.png").read_bytes()[:40])
    dataset = ClassificationDataset(tree, on_error="skip")
    assert len(dataset) == 4
    assert "left out 2 bad items, kept 4" in caplog.text
    whole = ClassificationDataset(tree)
    with pytest.raises(DataError, match=r"cat/a\.png.*an empty file"):
        whole.preload(ImageProcessor(8))


def test_a_class_that_training_never_saw(tree: Path) -> None:
    processor = ClassificationProcessor(ImageProcessor(8), ["cat", "dogs"])
    with pytest.raises(DataError, match=r"dog/a\.png: expected one of the 2 classes .*'dog' \(did you mean 'dogs'\?\)"):
        processor.check(ClassificationDataset(tree))
    dataset = ClassificationDataset(tree, on_error="skip")
    processor.check(dataset)
    assert len(dataset) == 3


def test_processor(tree: Path, tmp_path: Path) -> None:
    processor = ClassificationProcessor.fit(ClassificationDataset(tree), image_size=8, mean=(0.1, 0.2, 0.3))
    assert processor.labels == ["cat", "dog"]
    assert processor.sizes() == {"num_classes": 2}
    processor.save(tmp_path / "processor")
    loaded = ClassificationProcessor.load(tmp_path / "processor")
    assert loaded.config() == processor.config()
    assert loaded.fingerprint() == processor.fingerprint()
    with pytest.raises(DataError, match="classes: expected different ones, at least 2, found"):
        ClassificationProcessor(ImageProcessor(8), ["cat"])
    (tmp_path / "processor" / "processor.json").write_text('{"labels": []}')
    with pytest.raises(DataError, match=r"processor\.json: expected the keys"):
        ClassificationProcessor.load(tmp_path / "processor")


def test_batches(tree: Path) -> None:
    dataset = ClassificationDataset(tree)
    processor = ClassificationProcessor.fit(dataset, image_size=8)
    batch = collate(dataset.samples, processor)
    assert batch.pixel_values.shape == (6, 3, 8, 8)
    assert batch.pixel_values.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([processor.image(sample.image) for sample in dataset.samples])
    torch.testing.assert_close(batch.pixel_values, expected)
    assert batch.targets.tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    dataset.preload(processor.image)
    torch.testing.assert_close(collate(dataset.samples, processor).pixel_values, expected)
    assert dataset.samples[0].image.base is dataset.samples[1].image.base, "one array holds all"
    assert not dataset.preload(ImageProcessor(8), max_bytes=10)
    assert len(batch.to("cpu")) == 6
    with pytest.raises(ValueError, match="augment needs seeds"):
        collate(dataset.samples, processor, BatchAugment(flip=True))


def test_samples_in_memory_and_multi_label() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    samples = [ClassificationSample("0", image, ["a", "b"]), ClassificationSample("1", image)]
    dataset = ClassificationDataset(samples, multi_label=True)
    processor = ClassificationProcessor.fit(dataset, image_size=8, multi_label=True)
    assert processor.targets(dataset.samples).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(DataError, match=r"sample 0 .*: expected one label"):
        ClassificationDataset(samples)
    assert len(dataset.fingerprint()) == 64


def test_fingerprints_tell_sets_apart(tree: Path) -> None:
    before = ClassificationDataset(tree).fingerprint()
    assert before == ClassificationDataset(tree).fingerprint()
    (tree / "dog" / "a.png").rename(tree / "cat" / "z.png")
    assert ClassificationDataset(tree).fingerprint() != before


def test_bytes_are_read_like_files(tree: Path) -> None:
    stream = io.BytesIO()
    picture(7).save(stream, "PNG")
    processor = ClassificationProcessor(ImageProcessor(8), ["a", "b"])
    batch = collate([ClassificationSample("x", stream.getvalue(), ["a"])], processor)
    torch.testing.assert_close(batch.pixel_values, torch.full((1, 3, 8, 8), (7 / 255 - 0.5) / 0.5))
