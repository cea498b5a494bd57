"""Training summarization: files in, a model out that searches as it was measured; the baselines; wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmattn import load
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.summarization.demo import make
from tests.tasks.runs import read, run


def fit(folder: Path, options: str = "", command: str = "fit") -> Path:
    return run(command, folder, options, task="summarization")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, samples in (("train", make("train", size=30)), ("val", make("val", size=4))):
        rows = [{"document": s.source, "summary": s.target, "references": [s.target, "Nothing."]} for s in samples]
        rows += rows[:5] if name == "train" else []
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_own_files(files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = f"--data.train {files}/train.jsonl --data.val {files}/val.jsonl"
    folder = fit(tmp_path / "run", f"{own} --data.drop_repeats true --model.salience 0.5 --model.frequencies true")
    assert "5 repeated documents" in caplog.text
    metrics = read(folder / "metrics.json")
    assert {"words", "salience", "padding_waste"} <= set(metrics["fit"])
    found = metrics["validation"]
    assert found["rouge1"] >= found["rouge1_first"]
    assert "Porter" in found["rouge_signature"]


def test_the_model_searches_as_it_was_measured(tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", "--model.num_beams 3 --model.consensus true --model.length_penalty 0.0")
    summarizer = load(folder / "model", device="cpu")
    wanted = {"num_beams": 3, "length_penalty": 0.0, "consensus": True}
    assert summarizer.processor.options["search"] == wanted
    samples = make("test", size=4)
    written = [one.summary for one in summarizer.predict(samples)]
    assert written == [one.summary for one in summarizer.predict(samples, **wanted)]
    plain = summarizer.predict(samples, consensus=False)
    assert all(one.score >= other.score for one, other in zip(plain, summarizer.predict(samples), strict=True))


def test_long_documents_train(tmp_path: Path) -> None:
    window = "--model.attention.kind sliding_window --model.attention.window 4"
    folder = fit(tmp_path / "run", f"--model.hierarchical false --model.global_tokens sentences {window}")
    assert read(folder / "metrics.json")["fit"]["steps"] > 0
    fit(folder, f"--checkpoint {folder}/model", "test")
    assert "rougeL" in read(folder / "metrics.json")["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.salience 0.5 --model.copy false", "salience: expected 0, or above where the model copies"),
        ("--model.memory mean", "leaves no tokens to copy"),
        ("--model.global_tokens first", "global_tokens to none"),
        ("--data.shared_vocab false", "one language"),
    ],
)
def test_wrong_options(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path / "run", options)
