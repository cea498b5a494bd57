"""The shipped detection model from Python and from the command line, with valid and invalid items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.detection.boxes import Detections
from mmattn.tasks.detection.demo import NAMES, SIDE, make
from mmattn.tasks.detection.detect import in_tiles
from mmattn.tasks.detection.localisation import localisation
from mmattn.tasks.detection.predict import DetectionPredictor, load
from tests.conftest import refused
from tests.tasks.runs import ask, lines

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def predictor() -> DetectionPredictor:
    return load(device="cpu")


def run(command: str, *words: object) -> None:
    ask(command, *words, task="detection")


def album(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for sample in make("test", count):
        Image.fromarray(sample.image).save(folder / f"{sample.id}.png")
    return folder


def test_published_figures_and_most_boxes_are_right(predictor: DetectionPredictor) -> None:
    stated = read_config(named_models("detection")["demo"])["metrics"]["built-in test"]
    assert stated["map50"] >= 0.85
    assert stated["map"] >= 0.55
    assert predictor.labels == list(NAMES)
    samples = make("test", 20)
    grades = [
        predictor.grade(sample, predictor.truth(sample), answer)
        for sample, answer in zip(samples, predictor.predict(samples), strict=True)
    ]
    assert np.mean(grades) >= 0.9


def test_queries_read_their_objects(predictor: DetectionPredictor) -> None:
    rows = localisation(predictor, 20).rows.values()
    assert sum(row[1] for row in rows) / sum(row[0] for row in rows) >= 0.9


def test_jsonl_coco_and_images(tmp_path: Path) -> None:
    source, output = album(tmp_path / "album"), tmp_path / "found.jsonl"
    run("predict", "--input", source, "--output", output, "--save_images", tmp_path / "drawn")
    rows = lines(output)
    assert [row["size"] for row in rows] == [[SIDE, SIDE]] * 3
    assert all(Image.open(row["image"]).size == (SIDE, SIDE) for row in rows)
    boxes = [box for row in rows for box in row["boxes"]]
    assert boxes
    assert all(0 <= x1 < x2 <= SIDE and 0 <= y1 < y2 <= SIDE for x1, y1, x2, y2 in (box["box_xyxy"] for box in boxes))
    results = tmp_path / "results.json"
    run("predict", "--input", source, "--output", results, "--format", "coco", "--threshold", "0.5")
    listed = json.loads(results.read_text())
    assert {row["image_id"] for row in listed} <= {row["id"] for row in rows}
    assert {row["category_id"] for row in listed} <= set(range(1, len(NAMES) + 1))
    assert all(row["score"] >= 0.5 and min(row["bbox"][2:]) > 0 for row in listed)
    run("predict", "--input", source, "--output", results, "--format", "coco", "--threshold", "1")
    assert json.loads(results.read_text()) == []


def test_thresholds_are_those_of_the_classes_or_one(predictor: DetectionPredictor) -> None:
    scene = make("test", 1)[0]
    least = dict(zip(NAMES, predictor.processor.thresholds, strict=True))
    own, all_ = predictor(scene), predictor(scene, threshold=0.0)
    assert all(box.score >= round(least[box.label], 4) for box in own.boxes)
    assert len(all_.boxes) == 100
    assert own.boxes == [box for box in all_.boxes if box.score >= least[box.label]]


def test_images_of_a_batch_do_not_depend_on_each_other(predictor: DetectionPredictor) -> None:
    sizes = [(SIDE, SIDE), (SIDE // 2, SIDE), (SIDE, SIDE - 41), (SIDE // 2, SIDE)]
    items = [sample.image[:height, :width] for sample, (height, width) in zip(make("test", 4), sizes, strict=True)]
    together = predictor.predict(items, threshold=0.01)
    alone = [predictor(item, threshold=0.01) for item in items]
    for one, other in zip(together, alone, strict=True):
        assert [box.score for box in one.boxes] == pytest.approx([box.score for box in other.boxes], abs=2e-4)
        assert [box.label for box in one.boxes] == [box.label for box in other.boxes]
    explained = predictor.explain_all(items, threshold=0.01)
    assert [len(one.readings) for one in explained] == [len(one.boxes) for one in alone]


def test_tiles_find_what_is_in_a_large_image(predictor: DetectionPredictor) -> None:
    """Scenes beside each other, of which a tile has one: boxes are those of each scene, moved."""
    scenes = make("test", 4)
    rows = [np.concatenate([scenes[n].image, scenes[n + 1].image], 1) for n in (0, 2)]
    found = predictor(np.concatenate(rows), tile=SIDE)
    assert found.size == (2 * SIDE, 2 * SIDE)
    wanted = sum(len(scene.labels) for scene in scenes)
    assert 0.8 * wanted <= len(found.boxes) <= 1.3 * wanted


def test_boxes_of_tiles_are_moved_cut_ones_dropped_and_equal_ones_joined() -> None:
    """Tiles of 40 pixels begin at 0, 30 and 60 of 100: a box at 35..45 is cut in the first, whole in the second."""
    true = torch.tensor([[35.0, 10, 45, 20], [5.0, 5, 15, 15]])

    def find(images: list[np.ndarray]) -> list[Detections]:
        results = []
        for image in images:
            left, width = int(image[0, 0, 0]), image.shape[1]
            boxes = true - torch.tensor([left, 0, left, 0])
            boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
            boxes = boxes[boxes[:, 2] > boxes[:, 0]]
            results.append(Detections(boxes, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.long)))
        return results

    image = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (40, 100, 3))
    found = in_tiles(np.ascontiguousarray(image), 40, find)
    assert sorted(found.boxes_xyxy.tolist()) == sorted(true.tolist())


def test_explanations(predictor: DetectionPredictor, tmp_path: Path) -> None:
    explanation = predictor.explain(make("test", 1)[0])
    assert len(explanation.readings) == len(explanation.prediction.boxes) > 0
    assert explanation.truth is not None
    explanation.save(tmp_path / "scene.png")
    assert min(Image.open(tmp_path / "scene.png").size) > 200
    run("explain", "--input", "demo", "--limit", "2", "--output", tmp_path / "scenes")
    assert len(list((tmp_path / "scenes").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "--threshold: expected a score from 0 to 1, found 1.5"),
        ({"tile": 8}, "--tile: expected 32 pixels or more, found 8"),
        ({"format": "coc"}, "did you mean 'coco'"),
    ],
)
def test_wrong_options(predictor: DetectionPredictor, options: dict[str, Any], message: str) -> None:
    refused(message, predictor.predict, [make("test", 1)[0]], **options, error=DataError)
