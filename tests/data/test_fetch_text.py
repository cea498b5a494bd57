"""The public text sets against a server on loopback: converted as documented, or one clear error."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmattn.data.errors import Problems
from mmattn.data.readers import read_rows
from mmattn.tasks.translation.data import TranslationDataset
from scripts.fetch.archive import FetchError, digest, sources
from tests.conftest import refused
from tests.data.fetching import get, measured_on, nothing_left


def packed(text: str) -> bytes:
    return gzip.compress(text.encode())


MULTI30K = {
    f"data/task1/raw/{part}.{language}.gz": packed(text)
    for part in ("train", "val", "test_2016_flickr")
    for language, text in (("en", "A dog.\nTwo  cats.\n"), ("de", "Ein Hund. \nZwei\tKatzen\u00a0.\n"))
} | {"data/task1/raw/train.fr.gz": packed("Un chien.\n"), "README.md": b"no"}
AESLC = {
    "enron_subject_line/train/b_1.subject": b"Hello  all,\nthe  plan.\n\n@subject\nThe plan",
    "enron_subject_line/train/a_1.subject": "Café\n\n@subject\nMenu \n".encode(),
    "enron_subject_line/train/c_1.subject": b"\n\n@subject\nNothing",
    "enron_subject_line/dev/d_1.subject": b"Body.\n\n@subject\nOne\n\n@ann0\nTwo  words\n\n@ann1\nThree\n\n@ann2\nFour",
    "enron_subject_line/test/e_1.subject": b"Body.\n\n@subject\nOne\n\n@ann0\nTwo",
}


def test_multi30k(tmp_path: Path) -> None:
    folder = get("multi30k_en_de", MULTI30K, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "SOURCE.json", "test.de", "test.en", "train.de", "train.en", "val.de", "val.en"
    ]  # fmt: skip
    assert (folder / "train.de").read_bytes() == b"Ein Hund.\nZwei Katzen .\n"
    samples = TranslationDataset(folder / "train").samples
    assert [(s.source, s.target) for s in samples] == [("A dog.", "Ein Hund."), ("Two cats.", "Zwei Katzen .")]


def test_aeslc(tmp_path: Path) -> None:
    folder = get("aeslc", AESLC, tmp_path)
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert train == [
        {"id": "a_1", "document": "Café", "summary": "Menu"},
        {"id": "b_1", "document": "Hello  all,\nthe  plan.", "summary": "The plan"},
    ]
    (val,) = [row for _, _, row in read_rows(folder / "val.jsonl", Problems())]
    assert val["references"] == ["One", "Two words", "Three", "Four"]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("multi30k_en_de", {k: v for k, v in MULTI30K.items() if "val.de" not in k}, r"lines of val, found \[2, 0\]"),
        ("multi30k_en_de", MULTI30K | {"data/task1/raw/val.de.gz": packed("Eins.\n")}, r"found \[2, 1\]"),
        ("multi30k_en_de", MULTI30K | {"data/task1/raw/val.de.gz": b"no gzip"}, "val.de.gz is no gzip"),
        ("aeslc", {k: v for k, v in AESLC.items() if "dev" not in k}, "no mails of val"),
    ],
)
def test_another_content_than_expected(name: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    refused(message, get, name, files, tmp_path / "out", error=FetchError)
    assert nothing_left(tmp_path / "out")


def test_changed_content_is_refused(tmp_path: Path) -> None:
    refused(
        r"train.en has sha256 .*, expected f7cb7c7d411f",
        get,
        "multi30k_en_de",
        MULTI30K,
        tmp_path / "out",
        error=FetchError,
        checked=True,
    )
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("name", ["multi30k_en_de", "aeslc"])
def test_what_is_there_is_what_the_table_says(name: str, real_data: Path) -> None:
    given = measured_on(real_data, name)
    for file, expected in sources()[name].sha256.items():
        assert digest(given / file) == expected
