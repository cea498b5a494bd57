"""Files from users: many lines in order, empty and very long lines, invalid bytes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmattn.data.errors import DataError
from mmattn.tasks.common.checkpoint import save_directory
from mmattn.tasks.summarization.data import SummaryDataset
from mmattn.tasks.summarization.demo import make
from mmattn.tasks.summarization.model import SummarizationModel
from mmattn.tasks.summarization.processor import SummaryProcessor
from tests.conftest import refused
from tests.tasks.runs import ROOT, ask, lines as answers, write_lines


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained summarizer."""
    dataset = SummaryDataset(make("train", size=20))
    processor = SummaryProcessor.fit(dataset, vocab_size=300, max_source_len=40, max_target_len=6)
    keywords = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    keywords |= processor.sizes()
    given = {"model": SummarizationModel(**keywords), "keywords": keywords, "processor": processor}
    return save_directory(tmp_path_factory.mktemp("tiny") / "model", task="summarization", **given)


@pytest.fixture
def predict(tiny: Path) -> Callable[..., None]:
    def call(*words: object) -> None:
        ask("predict", *words, "--checkpoint", tiny, "--num_beams", 1, task="summarization")

    return call


def table(path: Path, documents: list[str]) -> Path:
    return write_lines(path, ({"id": str(n), "document": text} for n, text in enumerate(documents)))


def test_a_thousand_lines_in_order(predict: Callable[..., None], tmp_path: Path) -> None:
    documents = [f"{'the old ship sails. ' * (1 + 7 * n % 5)}{n}" for n in range(1000)]
    predict("--input", table(tmp_path / "in.jsonl", documents), "--output", tmp_path / "out")
    found = answers(tmp_path / "out")
    assert [row["id"] for row in found] == [str(n) for n in range(1000)]
    predict("--input", table(tmp_path / "some.jsonl", documents[39::-1]), "--output", tmp_path / "some")
    scores = [row["score"] for row in answers(tmp_path / "some")]
    assert [row["score"] for row in found[39::-1]] == pytest.approx(scores, abs=2e-4)
    assert len(set(scores)) > 5, "each line is the summary of its own document"


def test_line_of_100_000_characters_is_truncated(
    predict: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ["x" * 100_000, "a b " * 25_000, "a." + " " * 100_000 + "b", "Mr. " * 25_000, "\n" * 100_000 + "a"]
    predict("--input", table(tmp_path / "in.jsonl", ["a ship"]), "--output", tmp_path / "alone")
    begun = time.process_time()
    path = table(tmp_path / "in.jsonl", ["a ship", *long, "a ship"])
    predict("--input", path, "--output", tmp_path / "out")
    assert time.process_time() - begun < 30
    found = answers(tmp_path / "out")
    assert found[0]["summary"] == found[6]["summary"] == answers(tmp_path / "alone")[0]["summary"]
    assert [row["tokens_cut"] > 0 for row in found] == [False, *[True] * 5, False]
    stderr = capsys.readouterr().err
    assert stderr.count("longer than 40 tokens") == 1
    assert "5 of the documents" in stderr


def test_empty_document_raises(
    predict: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = table(tmp_path / "in.jsonl", ["a ship", " ", "a ship"])
    path.write_text(path.read_text().replace("}\n", "}\n\n"))  # empty lines between them are skipped
    with pytest.raises(DataError, match=r"in\.jsonl, line 3: expected a document, a text that is not empty, found ' '"):
        predict("--input", path)
    assert capsys.readouterr().out == ""
    predict("--input", path, "--on_error", "skip")
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["0", "2"]
    assert "excluded 1 bad item, kept 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"document": "a"}\n{"document": "\xff"}\n', r"in\.jsonl, line 2: expected UTF-8 text"),
        ("in.csv", b"document\na\nb \xff\n", r"in\.csv, line 3: expected UTF-8 text"),
        ("in.txt", b"a\n\xff\n", r"in\.txt, line 2: expected UTF-8 text, found the byte 0xff"),
    ],
)
def test_invalid_utf8(name: str, content: bytes, message: str, predict: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out").write_text("as it was")
    refused(message, predict, "--input", tmp_path / name, "--output", tmp_path / "out", error=DataError)
    assert (tmp_path / "out").read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "out"]


def test_progress_bar_and_output_are_separate(tiny: Path, tmp_path: Path) -> None:
    """On a terminal with stdout redirected to a file: the bar on the terminal, predictions in the file."""
    pytest.importorskip("rich")
    path = table(tmp_path / "in.jsonl", ["a ship sails"] * 100)
    words = f"-m tasks.summarization predict --input {path} --checkpoint {tiny} --num_beams 1 --device cpu".split()
    terminal, child = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=one_thread, stdout=out, stderr=child)
        os.close(child)
        seen = b""
        while True:
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
    os.close(terminal)
    assert done.wait() == 0
    assert b"predicting" in seen
    assert b"100%" in seen
    assert len(answers(tmp_path / "out")) == 100
