"""Faulty and unusual files of texts with labels: what is repaired, and what ends in an error that names its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmattn.tasks.common import check
from mmattn.tasks.common.task import tasks
from mmattn.tasks.text_classification.data import TextDataset, TextSample
from mmattn.tasks.text_classification.processor import TextClassificationProcessor, check_labels, fit_labels
from mmattn.tasks.text_classification.sampling import next_sentences
from tests.conftest import refused
from tests.data.test_text_classification_data import CONLLU, write

ACCENT = "e\u0301"  # a letter and its accent apart, as macOS writes them


def test_accents_of_labels_are_composed(tmp_path: Path) -> None:
    """A tag is the same label whether or not its accents are composed."""
    data = TextDataset(write(tmp_path, "a.conll", f"caf{ACCENT} B-{ACCENT}\nnot O\n\nthe B-\u00e9\n"))
    assert [sample.labels for sample in data.samples] == [["B-\u00e9", "O"], ["B-\u00e9"]]
    given = TextDataset([TextSample("0", "a b", words=["a", "b"], labels=[ACCENT, "O"])])
    processor = TextClassificationProcessor.fit(given)
    assert processor.labels == ["O", "\u00e9"]
    assert processor.collate(given.samples).targets[""][1].tolist() == [[1, 0]]


def test_first_sentence_right_below_a_document(tmp_path: Path) -> None:
    data = TextDataset(write(tmp_path, "a.conll", "-DOCSTART- O\nAda B-x\nran O\n\n-DOCSTART- O\n\nno O\n"))
    assert [sample.words for sample in data.samples] == [["Ada", "ran"], ["no"]]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """They are no classes beside scores; underscores are no part of a number."""
    path = write(tmp_path, "a.csv", "text,label\nx,0.5\ny,nan\nz,1e300\nw,2.5\n")
    refused("line 3: expected a score, a finite number of magnitude below .*, found 'nan'", TextDataset, path)
    found = TextDataset(path, on_error="skip")
    assert (found.kind, len(found), len(found.skipped)) == ("regression", 2, 2)
    path = write(tmp_path, "a.jsonl", '{"text": "x", "label": NaN}\n{"text": "y", "label": 2.5}\n')
    refused("line 1: expected a score, a finite number", TextDataset, path)
    assert TextDataset([("x", "1_0"), ("y", "2.5")]).kind == "single_label"
    refused("expected a score, a finite number", TextDataset, [TextSample("0", "x", score=float("inf"))])


def test_empty_cells_of_conll(tmp_path: Path) -> None:
    path = write(tmp_path, "a.conll", "Ada\tB-x\nran\t\n")
    refused("line 2: expected 2 columns, the first a word and the last its tag, none of them empty", TextDataset, path)


def test_files_of_bad_items_alone(tmp_path: Path) -> None:
    """The error names the first of them."""
    path = write(tmp_path, "a.csv", "text,label\n,a\n ,b\n")
    message = refused("found none .2 invalid ones excluded.; ", TextDataset, path, on_error="skip")
    assert "a.csv, line 2: expected a text that is not empty, found ''" in message


def test_division_keeps_every_label_in_training(tmp_path: Path) -> None:
    """A tag that occurs in one sentence is not held out; without two sentences of a tag the error says so."""
    rows = [{"words": [f"w{n}", "x"], "tags": [f"T{n}" if n % 2 else "T", "O"]} for n in range(20)]
    data = TextDataset(rows)
    for seed in range(5):
        train, val = data.divided(seed)
        assert len(train) + len(val) == 20
        assert len(val) > 0
        check_labels(val, fit_labels(train))
    several = TextDataset({"one": [("a", "x"), ("b", "y")], "two": [("c", "x"), ("d", "x"), ("e", "y")]})
    assert [sample.task for sample in several.divided(0)[1].samples] == ["two"]
    path = write(tmp_path, "a.csv", "text,label\na,x\nb,y\n")
    message = refused("expected two texts of a label, to hold one out for validation", TextDataset(path).divided, 0)
    assert str(path) in message
    scores = TextDataset([{"text": str(n), "score": n / 2} for n in range(3)])
    assert [len(part) for part in scores.divided(0)] == [2, 1]


def test_column_of_tags(tmp_path: Path) -> None:
    """A column of CoNLL-U is also given as that of the labels; other names are those of other files."""
    path = write(tmp_path, "a.conllu", CONLLU)
    assert TextDataset(path, columns={"label": "xpos"}).samples[0].labels == ["VB", "RB", "VB"]
    assert TextDataset(path, columns={"label": "topic"}).samples[0].labels == ["AUX", "PART", "VERB"]


def test_labels_name_their_file_and_task(tmp_path: Path) -> None:
    one = write(tmp_path, "one.csv", "text,label\na,x\nb,x\n")
    refused("one.csv: labels: expected at least 2 different ones", fit_labels, TextDataset(one))
    two = write(tmp_path, "two.csv", "text,label\na,x\nb,y\n")
    refused(", task bad: labels: expected at least 2", fit_labels, TextDataset({"good": two, "bad": one}))
    plain = write(tmp_path, "lines.txt", "a line\n")
    refused(", task none: expected labels, found plain text", fit_labels, TextDataset({"good": two, "none": plain}))
    refused("lines.txt: expected at least two lines of text, found 1", next_sentences, TextDataset(plain), 0)


def test_items_with_unknown_labels_have_no_target() -> None:
    """The labels of items that are predicted need not be those of the model."""
    data = TextDataset([("a", "x"), ("b", "y")])
    processor = TextClassificationProcessor.fit(data)
    rows, targets = processor.collate([TextSample("0", "a", labels=["z"]), *data.samples]).targets[""]
    assert (rows.tolist(), targets.tolist()) == ([1, 2], [0, 1])


def test_check_finds_what_fit_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown label in validation is a bad item; training data of one label end in an error."""
    train = write(tmp_path, "train.csv", "text,label\na,good\nb,bad\n")
    val = write(tmp_path, "val.csv", "text,label\nc,goood\nd,bad\n")
    task = tasks()["text_classification"]
    assert not check.run(task, ["--data.train", str(train), "--data.val", str(val)])
    assert "val.csv, line 2: expected one of the 2 labels of the training data" in capsys.readouterr().out
    one = write(tmp_path, "one.csv", "text,label\na,good\nb,good\n")
    refused("one.csv: labels: expected at least 2 different ones", check.run, task, [str(one)])
