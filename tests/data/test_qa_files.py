"""Files of questions: SQuAD's JSON and tables, right and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmattn.tasks.qa.data import Answer, QADataset
from tests.conftest import refused

CONTEXT = "Ada wrote it in 1843. It was read by Ada."


def squad(*questions: dict[str, Any], context: Any = CONTEXT, version: str = "v2.0") -> str:
    rows = [{"id": str(n), "question": "Who wrote it?", **one} for n, one in enumerate(questions)]
    return json.dumps({"version": version, "data": [{"title": "t", "paragraphs": [{"context": context, "qas": rows}]}]})


def right(text: str = "Ada", start: int = 0) -> dict[str, Any]:
    return {"answers": [{"text": text, "answer_start": start}]}


def read(path: Path, text: str, **options: Any) -> QADataset:
    path.write_text(text, encoding="utf-8")
    return QADataset(path, **options)


def test_squad(tmp_path: Path) -> None:
    text = squad(right(), {"answers": [], "is_impossible": True}, {**right("1843", 16), "is_impossible": False})
    found = read(tmp_path / "a.json", text).samples
    assert [sample.answers for sample in found] == [[Answer("Ada", 0)], [], [Answer("1843", 16)]]
    assert found[0].title == "t"
    assert found[1].texts == [""]
    assert QADataset(tmp_path / "a.json").groups == [0, 0, 0]
    unlabeled = read(tmp_path / "b.json", squad({}), require_labels=False)
    assert unlabeled.samples[0].answers is None


BAD = [
    (squad(right("Eve")), "the answer 'Eve' at character 0, found 'Ada' there; which the context does not contain"),
    (squad(right("Ada", 3)), "'Ada' at character 3, found ' wr' there; which is at character 0"),
    (squad(right("Ada", -3)), "'Ada' at character -3"),
    (squad({"answers": []}), r"question 1 \(id '0'\): expected answers, or is_impossible: true, found neither"),
    (squad({**right(), "is_impossible": True}), "expected no answers of a question with is_impossible: true"),
    (squad({"answers": "Ada"}), "expected a list under answers"),
    (squad({"answers": [{"text": "Ada"}]}), "a whole number answer_start"),
    (squad(right(), context=" "), "expected a context that is not empty"),
    (squad(right(), context=None), "article 1, paragraph 1: expected a text under context"),
    (squad({**right(), "question": ""}), "expected a question that is not empty"),
    (squad({**right(), "id": "x"}, {**right(), "id": "x"}), "an id of its own"),
    ('{"version": "1.1"}', "expected the keys question and context and answer, found version"),
    ('{"data": 3}', "expected SQuAD's JSON"),
    ('{"data": [3]}', "article 1: expected a list under paragraphs"),
    ('{"data": [', "expected JSON"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_squad(text: str, message: str, tmp_path: Path) -> None:
    refused(message, read, tmp_path / "bad.json", text)


def test_bad_questions_are_excluded(tmp_path: Path) -> None:
    found = read(tmp_path / "a.json", squad(right("Eve"), right(), {"answers": []}), on_error="skip")
    assert [sample.id for sample in found.samples] == ["1"]
    assert len(found.skipped) == 2


def test_tables(tmp_path: Path) -> None:
    rows = "question,context,answer,start\nWho?,Ada and Ada,Ada,8\nWho?,Ada and Ada,Ada,\nWho?,Ada,,\n"
    found = read(tmp_path / "a.csv", rows).samples
    assert [sample.answers for sample in found] == [[Answer("Ada", 8)], [Answer("Ada", 0)], []]
    lines = [
        {"id": "x", "question": "Who?", "context": "Ada", "answer": None},
        {"question": "Q?", "context": "c", "answer": "c"},
    ]
    found = read(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines))).samples
    assert [(sample.id, sample.answers) for sample in found] == [("x", []), ("2", [Answer("c", 0)])]
    assert len(read(tmp_path / "c.json", "\n".join(map(json.dumps, lines)))) == 2
    pairs = QADataset([("Who?", "Ada wrote it.", "Ada")])
    assert pairs.samples[0].answers == [Answer("Ada", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\nWho?,Ada\n", "header: expected the column context"),
        ("question,context,answer\nWho?,Ada,Eve\n", "line 2: expected an answer that the context contains"),
        ("question,context,answer,start\nWho?,Ada,Ada,first\n", "line 2: expected the character at which"),
        ("question,context,answer,start\nWho?,Ada,Ada,1\n", "the answer 'Ada' at character 1"),
        ("question,context,answer\nWho?,,\n", "expected a context that is not empty"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    refused(message, read, tmp_path / "bad.csv", text)
