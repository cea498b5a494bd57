"""Faulty and unusual files of texts with labels: what is repaired, and what ends in an error that names its place."""

from __future__ import annotations

from pathlib import Path

from mmattn.tasks.text_classification.data import TextDataset, TextSample
from mmattn.tasks.text_classification.processor import TextClassificationProcessor
from tests.conftest import refused
from tests.data.test_text_classification_data import write

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


def test_items_with_unknown_labels_have_no_target() -> None:
    """The labels of items that are predicted need not be those of the model."""
    data = TextDataset([("a", "x"), ("b", "y")])
    processor = TextClassificationProcessor.fit(data)
    rows, targets = processor.collate([TextSample("0", "a", labels=["z"]), *data.samples]).targets[""]
    assert (rows.tolist(), targets.tolist()) == ([1, 2], [0, 1])
