"""The public detection sets from a server on loopback: converted as documented, or one error and no files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmattn.tasks.detection.data import DetectionDataset
from scripts.fetch.archive import digest, fetch, sources, validation
from tests.data.fetching import NOWHERE, get, measured_on, not_got, png

Box = tuple[float, ...]  # xyxy in pixels


def xml(*objects: tuple[str, Box]) -> bytes:
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    return f"<annotation><filename>other.jpg</filename>{things}</annotation>".encode()


def bccd_files(parts: dict[str, list[str]], objects: dict[str, list[tuple[str, Box]]]) -> dict[str, bytes]:
    files = {f"BCCD/ImageSets/Main/{part}.txt": "\n".join(names).encode() for part, names in parts.items()}
    for name, found in objects.items():
        files[f"BCCD/JPEGImages/{name}.jpg"] = png(len(files), (40, 30), "JPEG")
        files[f"BCCD/Annotations/{name}.xml"] = xml(*found)
    return files | {"BCCD/ImageSets/Main/trainval.txt": b"no", "test.csv": b"no"}


CELLS = {
    "B_1": [("RBC", (1, 2, 11, 12)), ("Platelets", (30, 20, 50, 31)), ("RBC", (5, 5, 5, 9))],
    "B_2": [("WBC", (0, 0, 9, 9))],
    "B_3": [("RBC", (1, 1, 2, 2))],
    "B_4": [],
    "B_5": [("RBC", (1, 1, 2, 2))],
}
BCCD = bccd_files({"train": ["B_4", "B_1"], "val": ["B_2"], "test": ["B_3"]}, CELLS)


def test_bccd(tmp_path: Path) -> None:
    folder = get("bccd", BCCD, tmp_path)
    train, val, test = (DetectionDataset(folder / f"annotations/instances_{p}.json") for p in ("train", "val", "test"))
    assert [Path(sample.image).name for sample in train.samples] == ["B_1.jpg", "B_4.jpg"]
    assert train[0].labels == ["RBC", "Platelets"]
    assert train[0].boxes_xyxy.tolist() == [[1, 2, 11, 12], [30, 20, 40, 30]], "cut, and none without an area"
    assert [(sample.image, sample.labels) for sample in val.samples] == [(folder / "images" / "B_2.jpg", ["WBC"])]
    assert [sample.image for sample in test.samples] == [folder / "test" / "B_3.jpg"]
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["B_1.jpg", "B_2.jpg", "B_4.jpg"]
    assert (folder / "images" / "B_1.jpg").read_bytes() == BCCD["BCCD/JPEGImages/B_1.jpg"]
    assert (folder / "voc" / "B_1.xml").read_bytes() == BCCD["BCCD/Annotations/B_1.xml"]
    assert len(DetectionDataset(folder / "voc", root=folder / "images", on_error="skip")) == 3


def fruits_files() -> dict[str, bytes]:
    held = validation("fruits")
    files = {}
    for part, name in (("train", "apple_11"), ("train", Path(held[0]).stem), ("test", "apple_77")):
        files[f"{part}/{name}.jpg"] = png(1, (652, 436), "JPEG")
        files[f"{part}/{name}.xml"] = xml(("apple", (213, 33, 459, 258)))
    files["train/banana_1.jpg"] = png(2, (200, 100), "JPEG")
    files["train/banana_1.xml"] = xml(("orange", (10, 20, 30, 41)))
    return files | {"README.txt": b"no", "fruit_recognition.py": b"no"}


def test_fruits(tmp_path: Path) -> None:
    folder = get("fruits", fruits_files(), tmp_path)
    parts = {p: json.loads((folder / f"annotations/instances_{p}.json").read_text()) for p in ("train", "val", "test")}
    names = {part: [image["file_name"] for image in content["images"]] for part, content in parts.items()}
    held = validation("fruits")[0]
    assert names == {"train": ["apple_11.jpg", "banana_1.jpg"], "val": [held], "test": ["apple_77.jpg"]}
    first, second = parts["train"]["annotations"]
    assert first["bbox"] == [125.45, 19.45, 144.88, 132.63], "as in the data of the measurements"
    assert (second["bbox"], second["category_id"], second["area"]) == ([10, 20, 20, 21], 3, 420)
    with Image.open(folder / "images" / "apple_11.jpg") as image:
        assert image.size == (384, 257)
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        assert len(DetectionDataset(folder / f"annotations/instances_{part}.json")) == count


def without(part: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if part not in name}


TWICE = {"BCCD/ImageSets/Main/val.txt": b"B_1"}


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("bccd", without("val.txt", BCCD), r"0 files that match BCCD/ImageSets/Main/val\\\.txt"),
        ("bccd", without("Annotations/B_2", BCCD), "an image and its annotations of each name, found one of them: B_2"),
        ("bccd", without("JPEGImages/B_3", BCCD), "an image and its annotations of each name, found one of them: B_3"),
        ("bccd", BCCD | TWICE, "bccd: B_1 is in the lists of train and val"),
        ("bccd", BCCD | {"BCCD/Annotations/B_1.xml": b"text"}, r"B_1\.xml is no annotation of VOC"),
        ("bccd", BCCD | {"BCCD/Annotations/B_1.xml": xml(("x", (1, 1, 9, 9)))}, "B_1.jpg: expected one of RBC, .*'x'"),
        ("bccd", BCCD | {"BCCD/JPEGImages/B_1.jpg": b"text"}, r"JPEGImages/B_1\.jpg: .*expected an image"),
        ("fruits", without("test/", fruits_files()), "fruits: the archive has no images of test"),
        ("fruits", without("banana_1.xml", fruits_files()), "found one of them: train/banana_1"),
        ("fruits", fruits_files() | {"train/apple_11.jpg": b"text"}, r"train/apple_11\.jpg: .*expected an image"),
    ],
)
def test_unexpected_content(name: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    not_got(message, name, files, tmp_path / "out")


def test_changed_content_raises(tmp_path: Path) -> None:
    not_got(r"instances_train\.json has sha256", "bccd", BCCD, tmp_path / "out", checked=True)


# The data of the measurements: sources are rebuilt from them, and converting these must reproduce the data


def stated(given: Path, part: str) -> dict[str, list[tuple[str, Box]]]:
    """The objects of each image."""
    content = json.loads((given / f"annotations/instances_{part}.json").read_text())
    classes = {entry["id"]: entry["name"] for entry in content["categories"]}
    names = {entry["id"]: Path(entry["file_name"]).stem for entry in content["images"]}
    found: dict[str, list[tuple[str, Box]]] = {name: [] for name in names.values()}
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        found[names[row["image_id"]]].append((classes[row["category_id"]], (x, y, x + width, y + height)))
    return found


def bccd(given: Path) -> dict[str, bytes]:
    parts = {part: list(stated(given, part)) for part in ("train", "val")}
    files = bccd_files({**parts, "test": ["held"]}, {"held": []})
    files |= {f"BCCD/JPEGImages/{path.name}": path.read_bytes() for path in (given / "images").iterdir()}
    return files | {f"BCCD/Annotations/{path.name}": path.read_bytes() for path in (given / "voc").iterdir()}


def fruits(given: Path) -> dict[str, bytes]:
    """With the images as they are after scaling: what they were before is not in the data."""
    files = {"test/held.jpg": png(0, kind="JPEG"), "test/held.xml": xml()}
    for part in ("train", "val"):
        for name, objects in stated(given, part).items():
            files[f"train/{name}.jpg"] = (given / "images" / f"{name}.jpg").read_bytes()
            files[f"train/{name}.xml"] = xml(*objects)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", [bccd, fruits])
def test_splits_are_reproducible(rebuild: Callable[[Path], dict[str, bytes]], real_data: Path, tmp_path: Path) -> None:
    name = rebuild.__name__
    given = measured_on(real_data, name)
    get(name, rebuild(given), tmp_path, checked=True)
    assert fetch(sources()[name], real_data, NOWHERE) == given  # recognized in place


@pytest.mark.parametrize("name", ["bccd", "fruits"])
def test_checksums_match_the_table(name: str, real_data: Path) -> None:
    given = measured_on(real_data, name)
    for file, expected in sources()[name].sha256.items():
        assert digest(given / file) == expected
