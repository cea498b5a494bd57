"""The shipped segmentation model from Python and from the command line, with valid and invalid items."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.data.image.masks import palette
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.segmentation.data import SegmentationDataset
from mmattn.tasks.segmentation.demo import NAMES, THINGS, make
from mmattn.tasks.segmentation.localisation import localisation
from mmattn.tasks.segmentation.metrics import SegmentationMetric
from mmattn.tasks.segmentation.plot import colored
from mmattn.tasks.segmentation.predict import SegmentationPredictor, load
from tests.conftest import refused
from tests.image_files import ERRORS, write_album, write_pairs
from tests.tasks.runs import ask, ask_folder, lines

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def predictor() -> SegmentationPredictor:
    return load(device="cpu")


def run(command: str, *words: object) -> None:
    ask(command, *words, task="segmentation")


def miou(predictor: SegmentationPredictor, samples: list, **options: Any) -> float:
    metric = SegmentationMetric(NAMES)
    for sample, answer in zip(samples, predictor.predict(samples, **options), strict=True):
        metric.update(torch.from_numpy(answer.labels), torch.from_numpy(sample.mask))
    return float(metric.compute()["miou"])


def test_published_miou_is_reproduced(predictor: SegmentationPredictor) -> None:
    stated = read_config(named_models("segmentation")["demo"])["metrics"]["built-in test"]
    assert stated["miou"] >= 0.85
    assert min(stated[f"iou/{name}"] for name in NAMES) >= 0.75
    assert predictor.labels == list(NAMES)
    samples = make("test", 100)
    assert miou(predictor, samples) == pytest.approx(stated["miou"], abs=0.02)
    assert miou(predictor, samples[:40], flip=True) > miou(predictor, samples[:40]) - 0.02, "not much worse"


def test_relevance_lies_on_the_object(predictor: SegmentationPredictor) -> None:
    game = localisation(predictor, 40)
    scenes = {name: sum((sample.mask == NAMES.index(name)).any() for sample in make("test", 40)) for name in THINGS}
    assert {name: row[0] for name, row in game.rows.items()} == scenes
    assert sum(row[1] for row in game.rows.values()) / sum(scenes.values()) >= 0.9
    found = predictor.explain(make("test", 1)[0], class_name="ring")
    assert found.gates[0].shape == found.relevance.shape == (64, 64)


def test_batched_equals_single(predictor: SegmentationPredictor) -> None:
    samples = make("test", 5)
    samples[1].image = samples[1].image[:50]  # another size
    together = predictor.predict(samples, batch_size=4)
    for sample, answer in zip(samples, together, strict=True):
        alone = predictor(sample)
        assert alone.labels.shape == sample.image.shape[:2]
        assert (alone.labels != answer.labels).mean() < 0.002
        assert sum(answer.shares.values()) == pytest.approx(1, abs=1e-3)
    several = predictor.explain_all(samples[:2])
    for sample, found in zip(samples, several, strict=False):
        torch.testing.assert_close(found.relevance, predictor.explain(sample).relevance, atol=1e-4, rtol=1e-3)


def test_tiles_equal_full_image(predictor: SegmentationPredictor) -> None:
    """Four adjacent scenes, split into overlapping tiles of one scene's size."""
    scenes = make("test", 4)
    wide = np.concatenate([np.concatenate([s.image for s in scenes[i : i + 2]], 1) for i in (0, 2)], 0)
    whole, tiled = (predictor(wide, tile=tile).labels for tile in (1024, 80))
    assert (whole == tiled).mean() > 0.93


