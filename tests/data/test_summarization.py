"""Summaries from files: formats, errors that name file and line, sentences, truncation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from mmattn.tasks.summarization.data import SummaryDataset, SummarySample
from mmattn.tasks.summarization.processor import SummaryProcessor
from tests.data.files import bad_data

ROWS = [
    {"id": "a", "document": "Rain fell. The pump broke.", "summary": "pump broke"},
    {"id": "b", "document": "It was calm.\nA ship came in.", "summary": "ship", "references": ["ship", "ship in"]},
]


def write(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def processor() -> SummaryProcessor:
    samples = [SummarySample(row["id"], row["document"], row["summary"]) for row in ROWS]
    return SummaryProcessor.fit(SummaryDataset(samples), vocab_size=300, max_source_len=8, max_target_len=6)


def test_jsonl(tmp_path: Path) -> None:
    found = SummaryDataset(write(tmp_path / "a.jsonl", ROWS)).samples
    assert [(s.id, s.source, s.target) for s in found] == [(r["id"], r["document"], r["summary"]) for r in ROWS]
    assert [s.right_targets() for s in found] == [["pump broke"], ["ship", "ship in"]]


def test_csv_is_the_same(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "document", "summary", "references"])
        table.writeheader()
        table.writerows({**row, "references": json.dumps(row.get("references", []))} for row in ROWS)
    by_csv = SummaryDataset(tmp_path / "a.csv")
    assert by_csv.fingerprint() == SummaryDataset(write(tmp_path / "a.jsonl", ROWS)).fingerprint()


def test_references_stand_in_for_a_summary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"document": "It rained.", "references": ["rain", "wet"]}])
    sample = SummaryDataset(path).samples[0]
    assert (sample.id, sample.target, sample.references) == ("1", "rain", ["rain", "wet"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"bad\.jsonl, line 2: expected a JSON object"),
        ("[1]", r"bad\.jsonl, line 2: expected a JSON object"),
        ({"documnt": "x", "summary": "y"}, r"line 2: expected the key document, .*mean 'document' by 'documnt'"),
        ({"document": "x"}, r"line 2: expected the key summary, found document"),
        ({"document": " ", "summary": "y"}, r"line 2: expected a source that is not empty"),
        ({"document": "x", "summary": " "}, r"line 2: expected a target that is not empty"),
        ({"document": 3, "summary": "y"}, r"line 2: expected a source text, found 3"),
        ({"document": "x", "summary": ["y"]}, r"line 2: expected a target text"),
        ({"document": "x", "summary": "y", "references": "z"}, r"line 2: expected references that are a list of texts"),
        ({"document": "x", "summary": "y", "references": ["z", 1]}, r"line 2: expected references that are a list"),
        ({"document": "x", "summary": "y", "references": ["z", " "]}, r"2: expected a reference that is not empty"),
        ({"document": "x", "summary": "y", "id": "a"}, r"line 2: expected an id of its own, found 'a', which .*line 1"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, row: dict | str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row, ROWS[1]])
    bad_data(message, SummaryDataset, path)
    rest = SummaryDataset(path, on_error="skip")
    assert [sample.id for sample in rest.samples] == ["a", "b"]
    assert len(rest.skipped) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"none\.jsonl: expected a file"),
        ("a.txt", "x", r"a\.txt: expected a \.jsonl, \.csv or \.tsv file"),
        ("a.csv", "text,summary\nx,y\n", r"a\.csv, header: expected the column document, found text, summary"),
    ],
)
def test_a_bad_file_is_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    bad_data(message, SummaryDataset, tmp_path / name)


def test_summaries_may_be_missing_where_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"document": "It rained."}])
    assert SummaryDataset(path, require_labels=False).samples[0].target == ""


def test_repeats(tmp_path: Path) -> None:
    rows = [{"id": n, "document": "d" if n < 3 else "e", "summary": "s" if n != 1 else "t"} for n in range(5)]
    dataset = SummaryDataset(write(tmp_path / "a.jsonl", rows))
    assert [sample.id for sample in dataset.without_repeats().samples] == ["0", "1", "3"]
    assert len(dataset) == 5


def test_batch(processor: SummaryProcessor, tmp_path: Path) -> None:
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
