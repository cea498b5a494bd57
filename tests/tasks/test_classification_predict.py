"""Classification of one image, a folder with every kind of invalid file, and a table; and explanation plots."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.data.image.processor import load_image
from mmattn.tasks.classification.demo import CLASSES, make
from mmattn.tasks.classification.localisation import localisation
from mmattn.tasks.classification.predict import ClassificationPredictor, load
from tests.image_files import ERRORS, encoded, write_album
from tests.tasks.runs import ask, ask_folder, lines, run as train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("fit", tmp_path_factory.mktemp("runs") / "run", task="classification") / "model"


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> ClassificationPredictor:
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_album(tmp_path_factory.mktemp("album") / "in", Image.fromarray(make("test", 1)[0].image))


def run(command: str, checkpoint: Path, *words: object) -> None:
    ask(command, "--checkpoint", checkpoint, *words, task="classification")


def test_predictions_are_batch_invariant(predictor: ClassificationPredictor) -> None:
    together, alone = (predictor.predict(make("test", 5), batch_size=size) for size in (5, 1))
    assert [a.id for a in together] == [f"test-{n}" for n in range(5)]
    assert [a.label for a in together] == [a.label for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=1e-3)


def test_input_types(predictor: ClassificationPredictor, album: Path) -> None:
    path = album / "plain.png"
    image = load_image(path)
    bare = [path, str(path), encoded(image), image, np.asarray(image)]
    found = predictor.predict([*bare, {"image": path, "id": "x"}], top_k=2)
    assert [answer.id for answer in found] == [str(path), str(path), "2", "3", "4", "x"]
    assert {(answer.label, answer.score, *answer.alternatives) for answer in found} == {
        (found[0].label, found[0].score, *found[0].alternatives)
    }
    assert [predictor(item).label for item in bare] == [found[0].label] * 5
    assert len(found[0].alternatives) == 1


def test_flip_averages_an_image_and_its_mirror(predictor: ClassificationPredictor) -> None:
    samples = make("test", 6)
    mirrored = [replace(sample, image=np.ascontiguousarray(sample.image[:, ::-1])) for sample in samples]
    both, other = predictor.predict(samples, flip=True), predictor.predict(mirrored, flip=True)
    assert [a.score for a in both] == pytest.approx([b.score for b in other], abs=1e-4)
    assert [a.score for a in both] != pytest.approx([a.score for a in predictor.predict(samples)], abs=1e-4)


def test_top_k(checkpoint: Path, tmp_path: Path) -> None:
    run("predict", checkpoint, "--input", "demo", "--top_k", "9", "--output", tmp_path / "o")
    rows = lines(tmp_path / "o")
    assert len(rows) == 2 * len(CLASSES)
    for row in rows:
        assert {row["label"], *(name for name, _ in row["alternatives"])} == set(CLASSES)
        assert row["score"] + sum(score for _, score in row["alternatives"]) == pytest.approx(1, abs=1e-3)


def test_folder_with_valid_and_invalid_files(
    checkpoint: Path, album: Path, predictor: ClassificationPredictor, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ask_folder(album, ERRORS, capsys, "--checkpoint", checkpoint, task="classification")
    assert rows.keys() == {"plain.png", "cmyk.jpg", "turned.png", "sixteen.png", "palette.png", "deep/below.bmp"}
    for name in ("turned.png", "deep/below.bmp"):
        assert (rows[name]["label"], rows[name]["score"]) == (rows["plain.png"]["label"], rows["plain.png"]["score"])
    grey, found = predictor(Image.open(album / "plain.png").convert("L")), rows["sixteen.png"]
    assert (found["label"], found["score"]) == (grey.label, pytest.approx(grey.score, abs=2e-3))
    assert rows["cmyk.jpg"]["score"] == pytest.approx(rows["plain.png"]["score"], abs=0.1)


def test_table_tar_and_single_image(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"path,id,label\n{album}/plain.png,x7,no class of the model\n")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(album / "plain.png", "class/x.png")
    for name, expected in (("a.csv", "x7"), ("a.tar", "class/x.png")):
        run("predict", checkpoint, "--input", tmp_path / name, "--output", tmp_path / "o")
        assert [row["id"] for row in lines(tmp_path / "o")] == [expected]
    run("predict", checkpoint, "--image", album / "plain.png")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] in CLASSES


def test_explanations(checkpoint: Path, album: Path, predictor: ClassificationPredictor, tmp_path: Path) -> None:
    run("explain", checkpoint, "--image", album / "plain.png", "--output", tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size[0] > 300
    rows = localisation(predictor, 12).rows
    assert {name: row[0] for name, row in rows.items()} == dict.fromkeys(CLASSES, 2)
    assert all(0 <= hits <= near <= count for count, hits, near in rows.values())


def test_model_without_attention_raises(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    options = "--model.pooling mean --model.backbone timm/test_resnet --trainer.max_steps 1"
    mean = train("fit", tmp_path / "run", options, task="classification")
    with pytest.raises(DataError, match="expected a model that attends to the image"):
        load(mean / "model", device="cpu").explain(make("test", 1)[0])
