"""CSV, TSV and JSONL of questions, right and wrong: each wrong line ends in one error that names file and line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.vqa.data import VQADataset
from tests.data.files import bad_data


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("7.png", "8.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path


def test_csv_tsv_and_jsonl(folder: Path) -> None:
    table = (
        'id,Image,question,answer,regions\nq1,images/7.png,"is it red,\nor blue?",red,\n\n'
        '5,images/8.jpg,é?,é,"[[0, 0, 1, 1]]"\n'
    )
    for path in (
        write(folder / "a.csv", "\ufeff" + table),
        write(
            folder / "b.tsv",
            'image\tquestion\tanswer\tid\nimages/7.png\t"is it red,\nor blue?"\tred\tq1\nimages/8.jpg\té?\té\t5',
        ),
        write(
            folder / "c.jsonl",
            '{"image": "images/7.png", "question": "is it red,\\nor blue?", "answer": "red", "id": "q1"}\n\n'
            '{"image": "images/8.jpg", "question": "é?", "answers": ["é"], "id": 5}\n',
        ),
    ):
        first, second = VQADataset(path)
        assert (first.id, first.question, first.answers) == ("q1", "is it red,\nor blue?", ["red"])
        assert first.image == str(folder / "images" / "7.png")
        assert (second.id, second.question, second.answers) == ("5", "é?", ["é"])
        assert second.image_id == "images/8.jpg"
    assert VQADataset(folder / "a.csv")[1].regions == [(0, 0, 1, 1)]


def test_several_answers_and_unlabelled_rows(folder: Path) -> None:
    rows = (
        "image,question,answers\nimages/7.png,a?,red|dark red| red\n"
        'images/7.png,b?,"[""a|b"", ""c""]"\nimages/8.jpg,c?,\n'
    )
    path = write(folder / "a.csv", rows)
    dataset = VQADataset(path, require_labels=False)
    assert [sample.answers for sample in dataset] == [["red", "dark red", "red"], ["a|b", "c"], []]
    assert dataset.groups == [0, 0, 1]
    bad_data(r"a\.csv, line 4: expected at least one answer", VQADataset, path)
    assert VQADataset(write(folder / "b.jsonl", '{"image": "images/7.png", "question": "n?", "answer": 2}'))[
        0
    ].answers == ["2"]
    plain = write(folder / "c.csv", "image,question\nimages/7.png,a?\n")
    assert len(VQADataset(plain, require_labels=False)) == 1


def test_unused_columns_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(folder / "a.csv", "image,question,answer,region\nimages/7.png,a?,b,x\n")
    with caplog.at_level(logging.WARNING):
        VQADataset(path)
    assert "not used: region" in caplog.text


HEAD = b"image,question,answer\n"
ROW = b"images/7.png,a?,b\n"
BAD_CSV: dict[str, tuple[bytes, str]] = {
    "wrong columns": (
        b"picture,question,answer\n" + ROW,
        r"header: expected the column image, found picture, question, answer",
    ),
    "near column": (
        b"image,questions,answer\nimages/7.png,a?,b",
        r"the column question, found .*did you mean 'question' by 'questions'",
    ),
    "no answer column": (b"image,question\nimages/7.png,a?", "the column answer"),
    "twice": (b"image,image,question,answer\n", "line 1: expected different column names, found image more than once"),
    "header only": (HEAD, r"bad\.csv: expected at least one question, found none"),
    "empty": (b"", "an empty file"),
    "short row": (HEAD + ROW + b"images/7.png,a?\n", r"line 3: expected 3 cells \(image, question, answer\), found 2"),
    "long row": (HEAD + b"images/7.png,a?,b,c\n", "line 2: expected 3 cells .* found 4"),
    "open quote": (
        HEAD + ROW + b'images/7.png,"a?,b\nimages/7.png,a?,b\n',
        "line 3: .* quoted cell that is never closed",
    ),
    "odd quote": (HEAD + b'images/7.png,"a"?,b\n', "line 2: expected 3 cells"),
    "not utf-8": (HEAD + ROW + b"images/7.png,caf\xe9?,b\n", r"line 3: expected UTF-8 text, found .*caf"),
    "no such image": (HEAD + b"images/no.png,a?,b\n", r"line 2: expected its image images/no\.png in .*no such file"),
    "blank image": (HEAD + b" ,a?,b\n", "line 2: expected an image path, found ' '"),
    "empty question": (HEAD + b"images/7.png, ,b\n", "line 2: expected a question that is not empty"),
    "no answer": (HEAD + b"images/7.png,a?,\n", "line 2: expected at least one answer"),
    "duplicate id": (b"id," + HEAD + b"5," + ROW + b"5," + ROW, r"line 3: .*found '5', which .*line 2 has already"),
    "regions": (b"regions," + HEAD + b"[1," + ROW, "line 2"),
    "regions json": (b"regions," + HEAD + b'"[1,",' + ROW, "line 2: expected JSON in 'regions', found '.1,'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(case: str, folder: Path) -> None:
    content, message = BAD_CSV[case]
    path = write(folder / "bad.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        VQADataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


LINE = b'{"image": "images/7.png", "question": "a?", "answer": "b"}\n'
BAD_JSONL: dict[str, tuple[bytes, str]] = {
    "broken line": (
        LINE + b'{"image": "images/7.png", "question"\n' + LINE,
        "line 2: expected a JSON object, found .*at column",
    ),
    "a list": (LINE + b"[1, 2]\n", r"line 2: expected a JSON object, found \[1, 2\]"),
    "not utf-8": (
        LINE + b'{"image": "images/7.png", "question": "caf\xe9", "answer": "b"}',
        "line 2: expected UTF-8 text",
    ),
    "lone surrogate": (
        b'{"image": "images/7.png", "question": "\\ud800", "answer": "b"}',
        "line 1: expected UTF-8 text",
    ),
    "missing key": (
        b'{"image": "images/7.png", "text": "a?", "answer": "b"}',
        "line 1: expected the key question, found",
    ),
    "image a number": (b'{"image": 7, "question": "a?", "answer": "b"}', "line 1: expected an image path, found 7"),
    "question a list": (
        b'{"image": "images/7.png", "question": ["a"], "answer": "b"}',
        "question that is not empty, found",
    ),
    "answer true": (
        b'{"image": "images/7.png", "question": "a?", "answer": true}',
        "answers that are strings, found True",
    ),
    "answers text": (b'{"image": "images/7.png", "question": "a?", "answers": "b"}', "a list of answers, found 'b'"),
    "objects": (
        b'{"image": "images/7.png", "question": "a?", "answer": "b", "objects": [1]}',
        "objects with 'box' and",
    ),
}


@pytest.mark.parametrize("case", BAD_JSONL)
def test_bad_jsonl(case: str, folder: Path) -> None:
    content, message = BAD_JSONL[case]
    path = write(folder / "bad.jsonl", content)
    with pytest.raises(DataError, match=message) as caught:
        VQADataset(path)
    assert str(path) in str(caught.value)


# Skipping


def test_skip_leaves_out_counts_and_reports(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "images" / "cut.png").write_bytes((folder / "images" / "7.png").read_bytes()[:60])
    lines = [
        LINE,
        b'{"image": "images/7.png"\n',
        b'{"image": "images/no.png", "question": "a?", "answer": "b"}\n',
        b'{"image": "images/cut.png", "question": "a?", "answer": "b"}\n',
        b'{"image": "images/cut.png", "question": "c?", "answer": "b"}\n',
        b'{"image": "images/7.png", "question": "", "answer": "b"}\n',
        b'{"image": "images/7.png", "question": "\xff?", "answer": "b"}\n',
        b'{"image": "images/8.jpg", "question": "last?", "answer": "b"}\n',
    ]
    path = write(folder / "a.jsonl", b"".join(lines))
    with caplog.at_level(logging.WARNING):
        dataset = VQADataset(path, on_error="skip")
    assert [sample.id for sample in dataset] == ["1", "8"]
    assert dataset.groups == [0, 1]
    assert [int(item.rsplit(" ", 1)[1]) for item, _ in dataset.skipped] == [2, 3, 4, 5, 6, 7]
    assert "truncated or damaged" in dataset.skipped[3][1]
    assert "left out 6 bad items, kept 2" in caplog.text
    assert "and 1 more" in caplog.text


def test_nothing_left_is_an_error(folder: Path) -> None:
    path = write(folder / "a.csv", HEAD + b"images/no.png,a?,b\n")
    bad_data(r"at least one question, found none \(1 left out as bad\)", VQADataset, path, on_error="skip")
