"""Files of parallel text and of summaries: formats, and errors that name file and line; options of summaries."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from mmattn.data.readers import read_lines
from mmattn.tasks.summarization.data import SummaryDataset, SummarySample
from mmattn.tasks.summarization.processor import SummaryProcessor
from mmattn.tasks.translation.data import TranslationDataset
from tests.data.files import bad_data, write

# Translation


def write_all(folder: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        write(folder / name, content)


def pairs(dataset: TranslationDataset) -> list[tuple[str, str]]:
    return [(sample.source, sample.target) for sample in dataset.samples]


EXPECTED = [("A dog.", 'Ein "Hund".'), ("Two cats.", "Zwei Katzen.")]
INNER = {"en": "Two cats.", "de": "Zwei Katzen."}


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"t.en": "A dog.\nTwo cats.\n", "t.de": 'Ein "Hund".\nZwei Katzen.'}, "t"),
        ({"t.en": "\ufeffA dog.\r\nTwo cats.\r\n", "t.de": 'Ein "Hund".\nZwei Katzen.\n'}, "t"),
        ({"t.v1.en": "A dog.\nTwo cats.\n", "t.v1.de": 'Ein "Hund".\nZwei Katzen.'}, "t.v1"),
        ({"t.tsv": 'A dog.\tEin "Hund".\nTwo cats.\tZwei Katzen.\n'}, "t.tsv"),
        ({"t.tsv": 'id\tde\ten\n1\tEin "Hund".\tA dog.\n\n2\tZwei Katzen.\tTwo cats.\n'}, "t.tsv"),
        ({"t.tsv": 'source\ttarget\nA dog.\tEin "Hund".\nTwo cats.\tZwei Katzen.\n'}, "t.tsv"),
        ({"t.jsonl": [{"en": "A dog.", "de": 'Ein "Hund".'}, {"translation": INNER, "id": 7}]}, "t.jsonl"),
        ({"t.jsonl": [{"source": a, "target": b} for a, b in EXPECTED]}, "t.jsonl"),
    ],
)
def test_formats(files: dict[str, object], path: str, tmp_path: Path) -> None:
    write_all(tmp_path, files)
    assert pairs(TranslationDataset(tmp_path / path)) == EXPECTED


def test_language_direction_and_line_separators(tmp_path: Path) -> None:
    write_all(tmp_path, {"t.en": "a\u2028b\x0bc\nd\n", "t.de": "A\nD\n"})
    assert pairs(TranslationDataset(tmp_path / "t", "de", "en")) == [("A", "a\u2028b\x0bc"), ("D", "d")]
    path = write(tmp_path / "t.jsonl", [{"en": "a", "de": "b", "references": ["b", "c"]}])
    assert TranslationDataset(path).samples[0].right_targets() == ["b", "c"]


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "t", r"t: expected the prefix of two files ending in .en and .de, .* found no .*t.en"),
        ({"t.en": "a\n"}, "t", r"found no .*t.de \(similar names: t.en\)"),
        (
            {"t.en": "a\nb\n", "t.de": "a\n"},
            "t",
            r"t.en and .*t.de: expected the same number of lines in both, found 2 and 1",
        ),
        ({"t.en": "a\n \n", "t.de": "a\nb\n"}, "t", r"t.en, line 2: expected a sentence, found an empty line"),
        ({"t.en": "a\nb\n", "t.de": "a\n\n"}, "t", r"t.de, line 2: expected a sentence, found an empty line"),
        ({"t.en": b"a\nb\xff\n", "t.de": "a\nb\n"}, "t", r"t.en, line 2: expected UTF-8 text, found the byte 0xff"),
        ({"t.en": "", "t.de": ""}, "t", "expected at least one pair, found none"),
        ({"t.tsv": "a\tb\nc\n"}, "t.tsv", "t.tsv, line 2: expected 2 columns, found 1"),
        ({"t.tsv": "a\tb\tc\n"}, "t.tsv", "t.tsv, line 1: expected two columns, or a header .* found 3 columns"),
        ({"t.jsonl": [INNER, {"en": "a"}]}, "t.jsonl", "t.jsonl, line 2: expected the keys en and de, .*en"),
        ({}, "t.tsv", r"t.tsv: expected a text file, found no such file"),
    ],
)
def test_errors_name_file_and_line(files: dict[str, object], path: str, message: str, tmp_path: Path) -> None:
    write_all(tmp_path, files)
    bad_data(message, TranslationDataset, tmp_path / path)


def test_invalid_lines_can_be_skipped(tmp_path: Path) -> None:
    write_all(tmp_path, {"t.en": "a\n\nc\n", "t.de": "A\nB\n\n", "u.en": "a\nb\n", "u.de": "A\n"})
    dataset = TranslationDataset(tmp_path / "t", on_error="skip")
    assert (pairs(dataset), len(dataset.skipped)) == ([("a", "A")], 2)
    # The pairing of the lines is unknown.
    bad_data("the same number of lines", TranslationDataset, tmp_path / "u", on_error="skip")


def test_read_lines(tmp_path: Path) -> None:
    write_all(tmp_path, {"a": "x\n\ny", "b": "\n", "c": b""})
    assert [read_lines(tmp_path / name) for name in "abc"] == [["x", "", "y"], [""], []]


def test_multi30k(real_data: Path) -> None:
    assert len(TranslationDataset(real_data / "multi30k_en_de" / "val")) == 1014


# Summarization

ROWS = [
    {"id": "a", "document": "Rain fell. The pump broke.", "summary": "pump broke"},
    {"id": "b", "document": "It was calm.\nA ship came in.", "summary": "ship", "references": ["ship", "ship in"]},
]


def test_jsonl_and_csv_are_equivalent(tmp_path: Path) -> None:
    dataset = SummaryDataset(write(tmp_path / "a.jsonl", ROWS))
    found = dataset.samples
    assert [(s.id, s.source, s.target) for s in found] == [(r["id"], r["document"], r["summary"]) for r in ROWS]
    assert [s.right_targets() for s in found] == [["pump broke"], ["ship", "ship in"]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "document", "summary", "references"])
        table.writeheader()
        table.writerows({**row, "references": json.dumps(row.get("references", []))} for row in ROWS)
    assert SummaryDataset(tmp_path / "a.csv").fingerprint() == dataset.fingerprint()


def test_missing_summary(tmp_path: Path) -> None:
    """A reference replaces it, and it is not required for prediction."""
    path = write(tmp_path / "a.jsonl", [{"document": "It rained.", "references": ["rain", "wet"]}])
    sample = SummaryDataset(path).samples[0]
    assert (sample.id, sample.target, sample.references) == ("1", "rain", ["rain", "wet"])
    path = write(tmp_path / "a.jsonl", [{"document": "It rained."}])
    assert SummaryDataset(path, require_labels=False).samples[0].target == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"documnt": "x", "summary": "y"},
            r"line 2: expected the key document, .*mean 'document' instead of 'documnt'",
        ),
        ({"document": "x"}, r"line 2: expected the key summary, found document"),
        ({"document": "x", "summary": "y", "references": "z"}, r"line 2: expected references that are a list of texts"),
        ({"document": "x", "summary": "y", "references": ["z", 1]}, r"line 2: expected references that are a list"),
    ],
)
def test_invalid_line_raises_or_is_skipped(tmp_path: Path, row: dict, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row, ROWS[1]])
    bad_data(message, SummaryDataset, path)
    rest = SummaryDataset(path, on_error="skip")
    assert [sample.id for sample in rest.samples] == ["a", "b"]
    assert len(rest.skipped) == 1


def test_invalid_file_raises(tmp_path: Path) -> None:
    bad_data(r"none\.jsonl: expected a file", SummaryDataset, tmp_path / "none.jsonl")
    text, table = write(tmp_path / "a.txt", "x"), write(tmp_path / "a.csv", "text,summary\nx,y\n")
    bad_data(r"a\.txt: expected a \.jsonl, \.csv or \.tsv file", SummaryDataset, text)
    bad_data(r"a\.csv, header: expected the column document, found text, summary", SummaryDataset, table)


def test_duplicates_are_removed(tmp_path: Path) -> None:
    rows = [{"id": n, "document": "d" if n < 3 else "e", "summary": "s" if n != 1 else "t"} for n in range(5)]
    dataset = SummaryDataset(write(tmp_path / "a.jsonl", rows))
    assert [sample.id for sample in dataset.without_repeats().samples] == ["0", "1", "3"]
    assert len(dataset) == 5


def test_summary_batch(tmp_path: Path) -> None:
    given = SummaryDataset([SummarySample(row["id"], row["document"], row["summary"]) for row in ROWS])
    processor = SummaryProcessor.fit(given, vocab_size=300, max_source_len=8, max_target_len=6)
    samples = [SummarySample("1", "A ship came in. It was calm.", "ship in"), SummarySample("2", "Rain fell.", "rain")]
    batch = processor.collate(samples)
    assert batch.source_ids.shape == (2, 8)
    assert torch.equal(batch.copy_ids, batch.source_ids)
    tokens = processor.document_tokens(samples[0].source)
    starts = [samples[0].source[tokens[i][0] :] for i in batch.sentence_starts[0].tolist() if i >= 0]
    assert all(start.startswith(("A ship", "It was")) for start in starts)
    assert batch.sentence_starts[1].tolist()[:1] == [0]
    whole = [processor.source.length(sample.source) for sample in samples]
    assert batch.cut.tolist() == [max(0, length - 7) for length in whole]
    assert processor.count_truncated(samples) == (sum(length > 7 for length in whole), 0)
    hidden, dots = processor.ablate(batch, "source"), processor.collate([SummarySample("0", ".", "x")] * 2)
    processor.save(tmp_path / "p")
    again = SummaryProcessor.load(tmp_path / "p").collate(samples)
    for name in ("source_ids", "copy_ids", "sentence_starts", "cut"):
        assert torch.equal(getattr(hidden, name), getattr(dots, name))
        assert torch.equal(getattr(again, name), getattr(batch, name))


def test_aeslc(real_data: Path) -> None:
    dataset = SummaryDataset(real_data / "aeslc" / "val.jsonl")
    assert len(dataset) == 1960
    assert all(sample.references[0] == sample.target for sample in dataset.samples)