def test_large_images_are_predicted_one_by_one(
    predictor: SegmentationPredictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shapes = [(40, 40), (40, 30), (60, 20), (30, 80), (80, 30), (20, 20)]
    items: list[Any] = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    items.insert(1, tmp_path / "none.png")
    batches: list[int] = []
    predict = predictor.predict_batch
    monkeypatch.setattr(predictor, "predict_batch", lambda s, b, **o: batches.append(len(s)) or predict(s, b, **o))
    monkeypatch.setattr(type(predictor), "capacity", 4800)
    stream = predictor.stream(items, on_error="skip", tile=32)
    assert next(stream).labels.shape == shapes[0]  # type: ignore[union-attr]
    assert batches == [1, 1], "before the others are read"
    found = list(stream)
    assert isinstance(found.pop(0), DataError)
    assert [one.labels.shape for one in found] == shapes[1:]  # type: ignore[union-attr]
    assert batches == [1, 1, 1, 1, 2], (
        "the first three are predicted alone as one is missing; 30 x 80 and 80 x 30 do not"
    )


def test_masks_and_overlays_are_written(tmp_path: Path, predictor: SegmentationPredictor) -> None:
    masks, words = tmp_path / "m", ("--input", "demo", "--output", tmp_path / "a")
    run("predict", *words, "--masks", masks, "--overlays", tmp_path / "o")
    rows = lines(tmp_path / "a")
    assert len(rows) == 8
    assert set(rows[0]) == {"id", "size", "shares", "mask", "overlay"}
    for row, sample in zip(rows, make("test", 8), strict=True):
        written = Image.open(row["mask"])
        assert written.mode == "P"
        assert np.array_equal(np.asarray(written), predictor(sample).labels)
        colours = np.array(written.getpalette(), np.uint8).reshape(-1, 3)
        assert np.array_equal(colours[: len(NAMES)], palette(len(NAMES)))
        overlay = Image.open(row["overlay"])
        assert np.array_equal(overlay.crop((0, 0, 64, 64)), colored(sample.image, predictor(sample).labels, len(NAMES)))
        assert overlay.height >= 64 + 11 * len(row["shares"]), "a legend: here, a row for each class"
    # The output is a data set for training and for prediction.
    folder = write_pairs(tmp_path / "set", make("test", 8))
    shutil.copytree(masks, folder / "masks", dirs_exist_ok=True)
    assert len(SegmentationDataset(folder)) == 8
    assert [sample.id for sample in predictor.open_input(str(folder))] == [row["id"] for row in rows]


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path, predictor: SegmentationPredictor) -> None:
    paths = [tmp_path / name for name in ("in/a.png", "in/a.bmp", "in/b/a.png", "in/b/a.bmp")]
    paths[2].parent.mkdir(parents=True)
    for path in paths:
        Image.fromarray(make("test", 1)[0].image).save(path)
    before = [path.read_bytes() for path in paths]
    run("predict", "--input", tmp_path / "in", "--masks", tmp_path / "m", "--output", tmp_path / "o")
    written = [Path(row["mask"]).relative_to(tmp_path / "m").as_posix() for row in lines(tmp_path / "o")]
    assert written == ["a.png", "a.png.png", "b/a.png", "b/a.png.png"]
    for _ in range(2):  # absolute paths are not used as output paths
        found = predictor.predict([*paths, {"image": paths[0], "id": "../a.png"}], masks=tmp_path / "n")
        names = ["a.png", "a.bmp.png", "a.png.png", "a-2.png", "a-3.png"]
        assert [answer.mask for answer in found] == [str(tmp_path / "n" / name) for name in names]
    assert [path.read_bytes() for path in paths] == before


def test_folder_with_invalid_images(
    tmp_path: Path, predictor: SegmentationPredictor, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Image.fromarray(make("test", 1)[0].image)
    upright = scene.crop((0, 0, 64, 40))
    folder, out = write_album(tmp_path / "in", scene, upright), tmp_path / "out"
    rows = ask_folder(folder, ERRORS, capsys, "--masks", out, task="segmentation")
    sizes = {name: row["size"] for name, row in rows.items()}
    whole = ("plain.png", "cmyk.jpg", "sixteen.png", "palette.png", "deep/below.bmp")
    assert sizes == {**{name: [64, 64] for name in whole}, "turned.png": [64, 40]}, "upright by its EXIF tag"
    white = np.asarray(scene).copy()
    clear = np.asarray(Image.open(folder / "palette.png")) == 0
    assert clear.any()
    white[clear] = 255
    same = {"plain": (scene, 0.995), "sixteen": (scene.convert("L"), 0.995), "turned": (upright, 0.995)}
    for name, (image, share) in {**same, "cmyk": (scene, 0.8), "palette": (white, 0.9)}.items():
        assert (np.asarray(Image.open(out / f"{name}.png")) == predictor(image).labels).mean() > share, name


def test_explanation_plots(tmp_path: Path) -> None:
    Image.fromarray(make("test", 1)[0].image).save(tmp_path / "a.png")
    words = ("--image", tmp_path / "a.png", "--output", tmp_path / "e.png", "--class_name")
    refused("--class_name: expected one of ground, rows", run, "explain", *words, "dog", error=DataError)
    assert not (tmp_path / "e.png").exists()
    run("explain", *words, "ring")
    assert Image.open(tmp_path / "e.png").size[0] > 600


def test_gates_have_one_scale(
    predictor: SegmentationPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate from 0.44 to 0.45 is flat, and weights of keys are relative to their mean."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    found = predictor.explain(make("test", 1)[0])
    assert np.array_equal(found.truth, make("test", 1)[0].mask)
    found.gates = [torch.full((4, 4), 0.44), torch.eye(4) * 0.9]
    found.gates[0][0, 0] = 0.45
    for gated, tops in ((True, [1.0, 1.0]), (False, [3.0, 4.0])):
        found.gated = gated
        found.save(tmp_path / "a.png")
        panels = [axis for axis in drawn.pop().axes if len(axis.images) == 2][:2]
        assert [axis.images[1].get_clim()[1] for axis in panels] == pytest.approx(tops)
        assert ["nearly uniform" in axis.get_title() for axis in panels] == [True, False]
