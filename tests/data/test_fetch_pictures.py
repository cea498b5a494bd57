"""The public picture sets against a server on loopback: converted as documented, or one clear error."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.tasks.classification.data import ClassificationDataset
from mmattn.tasks.segmentation.data import SegmentationDataset
from scripts.fetch.archive import FetchError, fetch, sources, validation
from scripts.fetch.images import masks_digest, tar_digest
from tests.conftest import refused
from tests.data.fetching import get, measured_on, nothing_left, png, run

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(seed, (32, 32)))).save(stream, "JPEG")
    return stream.getvalue()


def test_cifar10(tmp_path: Path) -> None:
    val = {name: set(numbers) for name, numbers in validation("cifar10").items()}
    assert list(val) == CLASSES
    assert all(len(numbers) == 500 and min(numbers) >= 0 and max(numbers) < 5000 for numbers in val.values())
    chosen = {name: [min(numbers), min(set(range(5000)) - numbers)] for name, numbers in val.items()}
    files = {f"train/{c}/{n:04d}.jpg": jpeg(n) for c, numbers in chosen.items() for n in numbers}
    files |= {f"test/{c}/0007.jpg": jpeg(7) for c in CLASSES} | {"README.md": b"no", "get_pic.sh": b"no"}
    folder = get("cifar10", files, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "SOURCE.json", "classes.txt", "test.tar", "train.tar", "val.tar"
    ]  # fmt: skip
    assert (folder / "classes.txt").read_text().split() == CLASSES
    for part, place in (("val", 0), ("train", 1)):
        samples = ClassificationDataset(folder / f"{part}.tar").samples
        assert {s.id for s in samples} == {f"{c}/{numbers[place]:04d}.jpg" for c, numbers in chosen.items()}
        for sample in samples:
            assert sample.image.read() == files[f"train/{sample.id}"]
        assert [s.labels[0] for s in samples] != sorted(s.labels[0] for s in samples), "classes are mixed"
    refused(
        r"cifar10: expected one of the classes airplane.*, found train/fish/1\.jpg",
        get,
        "cifar10",
        {"train/fish/1.jpg": b"-"},
        tmp_path / "wrong",
        error=FetchError,
    )
    with pytest.raises(FetchError, match="cifar10: the archive has no pictures of test"):
        get("cifar10", {name: content for name, content in files.items() if "test" not in name}, tmp_path / "wrong")
    assert nothing_left(tmp_path / "wrong")


def mask(value: int, size: tuple[int, int] = (480, 360), **options: int) -> bytes:
    stream = io.BytesIO()
    numbers = np.full((size[1], size[0]), value, np.uint8)
    numbers[:5] = 11
    Image.fromarray(numbers).save(stream, "PNG", **options)
    return stream.getvalue()


CAMVID = {f"CamVid/{part}/{n}_x.png": png(n, (480, 360)) for part in ("train", "val", "test") for n in (1, 2)}
CAMVID |= {f"CamVid/{part}annot/{n}_x.png": mask(n) for part in ("train", "val", "test") for n in (1, 2)}


def test_camvid(tmp_path: Path) -> None:
    folder = get("camvid", {**CAMVID, "CamVid/train.txt": b"no", "Models/a.png": b"no"}, tmp_path)
    for part in ("train", "val", "test"):
        dataset = SegmentationDataset(folder / part)
        assert [s.id for s in dataset.samples] == ["1_x", "2_x"]
        assert dataset.classes is not None
        assert dataset.classes.names[:2] == ("Sky", "Building")
        assert dataset.classes.void == (11,)
        numbers = np.asarray(Image.open(folder / part / "masks" / "2_x.png"))
        assert np.array_equal(numbers, np.asarray(Image.open(io.BytesIO(mask(2)))))
        with Image.open(folder / part / "images" / "1_x.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (480, 360))
    before = masks_digest(folder / "val" / "masks")
    (folder / "val" / "masks" / "1_x.png").write_bytes(mask(1, compress_level=0))
    assert masks_digest(folder / "val" / "masks") == before
    (folder / "val" / "masks" / "1_x.png").write_bytes(mask(3))
    assert masks_digest(folder / "val" / "masks") != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("valannot/1_x.png", mask(12), r"valannot/1_x\.png: mask: expected numbers up to 11, found 12"),
        ("valannot/1_x.png", mask(1, (48, 36)), r"expected 480 x 360 pixels, found \(48, 36\)"),
        ("val/1_x.png", mask(1)[:200], r"val/1_x\.png: image .*truncated or damaged"),
        ("val/3_x.png", png(3, (480, 360)), r"expected as many masks as images of val, found 2, 3"),
    ],
)
def test_camvid_that_is_not_as_expected(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    refused(message, get, "camvid", CAMVID | {f"CamVid/{name}": content}, tmp_path, error=FetchError)
    assert nothing_left(tmp_path)


def test_a_damaged_tar_in_the_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train.tar").write_bytes(b"no tar")
    with pytest.raises(FetchError, match=r"exists and is not cifar10 .*damaged"):
        fetch(sources()["cifar10"], tmp_path, "http://127.0.0.1:9")


def test_what_is_checked_is_said() -> None:
    listed = run("--list").stdout
    assert "checked: classes.txt, train.tar, val.tar" in listed
    assert "checked: classes.txt, train/images/, train/masks/, val/images/, val/masks/" in listed
    assert "masks by their names, sizes and numbers" in " ".join(run("--help").stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "camvid"])
def test_the_splits_that_everyone_gets(name: str, real_data: Path, tmp_path: Path) -> None:
    """The source is rebuilt from the data of the measurements; converting it must give that data."""
    given, files = measured_on(real_data, name), {}
    if name == "cifar10":
        files["test/cat/0000.jpg"] = b"-"
        for part in ("train", "val"):
            with tarfile.open(given / f"{part}.tar") as tar:
                files |= {f"train/{m.name}": tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    else:
        tiny = png(0, (480, 360))
        files |= {"CamVid/test/a.png": tiny, "CamVid/testannot/a.png": mask(1)}
        for part in ("train", "val"):
            for path in (given / part / "masks").iterdir():
                files[f"CamVid/{part}annot/{path.name}"] = path.read_bytes()
                files[f"CamVid/{part}/{path.name}"] = tiny
    folder = get(name, files, tmp_path, checked=True)
    assert (folder / "classes.txt").read_bytes() == (given / "classes.txt").read_bytes()
    if name == "cifar10":
        assert tar_digest(folder / "val.tar") == tar_digest(given / "val.tar")
    assert fetch(sources()[name], real_data, "http://127.0.0.1:9") == given  # recognised where it lies
