"""Training of text generation: own files, saved search options, invalid options."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mmattn import load
from mmattn.tasks.summarization.demo import make as make_documents
from mmattn.tasks.translation.demo import make
from tests.tasks.runs import ask, read, run, write_lines


def fit(folder: Path, options: str = "", command: str = "fit", task: str = "translation") -> Path:
    return run(command, folder, options, task=task)


summarize = partial(fit, task="summarization")


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for name, samples in (("train", make("train", 50)), ("val", make("val", 8)), ("more", make("train", 90)[50:])):
        (folder / f"{name}.en").write_text("".join(f"{sample.source}\n" for sample in samples))
        (folder / f"{name}.de").write_text("".join(f"{sample.target}\n" for sample in samples))
    return folder


def test_metrics_have_signatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path / "run", "--loss.word_dropout 0.2 --loss.label_smoothing 0.1")
    assert "padding" in capsys.readouterr().out
    metrics = read(folder / "metrics.json")
    assert 0 <= metrics["fit"]["padding_waste"] < 0.5
    assert metrics["fit"]["truncated_targets"] > 0, "truncation is reported"
    assert set(metrics["validation"]) >= {"bleu", "chrf", "loss", "bleu_signature", "chrf_signature"}
    fit(folder, f"--checkpoint {folder}/model --decode.num_beams 2", "test")
    assert "case:mixed" in read(folder / "metrics.json")["test"]["bleu_signature"]


@pytest.mark.parametrize("options", ["--data.shared_vocab false --data.tokenizer word", "--model.decoder lstm"])
def test_own_files_in_both_directions(options: str, parallel: Path, tmp_path: Path) -> None:
    own = f"--data.train {parallel}/train --data.val {parallel}/val --data.source_lang de --data.target_lang en"
    translator = load(fit(tmp_path / "run", f"{own} {options}") / "model", device="cpu")
    assert translator.processor.options == {"source_lang": "de", "target_lang": "en"}
    assert len(translator.predict([{"de": "droseti nusira"}])) == 1


def test_back_translation(parallel: Path, tmp_path: Path) -> None:
    """A reverse model translates target-language text into sources, which are added to the training data."""
    own = f"--data.train {parallel}/train --data.val {parallel}/val"
    reverse = fit(tmp_path / "reverse", f"{own} --data.source_lang de --data.target_lang en")
    (tmp_path / "mono.de").write_text("".join(f"{sample.target}\n" for sample in make("val", 30)))
    files = ("--input", tmp_path / "mono.de", "--output", tmp_path / "mono.en")
    ask("predict", "--checkpoint", reverse / "model", *files, "--num_beams", 1, task="translation")
    sources = (tmp_path / "mono.en").read_text().split("\n")
    assert len(sources) == 31
    # A barely trained model may output nothing.
    (tmp_path / "mono.en").write_text("".join(f"{text or 'the'}\n" for text in sources[:-1]))
    folder = fit(tmp_path / "run", f"{own} --data.extra {tmp_path}/mono")
    assert read(folder / "run.json")["data"]["train"]["samples"] == 80


def test_own_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, samples in (("train", make_documents("train", size=30)), ("val", make_documents("val", size=4))):
        rows = [{"document": s.source, "summary": s.target, "references": [s.target, "Nothing."]} for s in samples]
        rows += rows[:5] if name == "train" else []
        write_lines(tmp_path / f"{name}.jsonl", rows)
    own = f"--data.train {tmp_path}/train.jsonl --data.val {tmp_path}/val.jsonl --data.drop_repeats true"
    folder = summarize(tmp_path / "run", f"{own} --loss.salience 0.5 --model.frequencies true")
    assert "5 duplicate documents" in caplog.text
    metrics = read(folder / "metrics.json")
    assert {"words", "salience", "padding_waste"} <= set(metrics["fit"])
    assert metrics["validation"]["rouge1"] >= metrics["validation"]["rouge1_first"]
    assert "Porter" in metrics["validation"]["rouge_signature"]


def test_saved_search_options_are_used(tmp_path: Path) -> None:
    folder = summarize(tmp_path / "run", "--decode.num_beams 3 --decode.mbr true --decode.length_penalty 0.0")
    summarizer = load(folder / "model", device="cpu")
    wanted = {"num_beams": 3, "length_penalty": 0.0, "mbr": True}
    assert summarizer.processor.options["search"] == wanted
    samples = make_documents("test", size=4)
    written = [one.summary for one in summarizer.predict(samples)]
    assert written == [one.summary for one in summarizer.predict(samples, **wanted)]
    plain = summarizer.predict(samples, mbr=False)
    assert all(one.score >= other.score for one, other in zip(plain, summarizer.predict(samples), strict=True))


def test_long_documents_train(tmp_path: Path) -> None:
    window = "--model.attention.kind sliding_window --model.attention.window 4"
    folder = summarize(tmp_path / "run", f"--model.hierarchical false --model.global_tokens sentences {window}")
    assert read(folder / "metrics.json")["fit"]["steps"] > 0
    summarize(folder, f"--checkpoint {folder}/model", "test")
    assert "rougeL" in read(folder / "metrics.json")["test"]
