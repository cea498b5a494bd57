"""The shipped VQA model from Python and from the command line: one item, a folder, a file, invalid items."""

from pathlib import Path

import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.vqa.demo import FAMILIES, make
from mmattn.tasks.vqa.localisation import localisation
from mmattn.tasks.vqa.predict import VQAPredictor
from tests.conftest import refused
from tests.tasks.runs import ask, lines, write_lines

ASKED = ("--question", "how many things are there?")


@pytest.fixture(scope="module")
def predictor() -> VQAPredictor:
    return VQAPredictor.load("vqa/demo", device="cpu")


def test_published_accuracy_is_reproduced(predictor: VQAPredictor) -> None:
    stated = read_config(named_models("vqa")["demo"])["metrics"]["built-in test"]
    samples = make("test")
    answers = predictor.predict(samples, batch_size=360)
    right = [answer.answer == sample.answers[0] for answer, sample in zip(answers, samples, strict=True)]
    assert sum(right) / len(right) == pytest.approx(stated["accuracy"], abs=1e-3)
    assert stated["accuracy"] >= 0.9
    assert all(stated[f"accuracy/{family}"] >= 0.8 for family in FAMILIES)


def test_attention_lies_on_the_relevant_objects(predictor: VQAPredictor) -> None:
    rows = localisation(predictor, 1000).rows
    assert set(rows) == set(FAMILIES)
    count, _, near = map(sum, zip(*rows.values(), strict=True))
    assert count == 1000
    assert near >= 900


def test_batched_equals_single(predictor: VQAPredictor) -> None:
    samples = make("test", size=2)
    together, alone = predictor.predict(samples, batch_size=7), [predictor(sample) for sample in samples]
    assert [a.answer for a in together] == [a.answer for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=1e-3)


def test_unknown_words_are_reported(predictor: VQAPredictor) -> None:
    item = {"image": make("test", size=1)[0].image, "question": "is the zeppelin red?"}
    assert predictor(item).unknown_words == ["zeppelin"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images."""
    for n, sample in enumerate(make("test", size=3)[::18]):
        Image.fromarray(sample.image).save(tmp_path / f"{n}.png")
    return tmp_path


def test_image_folder(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--input", images, *ASKED, "--output", images / "o")
    ask("predict", *words)
    assert [row["id"] for row in lines(images / "o")] == ["0.png", "1.png", "2.png"]
    (images / "1.png").write_text("not an image")
    ask("predict", *words, "--on_error", "skip")
    rows = lines(images / "o")
    assert [row["id"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert "1.png" in rows[1]["error"]
    assert "1 of 3 items skipped" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_invalid_item_raises_or_is_skipped(images: Path, caplog: pytest.LogCaptureFixture, batch_size: int) -> None:
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    rows = [{"image": f"{n}.png", "question": ASKED[1], "id": str(n)} for n in range(3)]
    words = ("--input", write_lines(images / "q.jsonl", rows), "--output", images / "o", "--batch_size", batch_size)
    refused(r"1\.png", ask, "predict", *words, error=DataError)
    assert not (images / "o").exists(), "no partial output remains"
    ask("predict", *words, "--on_error", "skip")
    assert [row["id"] for row in lines(images / "o")] == ["0", "2"]
    assert "1.png" in caplog.text


def test_explanation_plot(images: Path) -> None:
    ask("explain", "--image", images / "0.png", *ASKED, "--output", images / "one.png")
    assert Image.open(images / "one.png").size[0] > 300
