"""ROUGE, summarizing and explaining, with the shipped model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from mmattn.tasks.summarization import metrics
from mmattn.tasks.summarization.demo import make
from mmattn.tasks.summarization.localisation import localisation
from mmattn.tasks.summarization.plot import by_words, wrap
from mmattn.tasks.summarization.predict import SummarizationPrediction, SummarizationPredictor, load
from tests.tasks.runs import ask, lines


@pytest.fixture(scope="module")
def summarizer() -> SummarizationPredictor:
    return load("summarization/demo", device="cpu")


run = partial(ask, task="summarization")


# ROUGE ----------------------------------------------------------------------------------------------------------------


def test_rouge_equals_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    texts = ["The pump broke. It was old.", "two ships sailed", ""]
    right = [["A pump has broken. Nobody was hurt.", "The old pump"], ["a ship sails"], ["rain"]]
    found = metrics.score(texts, right)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        best = [scorer.score_multi(given, text)[kind].fmeasure for text, given in zip(texts, right, strict=True)]
        first = [scorer.score(given[0], text)[kind].fmeasure for text, given in zip(texts, right, strict=True)]
        assert found[kind] == pytest.approx(sum(best) / 3)
        assert found[f"{kind}_first"] == pytest.approx(sum(first) / 3)
    assert "Porter stemming" in metrics.signature()["rouge_signature"]


def test_rouge_lsum_compares_sentences() -> None:
    found = metrics.score(["Bees buzz loud. Ants dig deep."], [["Ants dig deep. Bees buzz loud."]])
    assert found["rougeLsum"] == pytest.approx(1.0)
    assert found["rougeL"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("सरकार ने नई योजना की घोषणा की", "सरकार ने नई"),
        ("政府宣布了新的计划", "政府宣布"),
        ("政府は新しい計画を発表した", "政府は新しい"),
        ("รัฐบาลประกาศแผนใหม่", "รัฐบาล"),
        ("Правительство объявило новый план", "Правительство объявило"),
        ("أعلنت الحكومة خطة جديدة", "أعلنت الحكومة"),
        ("정부가 새 계획을 발표했다", "정부가 새"),
        ("政府发布 iPhone 15 计划", "政府发布"),
        ("la café à Köln", "la café"),
    ],
)
def test_rouge_sees_the_words_of_every_script(text: str, half: str) -> None:
    assert set(metrics.score([text], [[text]]).values()) == {1.0}
    found = metrics.score([half, "x"], [[text], [text]])
    assert 0.2 < found["rouge1"] == found["rougeL"] < 0.5
    assert metrics.score([half], [["the", text]])["rouge1"] == 2 * found["rouge1"]


def test_rouge_keeps_the_figures_of_latin_text() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    written, right = "The café in Köln – naïve α", "A cafe in Köln: “naïve” β"
    expected = RougeScorer(["rouge1"], use_stemmer=True).score(right, written)["rouge1"].fmeasure
    assert metrics.score([written], [[right]])["rouge1"] == expected
    with pytest.warns(UserWarning, match=r"ROUGE sees no words in 2 references, such as '🙂'"):
        assert metrics.score(["🙂", "a"], [["🙂"], ["é", "a"]])["rouge1"] == 0.5


# Summarizing ----------------------------------------------------------------------------------------------------------


def test_shipped_model_summarizes_the_demo_data(summarizer: SummarizationPredictor) -> None:
    samples = make("test")
    written = summarizer.predict(samples)
    assert [one.id for one in written] == [sample.id for sample in samples]
    figures = metrics.score([one.summary for one in written], [[sample.target] for sample in samples])
    assert figures["rougeL"] > 0.8
    assert [summarizer(sample).summary for sample in samples[:5]] == [one.summary for one in written[:5]]


def test_input_types(summarizer: SummarizationPredictor, tmp_path: Path) -> None:
    text = make("test", size=1)[0].source
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text(text)
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "x", "document": text}) + "\n")
    expected = summarizer.predict([text])[0].summary
    run("predict", "--input", tmp_path, "--output", tmp_path / "o")
    assert [(row["id"], row["summary"]) for row in lines(tmp_path / "o")] == [("a.txt", expected), ("b.txt", expected)]
    run("predict", "--input", tmp_path / "c.jsonl", "--output", tmp_path / "o")
    assert [(row["id"], row["summary"]) for row in lines(tmp_path / "o")] == [("x", expected)]
    run("predict", "--text", text, "--num_beams", "1", "--output", tmp_path / "o")
    assert lines(tmp_path / "o")[0]["id"] == "text"


def test_truncation_is_reported(
    summarizer: SummarizationPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(sample.source for sample in make("test", size=4))
    run("predict", "--text", text, "--output", tmp_path / "o")
    limit = summarizer.processor.max_source_len
    assert lines(tmp_path / "o")[0]["tokens_cut"] == summarizer.processor.source.length(text) - (limit - 1)
    assert f"1 of the documents are longer than {limit} tokens" in capsys.readouterr().err


# Explaining -----------------------------------------------------------------------------------------------------------


def test_attention_peaks_at_the_true_sources(summarizer: SummarizationPredictor) -> None:
    """The peak of the plotted map lies on the true source of nine in ten content words."""
    samples = make("test", size=20)
    written = [SummarizationPrediction(sample.id, sample.target, 0.0) for sample in samples[:3]]
    for found in summarizer.explain_written(samples[:3], written):
        torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(found.words)))
        assert len(found.words) == len(found.word_spans)
    rows = localisation(summarizer, 20).rows
    count, hits, near = map(sum, zip(*rows.values(), strict=True))
    assert set(rows) == {"name", "number", "thing"}
    assert count == sum(len(sample.origins) for sample in samples)
    assert near >= hits >= 0.9 * count


def test_explanation_plot(tmp_path: Path) -> None:
    from PIL import Image

    text = "Costs: $5 and $6.\n" + "a\tb " * 400  # dollar signs, tabs, a very long line
    run("explain", "--text", text, "--output", tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size[0] > 300


def test_matrix_has_words(summarizer: SummarizationPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns are words: the weights of a word's tokens are summed, and means over a summary word's tokens."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    sample = make("test", size=1)[0]
    (found,) = summarizer.explain_written([sample], [SummarizationPrediction(sample.id, sample.target, 0.0)])
    assert len(found.words) > len(sample.target.split()) + 1
    found.save(tmp_path / "a.png")
    chart = next(axis for axis in drawn[0].axes if axis.get_ylabel() == "summary")
    assert [label.get_text() for label in chart.get_yticklabels()] == [*sample.target.split(), "(end)"]
    assert {label.get_text() for label in chart.get_xticklabels()} <= set(sample.source.split())
    spans, joins = by_words("aé 中文。", [(0, 1), (1, 2), (3, 4), (4, 6)])
    assert spans == [(0, 2), (3, 4), (4, 6)]
    assert joins.sum(0).tolist() == [2, 1, 1]
    assert by_words("  ", [(1, 1)])[0] == [(1, 1)]


def test_wrapping_keeps_all_text() -> None:
    text = "one two three\n\n" + "x" * 30 + " four"
    assert [text[a:b] for a, b in wrap(text, 8)] == ["one two", "three", "x" * 8, "x" * 8, "x" * 8, "x" * 6, "four"]
