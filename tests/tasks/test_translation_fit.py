"""Training translation: files in, a model out; more pairs from back-translation; wrong options."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmattn import load
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.translation.demo import make
from tests.tasks.runs import ask, read, run


def fit(folder: Path, options: str = "", command: str = "fit") -> Path:
    return run(command, folder, options, task="translation")


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for name, samples in (("train", make("train", 50)), ("val", make("val", 8)), ("more", make("train", 90)[50:])):
        (folder / f"{name}.en").write_text("".join(f"{sample.source}\n" for sample in samples))
        (folder / f"{name}.de").write_text("".join(f"{sample.target}\n" for sample in samples))
    return folder


def test_metrics_have_signatures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(tmp_path / "run", "--model.word_dropout 0.2 --model.label_smoothing 0.1")
    assert "padding" in capsys.readouterr().out
    metrics = read(folder / "metrics.json")
    assert 0 <= metrics["fit"]["padding_waste"] < 0.5
    assert metrics["fit"]["truncated_targets"] > 0, "the report says what is cut"
    assert set(metrics["validation"]) >= {"bleu", "chrf", "loss", "bleu_signature", "chrf_signature"}
    fit(folder, f"--checkpoint {folder}/model --model.num_beams 2", "test")
    assert "case:mixed" in read(folder / "metrics.json")["test"]["bleu_signature"]


@pytest.mark.parametrize("options", ["--data.shared_vocab false --data.tokenizer word", "--model.decoder lstm"])
def test_own_files_in_both_directions(options: str, parallel: Path, tmp_path: Path) -> None:
    own = f"--data.train {parallel}/train --data.val {parallel}/val --data.source_lang de --data.target_lang en"
    translator = load(fit(tmp_path / "run", f"{own} {options}") / "model", device="cpu")
    assert translator.processor.options == {"source_lang": "de", "target_lang": "en"}
    assert len(translator.predict([{"de": "droseti nusira"}])) == 1


def test_back_translation(parallel: Path, tmp_path: Path) -> None:
    """A reverse model turns text of the target language into sources; both are mixed into training."""
    own = f"--data.train {parallel}/train --data.val {parallel}/val"
    reverse = fit(tmp_path / "reverse", f"{own} --data.source_lang de --data.target_lang en")
    (tmp_path / "mono.de").write_text("".join(f"{sample.target}\n" for sample in make("val", 30)))
    files = ("--input", tmp_path / "mono.de", "--output", tmp_path / "mono.en")
    ask("predict", "--checkpoint", reverse / "model", *files, "--num_beams", 1, task="translation")
    sources = (tmp_path / "mono.en").read_text().split("\n")
    assert len(sources) == 31
    # A model that has learnt next to nothing may say nothing.
    (tmp_path / "mono.en").write_text("".join(f"{text or 'the'}\n" for text in sources[:-1]))
    folder = fit(tmp_path / "run", f"{own} --data.extra {tmp_path}/mono")
    assert read(folder / "run.json")["data"]["train"]["samples"] == 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.max_tokens 5", "max_tokens: expected at least"),
        ("--data.vocab_size 100", "vocab_size: byte-level BPE needs at least 260"),
        ("--model.word_dropout 1.5", "word_dropout: expected a value from 0"),
        ("--model.num_beams 0", "expected 1 or more"),
        ("--model.decoder lstm --model.memory mean", "a cross_attention alone"),
        ("--model.attention.kind slidingwindow", "sliding_window"),
    ],
)
def test_wrong_options(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path / "run", options)
