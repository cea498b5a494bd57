"""Annotated images of VOC's and YOLO's formats, right and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.data import DetectionDataset
from tests.data.detection import boxes, image
from tests.data.files import bad_data, write

pytest.importorskip("PIL")


# VOC ------------------------------------------------------------------------------------------------------------------


def thing(name: str = "cat", corners: tuple[Any, ...] = (1, 2, 4, 6), difficult: int = 0) -> str:
    sides = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def xml(*things: str, name: str = "1.png", width: int = 40, source: str = "Unknown") -> str:
    size = f"<size><width>{width}</width><height>30</height></size>"
    head = f"<filename>{name}</filename><source><database>{source}</database></source>{size}"
    return f"<?xml version='1.0'?><annotation>{head}{''.join(things)}</annotation>"


def voc(root: Path, *contents: str) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n, content in enumerate(contents, start=1):
        image(root / "JPEGImages" / f"{n}.png")
        write(root / "Annotations" / f"{n}.xml", content)
    return root


def test_voc(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(thing(), thing("dog", (0, 0, 10, 10), 1)), xml(name="2.png"))
    dataset = DetectionDataset(root)
    assert boxes(dataset) == [[[1, 2, 4, 6], [0, 0, 10, 10]], []]
    assert [(sample.id, sample.labels) for sample in dataset.samples] == [("1", ["cat", "dog"]), ("2", [])]
    assert dataset[0].ignored.tolist() == [False, True], "difficult objects are ignored"
    assert dataset.classes is None
    names = write(root / "ImageSets" / "Main" / "train.txt", "1\n\n")
    assert [sample.id for sample in DetectionDataset(names).samples] == ["1"]
    write(names, "1  1\n2 -1\n3\n")
    bad_data(r"train\.txt, line 3: expected the annotations .*3\.xml, found no such file", DetectionDataset, names)
    assert len(DetectionDataset(names, on_error="skip")) == 1
    assert len(DetectionDataset(root / "Annotations" / "1.xml")) == 1


def test_pixels_of_the_challenges_count_from_one(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(thing(corners=(1, 1, 40, 30)), source="The VOC2007 Database"))
    assert boxes(DetectionDataset(root)) == [[[0, 0, 40, 30]]]


def test_xml_beside_images(tmp_path: Path) -> None:
    for folder in "ab":
        image(tmp_path / folder / "1.png")
        write(tmp_path / folder / "1.xml", xml(thing(), name="old/name.jpg"))
    dataset = DetectionDataset(tmp_path)
    assert [sample.id for sample in dataset.samples] == ["a/1", "b/1"]
    assert [sample.image for sample in dataset.samples] == [tmp_path / folder / "1.png" for folder in "ab"]


BAD_VOC: dict[str, tuple[str, str]] = {
    "swapped": (xml(thing(corners=(9, 2, 4, 6))), r"1\.xml, object 1 \(cat\): .* corner comes first, found .* swapped"),
    "zero": (xml(thing(corners=(4, 2, 4, 6))), r"object 1 \(cat\): .* an area, found .* a width or height of zero"),
    "negative": (xml(thing(corners=(4, 6, 1, 2))), r"object 1 \(cat\): .* corner comes first, found .* negative size"),
    "nan": (
        xml(thing(corners=(1, 2, "nan", 6))),
        r"object 1 \(cat\): .* finite numbers, found \[1\.0, 2\.0, nan, 6\.0\]",
    ),
    "normalized": (xml(thing(corners=(0.1, 0.1, 0.4, 0.6))), "looks normalized"),
    "outside": (xml(thing(corners=(41, 2, 44, 6))), "lies outside"),
    "text": (xml(thing(corners=("a", 2, 4, 6))), "a <bndbox> with the numbers xmin, ymin, xmax, ymax, found"),
    "no name": (xml(thing(" ")), r"1\.xml, object 1: expected an object with a <name>, found none"),
}
BAD_XML: dict[str, tuple[str, str]] = {
    "broken": (xml(thing())[:-9], r"1\.xml: expected XML, found"),
    "entity": ("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation>&a;</annotation>", "without entities of its own"),
    "other": ("<svg/>", r"1\.xml: expected VOC's XML, an element <annotation>, found <svg>"),
    "size": (xml(thing(), width=30), r"1\.xml: .* annotated size, 30 x 30, found 40 x 30 of .*1\.png"),
}


@pytest.mark.parametrize(("content", "message"), [*BAD_VOC.values(), *BAD_XML.values()], ids=[*BAD_VOC, *BAD_XML])
def test_bad_voc(content: str, message: str, tmp_path: Path) -> None:
    root = voc(tmp_path, content, xml(thing(), name="2.png"))
    assert "1.xml" in bad_data(message, DetectionDataset, root)
    dataset = DetectionDataset(root, on_error="skip")
    assert len(dataset) == (1 if content in [bad for bad, _ in BAD_XML.values()] else 2)
    assert len(dataset.skipped) == 1


def test_voc_without_images(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(thing()), xml(thing(), name="2.png"))
    (root / "JPEGImages" / "1.png").unlink()
    bad_data(r"1\.xml: expected its image 1\.png in .*, found no such file", DetectionDataset, root)
    write(root / "Annotations" / "1.xml", xml(thing(), name="2.png"))
    bad_data(r"2\.xml: expected an image of its own, found .*2\.png, which .*1\.xml has", DetectionDataset, root)
    image(root / "JPEGImages" / "1.png")
    write(root / "Annotations" / "1.xml", xml(thing()))
    image(root / "images" / "1.png")
    bad_data(r"1\.xml: expected one image of that name, found .*; --data\.root", DetectionDataset, root)
    dataset = DetectionDataset(root, on_error="skip")
    assert ([sample.id for sample in dataset.samples], len(dataset.skipped)) == (["2"], 1)
    assert len(DetectionDataset(root, root=root / "JPEGImages")) == 2
    (tmp_path / "empty").mkdir()
    bad_data("found a folder with nothing", DetectionDataset, tmp_path / "empty")


def test_voc_without_boxes(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(), xml(thing(difficult=1), name="2.png"))
    bad_data("expected at least one box, found none in 2 images", DetectionDataset, root)
    write(root / "Annotations" / "1.xml", xml(thing(corners=(9, 2, 4, 6))))
    bad_data(r"at least one box, found none in 2 images \(1 bad items", DetectionDataset, root, on_error="skip")
    names = write(root / "ImageSets" / "Main" / "train.txt", "\n")
    bad_data(r"train\.txt.*: expected at least one image, found none", DetectionDataset, names)


def test_real_voc(real_data: Path) -> None:
    folder = real_data / "bccd" / "voc"
    if not folder.is_dir():
        pytest.skip("bccd is not in MMATTN_DATA")
    dataset = DetectionDataset(folder, on_error="skip")
    assert len(dataset) == 292
    assert len(dataset.skipped) == 2, "boxes without area, as its README says"


# YOLO -----------------------------------------------------------------------------------------------------------------


def yolo(root: Path, *lines: str, names: Any = ("cat", "dog"), **more: Any) -> Path:
    """A split of one image with these lines, and one without a file of labels."""
    for split in ("train", "val"):
        for n in (1, 2):
            image(root / "images" / split / f"{n}.png")
        (root / "labels" / split).mkdir(parents=True)
    write(root / "labels" / "train" / "1.txt", "\n".join(lines))
    write(root / "labels" / "val" / "2.txt", "1 0.5 0.5 1 1\n")
    names = list(names) if isinstance(names, tuple) else names
    settings = {"train": "images/train", "val": "images/val", "names": names, **more}
    return write(root / "data.yaml", json.dumps(settings))


def test_yolo(tmp_path: Path) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.25 0.2", "1 0.1 0.1 0.3 0.1 0.3 0.4")
    for source in (path, tmp_path):
        dataset = DetectionDataset(source)
        assert np.allclose(boxes(dataset)[0], [[15, 12, 25, 18], [4, 3, 12, 12]])
        assert [(sample.id, sample.labels) for sample in dataset.samples] == [("1.png", ["cat", "dog"]), ("2.png", [])]
        assert dataset.classes == Categories(("cat", "dog"), (0, 1))
    val = DetectionDataset(path, "val")
    assert [sample.labels for sample in val.samples] == [[], ["dog"]]
    bad_data(r"data\.yaml: expected the key test, found the keys train, val, names", DetectionDataset, path, "test")


def test_classes_by_number_and_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = yolo(tmp_path, "4 0.5 0.5 1.0001 1", names={4: "cat", 2: "dog"}, train=["../images/train", "all.txt"])
    write(path, path.read_text().replace('"4"', "4").replace('"2"', "2"))
    write(tmp_path / "all.txt", "./images/val/2.png\n")
    write(tmp_path / "labels" / "val" / "2.txt", "2 0.5 0.5 1 1\n")
    dataset = DetectionDataset(path)
    assert dataset.classes == Categories(("dog", "cat"), (2, 4))
    assert [sample.id for sample in dataset.samples] == ["images/train/1.png", "images/train/2.png", "images/val/2.png"]
    assert "clipped" not in caplog.text, "values that exceed 1 by rounding"


def test_folder_of_a_split(tmp_path: Path) -> None:
    yolo(tmp_path / "all", "0 0.5 0.5 0.25 0.2")
    for part in ("images", "labels"):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / part / "train").rename(tmp_path / "set" / "train" / part)
    write(tmp_path / "set" / "data.yaml", "names: [cat]\ntrain: ../train/images\n")
    assert len(DetectionDataset(tmp_path / "set" / "data.yaml")) == 2
    (tmp_path / "set" / "data.yaml").rename(tmp_path / "set" / "data.YAML")
    assert len(DetectionDataset(tmp_path / "set")) == 2
    assert len(DetectionDataset(tmp_path / "set" / "train")) == 2


BAD_YOLO: dict[str, tuple[str, str]] = {
    "pixels": ("0 15 12 10 6", r"1\.txt, line 2: expected values in 0\.\.1 .*, found '0 15 12 10 6'; pixels must be"),
    "zero": ("0 0.5 0.5 0 0.2", "line 2: expected a width and height above zero"),
    "negative": ("0 0.5 0.5 0.1 -0.2", "line 2: expected a width and height above zero, found '0 0.5 0.5 0.1 -0.2'"),
    "nan": ("0 0.5 nan 0.1 0.2", "line 2: expected finite numbers, found '0 0.5 nan"),
    "class": ("2 0.5 0.5 0.1 0.2", r"line 2: expected a class with a name in .*data\.yaml, one of \[0, 1\], found 2"),
    "words": ("cat 0.5 0.5 0.1 0.2", "line 2: expected numbers: a class and"),
    "few": ("0 0.5 0.5 0.1", "line 2: expected a class and x, y, width, height, or a polygon"),
}


@pytest.mark.parametrize(("line", "message"), BAD_YOLO.values(), ids=BAD_YOLO)
def test_bad_yolo(line: str, message: str, tmp_path: Path) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.25 0.2", line)
    assert "1.txt" in bad_data(message, DetectionDataset, path)
    dataset = DetectionDataset(path, on_error="skip")
    assert [len(sample.labels) for sample in dataset.samples] == [1, 0]
    assert len(dataset.skipped) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": []}, r"data\.yaml: expected names, a list of classes"),
        ({"names": ["a", "a"]}, "expected names that differ"),
        ({"names": [True]}, "expected names, a list of classes or a mapping"),
        ({"train": "none"}, r"data\.yaml, train: expected the images none in .*--data\.root"),
        ({"train": 3}, r"data\.yaml, train: expected paths"),
        ({"train": "images/train/1.png"}, "train: expected a folder of images"),
    ],
)
def test_bad_yaml(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    bad_data(message, DetectionDataset, yolo(tmp_path, "0 0.5 0.5 0.25 0.2", **change))


def test_yaml_and_labels_without_images(tmp_path: Path) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.25 0.2")
    write(tmp_path / "labels" / "train" / "9.txt", "0 0.5 0.5 0.25 0.2\n")
    bad_data(r"9\.txt: expected an image of that name in .*train, found none", DetectionDataset, path)
    bad_data(r"data\.yaml: expected YAML, found", DetectionDataset, write(path, "{names: ["))
    bad_data("expected a data.yaml with names", DetectionDataset, write(path, "- 3"))
    write(path, "names: [cat]\ntrain: labels\n")
    bad_data("expected at least one image, found none", DetectionDataset, path)
    path.unlink()
    bad_data("expected a data.yaml with the names of the classes in it or above", DetectionDataset, tmp_path)


def test_yolo_without_boxes(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    bad_data("expected at least one box, found none in 2 images", DetectionDataset, path)
    write(tmp_path / "labels" / "train" / "1.txt", "0 0.5 0.5 0 1\n")
    bad_data(r"at least one box, found none in 2 images \(1 bad items", DetectionDataset, path, on_error="skip")


def test_one_name_in_two_folders(tmp_path: Path) -> None:
    """Images of one name in two folders are two images; two of one name in one folder would share their labels."""
    path = yolo(tmp_path, "0 0.5 0.5 0.25 0.2", train=["images/train", "images/val"])
    dataset = DetectionDataset(path)
    assert [sample.id for sample in dataset.samples] == [
        f"images/{part}/{n}.png" for part in ("train", "val") for n in (1, 2)
    ]
    assert [len(sample.labels) for sample in dataset.samples] == [1, 0, 0, 1]
    image(tmp_path / "images" / "train" / "1.jpg")
    message = r"1\.png: expected labels of its own, found .*1\.txt, which .*1\.jpg has already"
    bad_data(message, DetectionDataset, path)
    dataset = DetectionDataset(path, on_error="skip")
    assert (len(dataset), len(dataset.skipped)) == (4, 1)
