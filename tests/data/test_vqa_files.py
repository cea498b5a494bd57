"""VQA v2 files and tables, valid and invalid: each invalid one gives one error that names file and item or line."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.tasks.vqa.data import VQADataset
from tests.conftest import refused
from tests.data.files import bad_data, write


def image(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def question(number: int, image: Any = 7, text: Any = "what is it?") -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": text}


def annotation(number: int, *answers: str, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)], **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("7.png", "8.jpg"):
        image(tmp_path / "images" / name)
    return tmp_path


def write_pair(folder: Path, questions: Any, annotations: Any = None, split: str = "train", **more: Any) -> Path:
    path = folder / f"questions_{split}.json"
    path.write_text(json.dumps({"questions": questions, **more}))
    if annotations is not None:
        (folder / f"annotations_{split}.json").write_text(json.dumps({"annotations": annotations}))
    return path


# VQA v2


def test_question_and_annotation_pair(folder: Path) -> None:
    kinds = {"question_type": "what is", "answer_type": "other"}
    notes = [annotation(3, "no"), annotation(1, "cat", " cat ", "dog", image_id=7, **kinds)]
    notes += [{"question_id": "b", "multiple_choice_answer": "2"}]
    path = write_pair(folder, [question(1), question("b", 8, "how many?"), question(3)], notes)
    first, second, third = VQADataset(path)
    assert (first.id, first.image_id, first.question, first.answers) == ("1", "7", "what is it?", ["cat", "cat", "dog"])
    assert (first.question_type, first.answer_type) == ("what is", "other")
    assert first.image == str(folder / "images" / "7.png")
    assert (second.id, second.answers, second.image) == ("b", ["2"], str(folder / "images" / "8.jpg"))
    assert third.answers == ["no"]
    assert VQADataset(path).groups == [0, 1, 0]


def test_official_names_and_naming_of_images(tmp_path: Path) -> None:
    image(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    image(tmp_path / "train2014" / "COCO_train2014_000000000025.jpg")
    questions = {"data_subtype": "train2014", "questions": [question(1, 9), question(2, 25), question(3, 9)]}
    path = write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", json.dumps(questions))
    notes = {"annotations": [annotation(n, *["yes"] * 10) for n in (1, 2, 3)]}
    write(tmp_path / "v2_mscoco_train2014_annotations.json", json.dumps(notes))
    dataset = VQADataset(path)
    assert [Path(s.image).name for s in dataset] == [f"COCO_train2014_0000000000{n}.jpg" for n in ("09", "25", "09")]
    assert len(dataset[0].answers) == 10


def test_images_by_file_name_root_and_parent(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "sub" / "a.png")
    questions, notes = [question(1)], [annotation(1, "yes")]
    path = write_pair(tmp_path, questions, notes, images=[{"id": 7, "file_name": "sub/a.png"}])
    assert VQADataset(path, image_root=tmp_path / "elsewhere")[0].image.endswith("sub/a.png")
    bad_data(r"questions\[0\] \(question_id 1\): expected its image sub/a\.png in .*no such", VQADataset, path)
    bad_data(
        r"image_root .*nowhere: expected a folder, found nothing", VQADataset, path, image_root=tmp_path / "nowhere"
    )
    image(tmp_path / "images" / "000000000007.jpg")
    (tmp_path / "json").mkdir()
    assert VQADataset(write_pair(tmp_path / "json", questions, notes))[0].image.endswith("000000000007.jpg")


def test_unlabeled_raises_only_when_labels_are_required(folder: Path) -> None:
    path = write_pair(folder, [question(1)])
    bad_data(r"annotations beside it \(annotations_train.json\).*training and evaluation", VQADataset, path)
    assert VQADataset(path, require_labels=False)[0].answers == []
    odd = write(folder / "test.json", path.read_bytes())
    bad_data("its annotations beside it", VQADataset, odd)
    assert len(VQADataset(odd, require_labels=False)) == 1


def test_regions_and_objects(folder: Path) -> None:
    image(folder / "images" / "9.png", (200, 100))
    objects = [{"box": [0, 0, 100, 100], "labels": ["dog", "brown"]}]
    images = [{"id": 7, "file_name": "7.png"}, {"id": 9, "file_name": "9.png", "objects_pixels": objects}]
    notes = [annotation(1, "cat", regions=[[0.1, 0.2, 0.3, 0.4]])]
    notes += [annotation(2, "dog", regions_pixels=[[20, 10, 100, 50], [0, 0, 200, 100]])]
    first, second = VQADataset(write_pair(folder, [question(1), question(2, 9)], notes, images=images))
    assert first.regions == [(0.1, 0.2, 0.3, 0.4)]
    assert second.regions == [(0.1, 0.1, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0)]
    assert second.objects == [((0.0, 0.0, 0.5, 1.0), ("dog", "brown"))]


GOOD, NOTES = [question(1), question(2)], [annotation(1, "a"), annotation(2, "b")]
Q1, A1 = GOOD[:1], NOTES[:1]
BAD_PAIRS: dict[str, tuple[Any, Any, str]] = {
    "question without image": ([question(1, 99)], A1, r"\(question_id 1\): expected its image 99\."),
    "no image id": ([{"question_id": 1, "question": "x?"}], A1, r"questions\[0\].*key image_id, found question_"),
    "null image id": ([question(1, None)], A1, r"questions\[0\].*the key image_id"),
    "image id a list": ([question(1, [7])], A1, r"number or a string for 'image_id', found \[7\]"),
    "empty question": ([question(1, 7, "  ")], A1, r"questions\[0\] .*question that is not empty, found '  '"),
    "lone surrogate": ([question(1, 7, "\ud800?")], A1, r"valid Unicode, found '.ud800\?'"),
    "question a number": ([question(1, 7, 5)], A1, "a question that is not empty, found 5"),
    "question a string": (["what?"], A1, r"questions\[0\]: expected an object, found 'what\?'"),
    "question without annotation": (GOOD, A1, r"questions\[1\] \(question_id 2\): expected an annotation with"),
    "annotation without question": (Q1, NOTES, r"annotations_train.json, annotations\[1\] \(question_id 2\).*none"),
    "duplicate question": (Q1 * 2, A1, r"questions\[1\].*id of its own, found '1', which .*\[0"),
    "duplicate annotation": (Q1, A1 * 2, r"annotations\[1\].*one annotation per question, found another"),
    "image ids differ": (Q1, [annotation(1, "a", image_id=8)], "found 7, not 8"),
    "no answers": (Q1, [annotation(1)], r"at least one answer that is not empty, found \[\]"),
    "whitespace answers": (Q1, [annotation(1, " ", "")], "at least one answer"),
    "answers a string": (Q1, [{"question_id": 1, "answers": "cat"}], "a list of answers, found 'cat'"),
    "answer true": (Q1, [{"question_id": 1, "answers": [True]}], "answers that are strings, found True"),
    "annotation without id": (Q1, [{"answers": ["a"]}], r"annotations\[0\]: expected an object with a 'question_id'"),
    "empty split": ([], NOTES, "questions_train.json: expected at least one entry in 'questions', found none"),
    "no annotations": (GOOD, [], "annotations_train.json: expected at least one entry in 'annotations'"),
    "questions an object": ({"a": 1}, NOTES, r"a list 'questions', found 'questions' with \{'a': 1\}"),
    "region of three": (Q1, [annotation(1, "a", regions=[[0, 0, 1]])], r"\[x1, y1, x2, y2\] in 'regions'"),
    "region in pixels": (Q1, [annotation(1, "a", regions=[[0, 0, 40, 30]])], r"in 0\.\.1 of the image"),
    "region inside out": (Q1, [annotation(1, "a", regions=[[0.5, 0, 0.2, 1]])], "x1 < x2"),
    "region a number": (Q1, [annotation(1, "a", regions=3)], "a list for 'regions', found 3"),
}


@pytest.mark.parametrize(("questions", "notes", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_invalid_pair(questions: Any, notes: Any, message: str, folder: Path) -> None:
    error = bad_data(message, VQADataset, write_pair(folder, questions, notes))
    assert str(folder) in error
    assert "\n" not in error


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"questions": [\n  {"question_id": 1,}\n]}', r"line 2, column 21: expected JSON, found '\}"),
    "cut": (b'{"questions": [{"question_id": 1', "line 1, column 33: expected JSON"),
    "not utf-8": (b'{"questions":\n\n ["caf\xe9"]}', "line 3: expected UTF-8 text, found the byte 0xe9"),
    "empty": (b"", "expected a file with content, found an empty file"),
    "whitespace": (b" \n ", "an empty file"),
    "a list": (b"[1]", "an object with a list 'questions', found list"),
    "nested": (b"[" * 100_000, "line 1|nested too deeply"),
    "annotations": (b'{"annotations": []}', "list 'questions', found the keys annotations"),
    "images": (b'{"questions": [1], "images": [{"id": 1}, {"id": 1}]}', r"images\[1\]: expected a unique 'id'"),
}


OF_BOTH = list(BAD_JSON)[:-2]  # the last two are for questions only


@pytest.mark.parametrize(
    ("kind", "case"), [*(("questions", case) for case in BAD_JSON), *(("annotations", case) for case in OF_BOTH)]
)
def test_invalid_json(kind: str, case: str, folder: Path) -> None:
    content, message = BAD_JSON[case]
    message = message.replace("'questions'", f"'{kind}'")
    path = write_pair(folder, GOOD, NOTES)
    bad = write(folder / f"{kind}_train.json", content)
    for on_error in ("raise", "skip"):  # an unreadable file is never skipped
        bad_data(re.escape(str(bad)) + ".*(?:" + message + ")", VQADataset, path, on_error=on_error)


def test_missing_folder_and_ending(folder: Path) -> None:
    write_pair(folder, GOOD, NOTES)
    bad_data(r"nothing\.json: expected a file, found no such file", VQADataset, folder / "nothing.json")
    bad_data("found a folder with annotations_train", VQADataset, folder)
    text = write(folder / "a.txt", "x")
    bad_data(r"expected a questions \.json, or a \.csv.*found the ending '\.txt'", VQADataset, text)
    refused("on_error", VQADataset, folder, on_error="ignore")


def test_skip_in_a_pair(folder: Path) -> None:
    questions = [question(1), question(2), question(2), question(3, 99), question(4, 8), "?"]
    notes = [annotation(1, "a"), annotation(2, "b"), annotation(3, "c"), annotation(9, "d"), {}]
    dataset = VQADataset(write_pair(folder, questions, notes), on_error="skip")
    assert [sample.id for sample in dataset] == ["1", "2"]
    assert len(dataset.skipped) == 6


# Tables

ROW = {"image": "images/7.png", "question": "a?", "answer": "b"}


def test_csv_tsv_and_jsonl(folder: Path) -> None:
    table = (
        'id,Image,question,answer,regions\nq1,images/7.png,"is it red,\nor blue?",red,\n\n'
        '5,images/8.jpg,é?,é,"[[0, 0, 1, 1]]"\n'
    )
    one = {"image": "images/7.png", "question": "is it red,\nor blue?", "answer": "red", "id": "q1"}
    other = '{"image": "images/8.jpg", "question": "é?", "answers": ["é"], "id": 5}'
    tabs = 'id\tImage\tquestion\tanswer\tregions\nq1\timages/7.png\tis it "red?\tred\t\n'
    tabs += "5\timages/8.jpg\té?\té\t[[0, 0, 1, 1]]"
    first, second = VQADataset(write(folder / "b.tsv", tabs))
    assert (first.question, second.id, second.regions) == ('is it "red?', "5", [(0, 0, 1, 1)])
    for name, content in (("a.csv", "\ufeff" + table), ("c.jsonl", [one, "", other])):
        first, second = VQADataset(write(folder / name, content))
        assert (first.id, first.question, first.answers) == ("q1", "is it red,\nor blue?", ["red"])
        assert first.image == str(folder / "images" / "7.png")
        assert (second.id, second.question, second.answers) == ("5", "é?", ["é"])
        assert second.image_id == "images/8.jpg"
    assert VQADataset(folder / "a.csv")[1].regions == [(0, 0, 1, 1)]


def test_several_answers_and_unlabeled_rows(folder: Path) -> None:
    rows = (
        "image,question,answers\nimages/7.png,a?,red|dark red| red\n"
        'images/7.png,b?,"[""a|b"", ""c""]"\nimages/8.jpg,c?,\n'
    )
    path = write(folder / "a.csv", rows)
    dataset = VQADataset(path, require_labels=False)
    assert [sample.answers for sample in dataset] == [["red", "dark red", "red"], ["a|b", "c"], []]
    assert dataset.groups == [0, 0, 1]
    bad_data(r"a\.csv, line 4: expected at least one answer", VQADataset, path)
    assert VQADataset(write(folder / "b.jsonl", [ROW | {"answer": 2}]))[0].answers == ["2"]
    plain = write(folder / "c.csv", "image,question\nimages/7.png,a?\n")
    assert len(VQADataset(plain, require_labels=False)) == 1


def test_unused_columns_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        VQADataset(write(folder / "a.csv", "image,question,answer,region\nimages/7.png,a?,b,x\n"))
    assert "not used: region" in caplog.text


HEAD, LINE = b"image,question,answer\n", b"images/7.png,a?,b\n"
BAD_CSV: dict[str, tuple[bytes, str]] = {
    "wrong columns": (
        b"photo,question,answer\n" + LINE,
        "header: expected the column image, found photo",
    ),
    "near column": (
        b"image,questions,answer\n" + LINE,
        "the column question, .*did you mean 'question' instead of 'questions'",
    ),
    "no answer column": (b"image,question\na.png,a?\n", "the column answer"),
    "twice": (b"image,image,question,answer\n", "line 1: expected unique column names, found image more than once"),
    "header only": (HEAD, r"bad\.csv: expected at least one question, found none"),
    "empty": (b"", "an empty file"),
    "short row": (HEAD + LINE + b"images/7.png,a?\n", r"line 3: expected 3 cells \(image, question, answer\), found 2"),
    "long row": (HEAD + b"images/7.png,a?,b,c\n", "line 2: expected 3 cells .* found 4"),
    "open quote": (HEAD + LINE + b'images/7.png,"a?,b\n' + LINE, "line 3: .* quoted cell that is never closed"),
    "odd quote": (HEAD + b'images/7.png,"a"?,b\n', "line 2: expected 3 cells"),
    "not utf-8": (HEAD + LINE + b"images/7.png,caf\xe9?,b\n", r"line 3: expected UTF-8 text, found .*caf"),
    "no such image": (HEAD + b"images/no.png,a?,b\n", r"line 2: expected its image images/no\.png in .*no such file"),
    "whitespace image": (HEAD + b" ,a?,b\n", "line 2: expected an image path, found ' '"),
    "regions": (b"regions," + HEAD + b"[1," + LINE, "line 2"),
    "regions json": (b"regions," + HEAD + b'"[1,",' + LINE, "line 2: expected JSON in 'regions', found '.1,'"),
}
BAD_JSONL: dict[str, tuple[Any, str]] = {
    "broken line": ([ROW, '{"image": "images/7.png", "question"', ROW], "line 2: expected a JSON object.*at column"),
    "a list": ([ROW, [1, 2]], r"line 2: expected a JSON object, found \[1, 2\]"),
    "not utf-8": (b'{"image": "images/7.png", "question": "caf\xe9", "answer": "b"}', "line 1: expected UTF-8 text"),
    "lone surrogate": ([ROW | {"question": "\ud800"}], "line 1: expected UTF-8 text"),
    "missing key": ([{"image": "7.png", "text": "a?", "answer": "b"}], "line 1: expected the key question, found"),
    "image a number": ([ROW | {"image": 7}], "line 1: expected an image path, found 7"),
    "question a list": ([ROW | {"question": ["a"]}], "question that is not empty, found"),
    "answer true": ([ROW | {"answer": True}], "answers that are strings, found True"),
    "answers text": ([{"image": "images/7.png", "question": "a?", "answers": "b"}], "a list of answers, found 'b'"),
    "objects": ([ROW | {"objects": [1]}], "objects with 'box' and"),
    "two images of one id": (
        [ROW | {"image_id": 1}, ROW | {"image_id": "1"}, ROW | {"image_id": 1, "image": "images/8.jpg"}],
        r"line 3: expected one image with the image_id '1', \S+images/7\.png as before, found \S+images/8\.jpg",
    ),
}
BAD_TABLES = [(f"bad.{kind}", *row) for kind, rows in (("csv", BAD_CSV), ("jsonl", BAD_JSONL)) for row in rows.values()]


@pytest.mark.parametrize(("name", "content", "message"), BAD_TABLES, ids=[*BAD_CSV, *BAD_JSONL])
def test_invalid_table(name: str, content: Any, message: str, folder: Path) -> None:
    path = write(folder / name, content)
    error = bad_data(message, VQADataset, path)
    assert str(path) in error
    assert "\n" not in error


def test_skip_counts_and_reports(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "images" / "cut.png").write_bytes((folder / "images" / "7.png").read_bytes()[:60])
    no, cut, last = (ROW | {"image": f"images/{name}"} for name in ("no.png", "cut.png", "8.jpg"))
    lines = [ROW, '{"image": "images/7.png"', no, cut, cut, ROW | {"question": ""}, ROW | {"question": "\udcff?"}, last]
    with caplog.at_level(logging.WARNING):
        dataset = VQADataset(write(folder / "a.jsonl", lines), on_error="skip")
    assert [sample.id for sample in dataset] == ["1", "8"]
    assert dataset.groups == [0, 1]
    assert [int(item.rsplit(" ", 1)[1]) for item, _ in dataset.skipped] == [2, 3, 4, 5, 6, 7]
    cut_file = rf"^image {folder}/images/cut.png: expected a whole image, found a truncated or damaged one"
    assert re.match(cut_file, dataset.skipped[3][1])
    assert "excluded 6 bad items, kept 2" in caplog.text
    assert "and 1 more" in caplog.text
