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


def test_empty_cells_of_conll(tmp_path: Path) -> None:
    path = write(tmp_path, "a.conll", "Ada\tB-x\nran\t\n")
    refused("line 2: expected 2 columns, the first a word and the last its tag, none of them empty", TextDataset, path)


def test_files_of_bad_items_alone(tmp_path: Path) -> None:
    """The error names the first of them."""
    path = write(tmp_path, "a.csv", "text,label\n,a\n ,b\n")
    message = refused("found none .2 invalid ones excluded.; ", TextDataset, path, on_error="skip")
    assert "a.csv, line 2: expected a text that is not empty, found ''" in message
