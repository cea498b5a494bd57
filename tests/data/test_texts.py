"""Sentences of a text, and out of the files of other tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmattn.data.text.sentences import read_sentences, split_sentences
from tests.data.files import bad_data

SQUAD = {"data": [{"paragraphs": [{"context": "It rained. We left.", "qas": [{"answers": [{"text": "rained"}]}]}] * 2}]}
COCO = {"annotations": [{"image_id": 1, "caption": "A dog runs."}, {"image_id": 1, "caption": "A dog plays."}]}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("plain.en", "A dog runs.\n\nIt is no. 5. It wins!\n", ["A dog runs.", "It is no. 5.", "It wins!"]),
        ("squad.json", json.dumps(SQUAD), ["It rained.", "We left."]),
        ("coco.json", json.dumps(COCO), ["A dog runs.", "A dog plays."]),
        ("mails.jsonl", '{"document": "Hi. It is me.", "summary": "me"}\n{"id": 4}\n', ["Hi.", "It is me."]),
        ("clips.csv", "audio,text\na.wav,take the pen\n", ["take the pen"]),
    ],
)
def test_sentences_of_each_format(name: str, content: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_sentences(tmp_path / name) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", '{"data": [1, "x"]}', "expected texts under context or caption, found none"),
        ("none.jsonl", '{"id": "x"}\n', "expected texts under text or document or caption, found none"),
        ("broken.jsonl", '{"text": "x"}\n{"text"\n', r"broken\.jsonl, line 2"),
        ("empty", "", "an empty file"),
    ],
)
def test_a_file_without_texts_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    bad_data(message, read_sentences, tmp_path / name)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("At no. 5 it rained.", ["At no. 5 it rained."]),
        ("He said so. but quietly.", ["He said so. but quietly."]),
        ("Dr. Who came.\nThen\n\nnothing", ["Dr. Who came.", "Then", "nothing"]),
        ("  a  ", ["a"]),
        ("3.5 tons. 4 left.", ["3.5 tons.", "4 left."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == sentences
