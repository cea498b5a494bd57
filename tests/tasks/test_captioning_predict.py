"""The shipped captioning model from Python and from the command line: search options, folders, explanations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmattn import load
from mmattn.tasks.captioning import metrics
from mmattn.tasks.captioning.demo import make
from mmattn.tasks.captioning.facts import check_facts
from mmattn.tasks.captioning.localisation import KINDS, localisation
from mmattn.tasks.captioning.predict import CaptioningPrediction, CaptioningPredictor
from tests.tasks.runs import ask, ask_folder, lines


@pytest.fixture(scope="module")
def predictor() -> CaptioningPredictor:
    return CaptioningPredictor.load("captioning/demo", device="cpu")


def facts(captions: list[str]) -> float:
    counts = [check_facts(text, sample.objects) for text, sample in zip(captions, make("test"), strict=False)]
    return sum(true for true, _ in counts) / sum(total for _, total in counts)


def test_statements_of_the_shipped_model_are_true(predictor: CaptioningPredictor) -> None:
    samples = make("test", 200)
    captions = [found.caption for found in predictor.predict(samples)]
    assert facts(captions) >= 0.93
    assert metrics.score(captions, [sample.captions for sample in samples])["bleu4"] >= 0.78


def test_reduced_precision(predictor: CaptioningPredictor) -> None:
    samples = make("test", 40)
    for precision in ("int8", "bfloat16"):
        other = load("captioning/demo", device="cpu", precision=precision)
        assert facts([found.caption for found in other.predict(samples)]) >= 0.9


def test_search_options(predictor: CaptioningPredictor) -> None:
    samples = make("test", 8)
    greedy, beams = (predictor.predict(samples, num_beams=n) for n in (1, 4))
    assert sum(found.score for found in beams) >= sum(found.score for found in greedy) - 1e-3
    begun = predictor.predict(samples, beginning="with two", num_beams=2)
    assert all(found.caption.startswith("with two ") for found in begun)
    torch.manual_seed(0)
    drawn = [predictor(samples[0], num_beams=1, do_sample=True, temperature=2.0).caption for _ in range(8)]
    assert len(set(drawn)) > 2
    short = predictor.predict(samples, num_beams=1, max_new_tokens=3)
    assert all(len(metrics.tokenize(found.caption)) <= 3 for found in short)
    assert [found.caption for found in predictor.predict(samples, batch_size=3, num_beams=1)] == [
        found.caption for found in greedy
    ]


def test_folder_of_images(tmp_path: Path, predictor: CaptioningPredictor, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    samples = make("test", 2)
    Image.fromarray(samples[0].image).save(tmp_path / "in" / "0.png")
    Image.fromarray(samples[1].image).save(tmp_path / "in" / "deep" / "1.png")
    (tmp_path / "in" / "bad.png").write_text("not an image")
    rows = ask_folder(tmp_path / "in", {"bad.png": "expected an image"}, capsys, task="captioning")
    assert {name: row["caption"] for name, row in rows.items()} == {
        name: predictor(sample).caption for name, sample in zip(("0.png", "deep/1.png"), samples, strict=True)
    }


def test_content_words_point_at_their_objects(predictor: CaptioningPredictor) -> None:
    rows = localisation(predictor, 60).rows
    assert set(rows) == set(KINDS)
    count, _, near = map(sum, zip(*rows.values(), strict=True))
    assert near >= 0.9 * count


def test_explanation_has_a_panel_for_each_word(predictor: CaptioningPredictor, tmp_path: Path) -> None:
    sample = make("test", 1)[0]
    text = "a small red star is left of a large blue ring, and there are no other things."
    (found,) = predictor.explain_written([sample], [CaptioningPrediction("x", text, 0.0)])
    assert found.words == text.replace(",", "").replace(".", "").split()
    assert [text[slice(*span)] for span in found.spans] == found.words
    assert found.attention.shape == (len(found.words), *predictor.model.grid_size)
    torch.testing.assert_close(found.attention.sum((1, 2)), torch.ones(len(found.words)))
    Image.fromarray(sample.image).save(tmp_path / "0.png")
    ask("explain", "--image", tmp_path / "0.png", "--output", tmp_path / "one.png", task="captioning")
    assert Image.open(tmp_path / "one.png").size[0] > 600
    (nothing,) = predictor.explain_written([sample], [CaptioningPrediction("x", "", 0.0)])
    nothing.save(tmp_path / "none.png")
    ask("predict", tmp_path / "0.png", "--output", tmp_path / "o", task="captioning")
    assert lines(tmp_path / "o")[0]["id"] == "0.png"
