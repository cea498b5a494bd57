"""VQA v2 files, right and wrong: each wrong one ends in one error that names file and item."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.vqa.data import VQADataset
from tests.conftest import refused
from tests.data.files import bad_data


def picture(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
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
        picture(tmp_path / "images" / name)
    return tmp_path


def write_pair(folder: Path, questions: Any, annotations: Any = None, split: str = "train", **more: Any) -> Path:
    path = folder / f"questions_{split}.json"
    path.write_text(json.dumps({"questions": questions, **more}))
    if annotations is not None:
        (folder / f"annotations_{split}.json").write_text(json.dumps({"annotations": annotations}))
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# VQA v2


def test_pair(folder: Path) -> None:
    path = write_pair(
        folder,
        [question(1), question("b", 8, "how many?"), question(3)],
        [
            annotation(3, "no"),
            annotation(1, "cat", " cat ", "dog", image_id=7, question_type="what is", answer_type="other"),
            {"question_id": "b", "multiple_choice_answer": "2"},
        ],
    )
    first, second, third = VQADataset(path)
    assert (first.id, first.image_id, first.question, first.answers) == ("1", "7", "what is it?", ["cat", "cat", "dog"])
    assert (first.question_type, first.answer_type) == ("what is", "other")
    assert first.image == str(folder / "images" / "7.png")
    assert (second.id, second.answers, second.image) == ("b", ["2"], str(folder / "images" / "8.jpg"))
    assert third.answers == ["no"]
    assert VQADataset(path).groups == [0, 1, 0]


def test_official_names_and_naming_of_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    picture(tmp_path / "train2014" / "COCO_train2014_000000000025.jpg")
    questions = {"data_subtype": "train2014", "questions": [question(1, 9), question(2, 25), question(3, 9)]}
    path = write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", json.dumps(questions))
    notes = {"annotations": [annotation(n, *["yes"] * 10) for n in (1, 2, 3)]}
    write(tmp_path / "v2_mscoco_train2014_annotations.json", json.dumps(notes))
    dataset = VQADataset(path)
    assert [Path(s.image).name for s in dataset] == [f"COCO_train2014_0000000000{n}.jpg" for n in ("09", "25", "09")]
    assert len(dataset[0].answers) == 10


def test_pictures_by_file_name_root_and_parent(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "sub" / "a.png")
    questions, notes = [question(1)], [annotation(1, "yes")]
    path = write_pair(tmp_path, questions, notes, images=[{"id": 7, "file_name": "sub/a.png"}])
    assert VQADataset(path, image_root=tmp_path / "elsewhere")[0].image.endswith("sub/a.png")
    bad_data(r"questions\[0\] \(question_id 1\): expected its image sub/a\.png in .*no such", VQADataset, path)
    bad_data(
        r"image_root .*nowhere: expected a folder, found nothing", VQADataset, path, image_root=tmp_path / "nowhere"
    )
    picture(tmp_path / "images" / "000000000007.jpg")
    (tmp_path / "json").mkdir()
    assert VQADataset(write_pair(tmp_path / "json", questions, notes))[0].image.endswith("000000000007.jpg")


def test_unlabelled_is_an_error_only_where_labels_are_needed(folder: Path) -> None:
    path = write_pair(folder, [question(1)])
    bad_data(r"annotations beside it \(annotations_train.json\).*training and evaluation", VQADataset, path)
    assert VQADataset(path, require_labels=False)[0].answers == []
    odd = write(folder / "test.json", path.read_bytes())
    bad_data("its annotations beside it", VQADataset, odd)
    assert len(VQADataset(odd, require_labels=False)) == 1


def test_regions_and_objects(folder: Path) -> None:
    picture(folder / "images" / "9.png", (200, 100))
    path = write_pair(
        folder,
        [question(1), question(2, 9)],
        [
            annotation(1, "cat", regions=[[0.1, 0.2, 0.3, 0.4]]),
            annotation(2, "dog", regions_pixels=[[20, 10, 100, 50], [0, 0, 200, 100]]),
        ],
        images=[
            {"id": 7, "file_name": "7.png"},
            {"id": 9, "file_name": "9.png", "objects_pixels": [{"box": [0, 0, 100, 100], "labels": ["dog", "brown"]}]},
        ],
    )
    first, second = VQADataset(path)
    assert first.regions == [(0.1, 0.2, 0.3, 0.4)]
    assert second.regions == [(0.1, 0.1, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0)]
    assert second.objects == [((0.0, 0.0, 0.5, 1.0), ("dog", "brown"))]


GOOD = [question(1), question(2)]
NOTES = [annotation(1, "a"), annotation(2, "b")]
BAD_PAIRS: dict[str, tuple[Any, Any, str]] = {
    "question without image": ([question(1, 99)], [annotation(1, "a")], r"\(question_id 1\): expected its image 99\."),
    "no image id": (
        [{"question_id": 1, "question": "x?"}],
        NOTES[:1],
        r"questions\[0\].*key image_id, found question_",
    ),
    "null image id": ([question(1, None)], NOTES[:1], r"questions\[0\].*the key image_id"),
    "image id a list": ([question(1, [7])], NOTES[:1], r"number or a string for 'image_id', found \[7\]"),
    "empty question": ([question(1, 7, "  ")], NOTES[:1], r"questions\[0\] .*question that is not empty, found '  '"),
    "lone surrogate": ([question(1, 7, "\ud800?")], NOTES[:1], r"valid Unicode, found '.ud800\?'"),
    "question a number": ([question(1, 7, 5)], NOTES[:1], "a question that is not empty, found 5"),
    "question a string": (["what?"], NOTES[:1], r"questions\[0\]: expected an object, found 'what\?'"),
    "question without annotation": (GOOD, NOTES[:1], r"questions\[1\] \(question_id 2\): expected an annotation with"),
    "annotation without question": (
        GOOD[:1],
        NOTES,
        r"annotations_train.json, annotations\[1\] \(question_id 2\).*none",
    ),
    "duplicate question": (
        [question(1), question(1)],
        NOTES[:1],
        r"questions\[1\].*id of its own, found '1', which .*\[0",
    ),
    "duplicate annotation": (
        GOOD[:1],
        [NOTES[0], NOTES[0]],
        r"annotations\[1\].*one annotation a question, found another",
    ),
    "image ids differ": (GOOD[:1], [annotation(1, "a", image_id=8)], "found 7, not 8"),
    "no answers": (GOOD[:1], [annotation(1)], r"at least one answer that is not empty, found \[\]"),
    "blank answers": (GOOD[:1], [annotation(1, " ", "")], "at least one answer"),
    "answers a string": (GOOD[:1], [{"question_id": 1, "answers": "cat"}], "a list of answers, found 'cat'"),
    "answer true": (GOOD[:1], [{"question_id": 1, "answers": [True]}], "answers that are strings, found True"),
    "annotation without id": (
        GOOD[:1],
        [{"answers": ["a"]}],
        r"annotations\[0\]: expected an object with a 'question_id'",
    ),
    "empty split": ([], NOTES, "questions_train.json: expected at least one entry in 'questions', found none"),
    "no annotations": (GOOD, [], "annotations_train.json: expected at least one entry in 'annotations'"),
    "questions an object": ({"a": 1}, NOTES, r"a list 'questions', found 'questions' with \{'a': 1\}"),
    "region of three": (GOOD[:1], [annotation(1, "a", regions=[[0, 0, 1]])], r"\[x1, y1, x2, y2\] in 'regions'"),
    "region in pixels": (GOOD[:1], [annotation(1, "a", regions=[[0, 0, 40, 30]])], r"in 0\.\.1 of the picture"),
    "region inside out": (GOOD[:1], [annotation(1, "a", regions=[[0.5, 0, 0.2, 1]])], "x1 < x2"),
    "region a number": (GOOD[:1], [annotation(1, "a", regions=3)], "a list for 'regions', found 3"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pair(case: str, folder: Path) -> None:
    questions, notes, message = BAD_PAIRS[case]
    path = write_pair(folder, questions, notes)
    with pytest.raises(DataError, match=message) as caught:
        VQADataset(path)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"questions": [\n  {"question_id": 1,}\n]}', r"line 2, column 21: expected JSON, found '\}"),
    "cut": (b'{"questions": [{"question_id": 1', "line 1, column 33: expected JSON"),
    "not utf-8": (b'{"questions":\n\n ["caf\xe9"]}', "line 3: expected UTF-8 text, found the byte 0xe9"),
    "empty": (b"", "expected a file with content, found an empty file"),
    "blank": (b" \n ", "an empty file"),
    "a list": (b"[1]", "an object with a list 'questions', found list"),
    "annotations": (b'{"annotations": []}', "list 'questions', found the keys annotations"),
    "nested": (b"[" * 100_000, "line 1|nested too deeply"),
    "images": (b'{"questions": [1], "images": [{"id": 1}, {"id": 1}]}', r"images\[1\]: expected an 'id' of its own"),
}


ONLY_QUESTIONS = ("annotations", "images")


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for kind in ("questions", "annotations")
        for case in BAD_JSON
        if kind == "questions" or case not in ONLY_QUESTIONS
    ],
)
def test_bad_json(kind: str, case: str, folder: Path) -> None:
    content, message = BAD_JSON[case]
    message = message.replace("'questions'", f"'{kind}'")
    path = write_pair(folder, GOOD, NOTES)
    bad = write(folder / f"{kind}_train.json", content)
    for on_error in ("raise", "skip"):  # a file that cannot be read at all is never skipped
        bad_data(re.escape(str(bad)) + ".*(?:" + message + ")", VQADataset, path, on_error=on_error)


def test_missing_folder_and_ending(folder: Path) -> None:
    write_pair(folder, GOOD, NOTES)
    bad_data(r"nothing\.json: expected a file, found no such file", VQADataset, folder / "nothing.json")
    bad_data("found a folder with annotations_train", VQADataset, folder)
    bad_data(
        r"expected a questions \.json, or a \.csv.*found the ending '\.txt'", VQADataset, write(folder / "a.txt", "x")
    )
    refused("on_error", VQADataset, folder, on_error="ignore")


def test_skip_in_a_pair(folder: Path) -> None:
    questions = [question(1), question(2), question(2), question(3, 99), question(4, 8), "?"]
    notes = [annotation(1, "a"), annotation(2, "b"), annotation(3, "c"), annotation(9, "d"), {}]
    dataset = VQADataset(write_pair(folder, questions, notes), on_error="skip")
    assert [sample.id for sample in dataset] == ["1", "2"]
    assert len(dataset.skipped) == 6
