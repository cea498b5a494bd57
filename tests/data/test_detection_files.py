"""Annotated images from COCO's JSON, rows and samples, right and bad ones."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.boxes import Detections
from mmattn.tasks.detection.coco import results
from mmattn.tasks.detection.data import DetectionDataset, DetectionSample
from mmattn.tasks.detection.processor import DetectionProcessor
from tests.data.detection import SIZE, boxes, image
from tests.data.files import bad_data, write

Image = pytest.importorskip("PIL.Image")

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
NAN = float("nan")


def box(*bbox: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": list(bbox), **more}


def coco(*annotations: Any, **more: Any) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]} for n in (1, 2)]
    listed = [{"id": n, **one} if isinstance(one, dict) else one for n, one in enumerate(annotations, start=10)]
    return {"images": images, "categories": CATEGORIES, "annotations": listed, **more}


def save(folder: Path, content: Any, place: str = ".") -> Path:
    for n in (1, 2):
        image(folder / place / f"{n}.png")
    return write(folder / "all.json", content if isinstance(content, str | bytes) else json.dumps(content))


# COCO -----------------------------------------------------------------------------------------------------------------


def test_coco(tmp_path: Path) -> None:
    crowd = box(0, 0, 20, 10, iscrowd=1, area=50.5)
    dataset = DetectionDataset(save(tmp_path, coco(box(1, 2, 3, 4.5), box(0, 0, 10, 10, category_id=7), crowd)))
    first, second = dataset.samples
    assert boxes(dataset) == [[[1, 2, 4, 6.5], [0, 0, 10, 10], [0, 0, 20, 10]], []]
    assert (first.id, first.labels, first.image) == ("1", ["cat", "dog", "cat"], tmp_path / "1.png")
    assert first.ignored.tolist() == [False, False, True]
    assert first.areas.tolist() == [13.5, 100, 50.5]
    assert second.labels == []
    assert dataset.classes == Categories(("cat", "dog"), (3, 7)), "in order of the ids, which have gaps"
    assert dataset.label(first) == "cat|dog"
    assert dataset.facts(first) == {"boxes": 3, "class": ["cat", "dog", "cat"], "width": 40, "height": 30}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.json", "."),
        ("a.json", "images"),
        ("annotations/a.json", "."),
        ("annotations/a.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "images/val"),
    ],
)
def test_places_of_images(name: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save(tmp_path, coco(box(1, 2, 3, 4)), place).rename(path)
    assert len(DetectionDataset(path)) == 2
    assert len(DetectionDataset(path.parent)) == 2, "a folder with one JSON"


def test_root(tmp_path: Path) -> None:
    path = save(tmp_path, coco(box(1, 2, 3, 4)), "far/away")
    bad_data(r"images\[0\] \(1\.png\): expected its image 1\.png in .*, found no such file", DetectionDataset, path)
    assert len(DetectionDataset(path, root=tmp_path / "far" / "away")) == 2
    image(tmp_path / "1.png")
    assert DetectionDataset(path, root=tmp_path / "far" / "away")[0].image == tmp_path / "far" / "away" / "1.png"
    bad_data("data.root .*none: expected a folder, found nothing", DetectionDataset, path, root=tmp_path / "none")


def test_without_annotations(tmp_path: Path) -> None:
    content = {key: value for key, value in coco().items() if key == "images"}
    dataset = DetectionDataset(save(tmp_path, content), require_labels=False)
    assert [sample.boxes_xyxy for sample in dataset.samples] == [None, None]
    bad_data("expected a list 'annotations', found 'none'", DetectionDataset, tmp_path / "all.json")


def test_clipped_and_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco(box(-5, 20, 20, 20), box(1, 2, 3, 4), box(1, 2, 3, 4), box(1, 2, 3, 4, category_id=7))
    dataset = DetectionDataset(save(tmp_path, content))
    assert boxes(dataset)[0] == [[0, 20, 15, 30], [1, 2, 4, 6], [1, 2, 4, 6]]
    assert dataset[0].areas[0] == 150
    assert r"1 box clipped to their image, beyond which they reached (first: " in caplog.text
    assert "1 box dropped, which repeated another of the same class and place" in caplog.text
    assert "annotations[2] (id 12))" in caplog.text


def test_exif_turns_the_image(tmp_path: Path) -> None:
    path = save(tmp_path, coco(box(1, 2, 3, 4)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "1.png", SIZE[::-1], exif=exif)
    assert boxes(DetectionDataset(path))[0] == [[1, 2, 4, 6]], "the stated size is that of the upright image"
    image(tmp_path / "1.png", SIZE, exif=exif)
    message = r"of the annotated size, 40 x 30, found 30 x 40 of .*1\.png, turned upright by its EXIF orientation"
    bad_data(message, DetectionDataset, path)


def test_results_are_those_of_coco_tools(tmp_path: Path) -> None:
    coco_tools = pytest.importorskip("pycocotools.coco")
    path = save(tmp_path, coco(box(1, 2, 3, 4), box(5, 5, 10, 20, category_id=7), info={}))
    dataset = DetectionDataset(path)
    truth = DetectionProcessor.fit(dataset).collate(dataset.samples).truths[0]
    found = Detections(torch.tensor(truth.boxes_xyxy), torch.tensor([0.25, 0.5]), torch.tensor(truth.labels))
    assert dataset.classes is not None
    rows = results(dataset[0].id, found, dataset.classes)
    assert rows[1] == {"image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 20], "score": 0.5}
    loaded = coco_tools.COCO(str(path)).loadRes(str(write(tmp_path / "results.json", json.dumps(rows))))
    assert [loaded.anns[n]["bbox"] for n in (1, 2)] == [[1, 2, 3, 4], [5, 5, 10, 20]]
    assert results("a.png", found, dataset.classes)[0]["image_id"] == "a.png"


BAD: dict[str, tuple[Any, str]] = {
    "zero": (box(1, 2, 0, 4), r"annotations\[1\] \(id 11\): .* width and height above zero, found \[1, 2, 0, 4\]"),
    "negative": (box(5, 5, -2, 4), r"annotations\[1\].* width and height above zero, found \[5, 5, -2, 4\]"),
    "nan": (box(1, NAN, 3, 4), r"annotations\[1\].* four finite numbers, found \[1, nan, 3, 4\]"),
    "text": (box(1, 2, 3, "4"), r"annotations\[1\].* four numbers \[x, y, width, height\], found"),
    "none": ({"image_id": 1, "category_id": 3}, r"annotations\[1\].* four numbers .*, found None"),
    "normalized": (box(0.1, 0.2, 0.3, 0.4), r"in pixels of the image of 40 x 30, found .* looks normalized to 0\.\.1"),
    "outside": (box(45, 2, 3, 4), r"annotations\[1\].* within the image of 40 x 30 pixels, found .* lies outside"),
    "category": (box(1, 2, 3, 4, category_id=4), r"annotations\[1\].* a category_id with a name in .*, found 4"),
    "image": (box(1, 2, 3, 4, image_id=9), r"annotations\[1\].* the image_id of one of the images, found 9"),
    "number": (7, r"annotations\[1\]: expected an object with the image_id of one of the images, found 7"),
    "crowd": (box(1, 2, 3, 4, iscrowd="no"), r"annotations\[1\].* an iscrowd of 0 or 1, found 'no'"),
}


@pytest.mark.parametrize(("annotation", "message"), BAD.values(), ids=BAD)
def test_bad_annotations(annotation: Any, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, coco(box(1, 2, 3, 4), annotation))
    assert "all.json" in bad_data(message, DetectionDataset, path)
    dataset = DetectionDataset(path, on_error="skip")
    assert boxes(dataset) == [[[1, 2, 4, 6]], []]
    assert len(dataset.skipped) == 1
    assert "excluded 1 bad item, kept 2" in caplog.text


BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "size": ({"width": 30}, r"images\[1\] \(2\.png\): .* annotated size, 30 x 30, found 40 x 30 of .*2\.png"),
    "size text": ({"width": "40"}, "numbers for width and height, found"),
    "missing": ({"file_name": "9.png"}, r"images\[1\] \(9\.png\): expected its image 9\.png in .*, found no such file"),
    "same id": ({"id": 1}, r"images\[1\] .* an id of its own, found 1, which images\[0\] has already"),
    "same file": ({"file_name": "1.png"}, r"an image of its own, found .*1\.png, which .*images\[0\] \(1\.png\) has"),
    "no name": ({"file_name": None}, "an image with an 'id' and a 'file_name', found"),
    "text": ({"file_name": "all.json"}, "all.json: expected an image .*, found a file that starts with"),
}


@pytest.mark.parametrize(("change", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = coco(box(1, 2, 3, 4))
    content["images"][1] |= change
    path = save(tmp_path, content)
    bad_data(message, DetectionDataset, path)
    dataset = DetectionDataset(path, on_error="skip")
    assert [sample.id for sample in dataset.samples] == ["1"]
    assert len(dataset.skipped) == 1


def test_one_name_in_two_folders(tmp_path: Path) -> None:
    path = save(tmp_path, coco(box(1, 2, 3, 4)))
    image(tmp_path / "images" / "2.png")
    message = r"one image of that name, found .*2\.png and .*images.2\.png; --data\.root FOLDER decides"
    bad_data(message, DetectionDataset, path)
    dataset = DetectionDataset(path, on_error="skip")
    assert (len(dataset), len(dataset.skipped)) == (1, 1)
    assert len(DetectionDataset(path, root=tmp_path)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"line 1, column 13: expected JSON"),
        ('{"annotations": []}', "expected COCO's JSON, .* found the keys annotations"),
        ("[1]", r"expected COCO's JSON, .* found \[1\]"),
        (coco(annotations=3), "a list 'annotations', found 3"),
        (coco(categories=[{"id": 1}]), r"categories\[0\]: expected a category with a number 'id' and a 'name'"),
        (coco(categories=[{"id": 1, "name": " "}]), r"categories\[0\]: expected a category with a number 'id'"),
        (coco(categories=[*CATEGORIES, {"id": 7, "name": "x"}]), r"categories\[2\]: expected an id and a name of its"),
        (coco(images=[]), "expected at least one image, found none"),
        (coco(), "expected at least one box, found none in 2 images"),
        (coco(box(1, 2, 3, 4, iscrowd=1)), "expected at least one box, found none in 2 images"),
        ("", "expected COCO's JSON, .* found an empty file"),
        ("hello", "expected COCO's JSON, a folder of .*, found a file that starts with 'hello'"),
    ],
)
def test_bad_coco(content: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, content)
    for on_error in ("raise", "skip"):  # nothing is left to be read
        assert "all.json" in bad_data(message, DetectionDataset, path, on_error=on_error)


def test_a_number_is_no_truth_value(tmp_path: Path) -> None:
    content = coco(
        box(1, 2, 3, 4, category_id=1), box(1, 2, 3, 4, category_id=True), categories=[{"id": 1, "name": "a"}]
    )
    message = r"annotations\[1\] \(id 11\): expected a category_id with a name in categories, found True"
    bad_data(message, DetectionDataset, save(tmp_path, content))


def test_all_boxes_are_bad(tmp_path: Path) -> None:
    path = save(tmp_path, coco(box(0.1, 0.2, 0.3, 0.4)))
    bad_data(r"at least one box, found none in 2 images \(1 bad items", DetectionDataset, path, on_error="skip")


# Rows and samples -----------------------------------------------------------------------------------------------------


def test_rows(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    rows = [
        {"image": "1.png", "boxes_xyxy": [[1, 2, 4, 6], [0, 0, 9, 9]], "labels": ["cat"] * 2, "crowd": [False, True]},
        {"id": "x", "image": "1.png", "boxes_xyxy": [], "labels": []},
    ]
    dataset = DetectionDataset(write(tmp_path / "a.jsonl", rows))
    assert boxes(dataset) == [[[1, 2, 4, 6], [0, 0, 9, 9]], []]
    assert dataset[0].ignored.tolist() == [False, True]
    assert [sample.id for sample in dataset.samples] == ["1", "x"]
    pixels = np.zeros((30, 40, 3), np.uint8)
    memory = DetectionDataset([(pixels, np.array([[1.0, 2, 4, 6]]), ["cat"]), (pixels, [], [])])
    assert boxes(memory) == [[[1, 2, 4, 6]], []]
    bad_data(r"row 1, box 0: .* lies outside", DetectionDataset, [(pixels, [[50, 2, 54, 6]], ["cat"])])
    bad_data(r"row 1: expected boxes_xyxy and labels", DetectionDataset, [(pixels, [[5, 2, 54, 6]], [])])
    bad_data(r"row 1: expected a box .* \(box 0\)", DetectionDataset, [(pixels, [[5, 2, 54, 6]], [3])])
    unlabeled = DetectionDataset([{"image": pixels}], require_labels=False)
    assert unlabeled[0].boxes_xyxy is None


def test_samples_in_memory() -> None:
    pixels = np.zeros((30, 40, 3), np.uint8)
    sample = DetectionSample("a", pixels, np.array([[1, 2, 4, 6]]), ["cat"])
    assert len(DetectionDataset([sample, DetectionSample("b", pixels, np.zeros((0, 4)))])) == 2
    moved = DetectionSample("a", pixels, np.array([[1, 2, 4, 7]]), ["cat"])
    assert DetectionDataset([sample]).fingerprint() != DetectionDataset([moved]).fingerprint()
    bad_data("an array \\(2, 4\\)", DetectionDataset, [DetectionSample("a", pixels, sample.boxes_xyxy, ["a", "b"])])
    bad_data("expected boxes, or an empty list .*, found no label", DetectionDataset, [DetectionSample("a", pixels)])
    bad = DetectionSample("a", pixels, np.array([[4, 2, 1, 6]]), ["cat"])
    bad_data(r"sample 0 \(id 'a'\): expected .* \(box 0\), found \[4, 2, 1, 6\], swapped", DetectionDataset, [bad])
    bad_data(
        "expected at least one box, found none in 1 images",
        DetectionDataset,
        [DetectionSample("b", pixels, np.zeros((0, 4)))],
    )


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "images", "count"), [("bccd", 205, 2804), ("fruits", 201, 388)])
def test_real_coco(name: str, images: int, count: int, real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = real_data / name / "annotations" / "instances_train.json"
    if not path.is_file():
        pytest.skip(f"{name} is not in MMATTN_DATA")
    with caplog.at_level(logging.WARNING):
        dataset = DetectionDataset(path)
    assert (len(dataset), sum(len(sample.labels) for sample in dataset.samples)) == (images, count)
    assert dataset.classes is not None
    assert len(dataset.classes.names) == 3
    assert not caplog.text, "no box is clipped or repeated"
