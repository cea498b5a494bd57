"""The formats of parallel text, and the errors that name file and line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mmattn.data.readers import read_lines
from mmattn.tasks.translation.data import TranslationDataset
from tests.data.files import bad_data


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pairs(dataset: TranslationDataset) -> list[tuple[str, str]]:
    return [(sample.source, sample.target) for sample in dataset.samples]


def lines(*rows: dict[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


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
        ({"t.jsonl": lines({"en": "A dog.", "de": 'Ein "Hund".'}, {"translation": INNER, "id": 7})}, "t.jsonl"),
        ({"t.jsonl": lines(*({"source": a, "target": b} for a, b in EXPECTED))}, "t.jsonl"),
    ],
)
def test_formats(files: dict[str, str], path: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert pairs(TranslationDataset(tmp_path / path)) == EXPECTED


def test_languages_choose_the_direction_and_line_feeds_alone_part_lines(tmp_path: Path) -> None:
    write(tmp_path, {"t.en": "a\u2028b\x0bc\nd\n", "t.de": "A\nD\n"})
    assert pairs(TranslationDataset(tmp_path / "t", "de", "en")) == [("A", "a\u2028b\x0bc"), ("D", "d")]
    write(tmp_path, {"t.jsonl": lines({"en": "a", "de": "b", "references": ["b", "c"]})})
    assert TranslationDataset(tmp_path / "t.jsonl").samples[0].right_targets() == ["b", "c"]


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "t", r"t: expected the prefix of two files ending in .en and .de, .* found no .*t.en"),
        ({"t.en": "a\n"}, "t", r"found no .*t.de \(there are: t.en\)"),
        ({"t.en": "a\nb\n", "t.de": "a\n"}, "t", r"t.en and .*t.de: expected as many lines in both, found 2 and 1"),
        ({"t.en": "a\n \n", "t.de": "a\nb\n"}, "t", r"t.en, line 2: expected a sentence, found an empty line"),
        ({"t.en": "a\nb\n", "t.de": "a\n\n"}, "t", r"t.de, line 2: expected a sentence, found an empty line"),
        ({"t.en": b"a\nb\xff\n", "t.de": "a\nb\n"}, "t", r"t.en, line 2: expected UTF-8 text, found the byte 0xff"),
        ({"t.en": "", "t.de": ""}, "t", "expected at least one pair, found none"),
        ({"t.tsv": "a\tb\nc\n"}, "t.tsv", "t.tsv, line 2: expected 2 columns, found 1"),
        ({"t.tsv": "a\tb\tc\n"}, "t.tsv", "t.tsv, line 1: expected two columns, or a first line .* found 3 columns"),
        ({"t.tsv": "a\tb\nc\t \n"}, "t.tsv", "t.tsv, line 2: expected a target that is not empty"),
        ({"t.jsonl": '{"en": "a", "de": "b"}\n{"en": "a"}\n'}, "t.jsonl", "line 2: expected the keys en and de, .*en"),
        ({"t.jsonl": '{"en": "a", "de": "b"}\n{"en": 3, "de": "b"}\n'}, "t.jsonl", "line 2: expected a source text"),
        ({"t.jsonl": '{"en": "a", "de": "b"}\nnonsense\n'}, "t.jsonl", "line 2: expected a JSON object"),
        ({"t.jsonl": b'{"en": "a\xff", "de": "b"}\n'}, "t.jsonl", "line 1: expected UTF-8 text"),
        ({"t.jsonl": lines(INNER | {"id": 1}, INNER | {"id": 1})}, "t.jsonl", "line 2: expected an id of its own"),
        ({}, "t.tsv", r"t.tsv: expected a text file, found no such file"),
    ],
)
def test_errors_name_file_and_line(files: dict[str, str], path: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    bad_data(message, TranslationDataset, tmp_path / path)


def test_bad_lines_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"t.en": "a\n\nc\n", "t.de": "A\nB\n\n"})
    with caplog.at_level(logging.WARNING):
        dataset = TranslationDataset(tmp_path / "t", on_error="skip")
    assert pairs(dataset) == [("a", "A")]
    assert "left out 2 bad items, kept 1" in caplog.text
    write(tmp_path, {"u.en": "a\nb\n", "u.de": "A\n"})
    bad_data("as many lines", TranslationDataset, tmp_path / "u", on_error="skip")


def test_lines_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": "x\n\ny", "b": "\n", "c": b""})
    assert [read_lines(tmp_path / name) for name in "abc"] == [["x", "", "y"], [""], []]


def test_multi30k(real_data: Path) -> None:
    assert len(TranslationDataset(real_data / "multi30k_en_de" / "val")) == 1014
