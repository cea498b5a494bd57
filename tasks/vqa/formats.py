"""Readers of the file formats of visual question answering.

**VQA v2**: ``questions_NAME.json`` with ``{"questions": [{"question_id", "image_id", "question"}]}``, and
``annotations_NAME.json`` in the same folder with ``{"annotations": [{"question_id", "answers": [{"answer"}]}]}``
(answers may be strings; ``multiple_choice_answer`` replaces a missing list; ``question_type`` and ``answer_type`` are
optional). The official file names are supported, too. Images are searched for in ``images/``, in the folder of the
official name (``train2014/``), in the file's folder and its parent, by ``file_name`` of an optional
``"images": [{"id", "file_name"}]``, otherwise as ``<image_id>.<ending>`` or ``COCO_train2014_<image_id>.jpg``.

**CSV, TSV, JSONL**: ``image`` (a path relative to the file), ``question``, and ``answer`` or ``answers``: a list in
JSONL; in CSV a JSON list or several separated by ``|``. Optional: ``id``, ``image_id``, ``question_type``,
``answer_type``, ``regions``, ``objects``.

**Regions** that determine an answer, in a row or an annotation: ``regions``, a list of ``[x1, y1, x2, y2]`` as
fractions 0..1 of the image's width and height, or ``regions_pixels``, the same in pixels (of the upright image). A
list of such lists gives the regions of each phrase of the question: ``[[[...]], [[...], [...]]]``.
**Objects**, in a row or in an entry of ``images``: ``objects`` or ``objects_pixels``, a list of
``{"box": [...], "labels": [...]}``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.image.processor import IMAGE_EXTENSIONS, Box, image_size
from mmattn.data.names import find_file
from mmattn.data.readers import TABLES, as_path, is_json_lines, parse_json, read_json, read_rows, report_missing
from mmattn.data.table import Table, is_media

logger = logging.getLogger(__name__)
Fields = dict[str, Any]  # of a sample, by its attributes' names
_Found = Iterator[tuple[str, Fields]]

ROW_KEYS = ("id", "image", "question", "answer", "answers", "image_id", "question_type", "answer_type")
BOX_KEYS = ("regions", "regions_pixels", "objects", "objects_pixels")


class _BadItem(Exception):
    """An item is invalid; the arguments are the expected and the found value."""


def read_vqa(
    path: str | Path | Table, image_root: str | Path | None, require_answers: bool, problems: Problems
) -> _Found:
    """Read the file of one split.

    Args:
        path: The questions JSON; a CSV, TSV or JSONL file; or a table in memory.
        image_root: Folder of the images, if they are not near the file.
        require_answers: Whether missing labels are an error.
        problems: Collects the bad items.

    Yields:
        The location of the item (file and line or entry), and the sample's fields.
    """
    place = as_path(path)
    if image_root is not None and not Path(image_root).is_dir():
        raise DataError(f"image_root {image_root}", "a folder", "a file" if Path(image_root).exists() else "nothing")
    ending = place.suffix.lower()
    if isinstance(place, Path) and place.exists() and not place.is_dir() and ending not in TABLES:
        raise DataError(str(path), "a questions .json, or a .csv, .tsv or .jsonl file", f"the ending {place.suffix!r}")
    read = _read_pair if ending == ".json" else _read_table
    yield from read(place, image_root, require_answers, problems)


def _read_table(path: Path | Table, image_root: str | Path | None, require_answers: bool, problems: Problems) -> _Found:
    finder = _ImageFinder([Path(image_root or path.parent)], "")
    by_json = is_json_lines(path) and not isinstance(path, Table)  # a frame may come from a CSV
    unused: dict[str, None] = {}
    images: dict[int, str] = {}  # those in memory, whose names enter the fingerprint
    for where, line, row in read_rows(path, problems):
        missing = [key for key in ("image", "question") if key not in row]
        if require_answers and "answer" not in row and "answers" not in row:
            missing.append("answer")
        if missing:
            report_missing(path, where, row, missing, ROW_KEYS, problems)
            continue
        unused.update(dict.fromkeys(key for key in row if key not in (*ROW_KEYS, *BOX_KEYS)))
        try:
            image = row["image"]
            if isinstance(image, (str, Path)) and str(image).strip():
                file, name = finder.named(str(image)), str(image)
            elif isinstance(path, Table) and is_media(image):
                file, name = image, images.setdefault(id(image), f"image {len(images)}")
            else:
                raise _BadItem("an image path", shorten(image))
            answers = _answers(row.get("answers"), row.get("answer"), split=not by_json)
            sample = {
                "id": _id(_given(row, "id", line), "id"),
                "image": file,
                "question": row["question"],
                "answers": answers,
                "image_id": _id(_given(row, "image_id", name), "image_id"),
                "question_type": str(row.get("question_type") or ""),
                "answer_type": str(row.get("answer_type") or ""),
            }
            boxes = {key: _from_cell(row[key], key) for key in BOX_KEYS if _given(row, key, None) is not None}
            _set_boxes(sample, boxes)
        except _BadItem as bad:
            problems.add(where, *bad.args)
        else:
            yield where, sample
    if unused:
        logger.warning("%s: not used: %s", path, ", ".join(unused))


def _read_pair(path: Path, image_root: str | Path | None, require_answers: bool, problems: Problems) -> _Found:
    content = read_json(path)
    questions = _entries(path, content, "questions")
    images = _images(path, content)
    beside = _annotations_beside(path)
    annotations: dict[str, tuple[str, dict[str, Any]]] = {}
    if beside is not None:
        annotations = _read_annotations(beside, problems)
    elif require_answers:
        tried = " or ".join(candidate.name for candidate in _annotation_names(path)) or "annotations"
        raise DataError(str(path), f"its annotations beside it ({tried}), as training and evaluation need", "none")
    subset = str(content.get("data_subtype") or "")
    folders = [Path(image_root)] if image_root else _image_folders(path.parent, subset)
    finder = _ImageFinder(folders, subset)
    asked = set()
    for index, entry in enumerate(questions):
        where = f"{path}, questions[{index}]"
        try:
            if not isinstance(entry, dict):
                raise _BadItem("an object", shorten(entry))
            if "question_id" in entry:
                where += f" (question_id {entry['question_id']})"
            missing = [key for key in ("question_id", "image_id", "question") if entry.get(key) is None]
            if missing:
                raise _BadItem(f"the key {' and '.join(missing)}", ", ".join(entry) or "none")
            question_id, image_id = _id(entry["question_id"], "question_id"), _id(entry["image_id"], "image_id")
            asked.add(question_id)
            place, note = annotations.get(question_id, ("", {}))
            if require_answers and not note:
                raise _BadItem(f"an annotation with this question_id in {beside}", "none")
            if note.get("image_id") is not None and str(note["image_id"]) != image_id:
                raise _BadItem(f"the image_id of its annotation ({place})", f"{image_id}, not {note['image_id']}")
            image = images.get(image_id, {})
            sample = {
                "id": question_id,
                "image": finder.named(image["file_name"]) if "file_name" in image else finder.numbered(image_id),
                "question": entry["question"],
                "answers": _answers(note.get("answers"), note.get("multiple_choice_answer"), split=False),
                "image_id": image_id,
                "question_type": str(note.get("question_type") or ""),
                "answer_type": str(note.get("answer_type") or ""),
            }
            _set_boxes(sample, {key: value for key, value in {**image, **note}.items() if key in BOX_KEYS})
        except _BadItem as bad:
            problems.add(where, *bad.args)
        else:
            yield where, sample
    for question_id, (place, _) in annotations.items():
        if question_id not in asked:
            problems.add(place, f"a question with this question_id in {path}", "none")


def _entries(path: Path, content: Any, key: str) -> list[Any]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        found = f"the keys {', '.join(content) or 'none'}" if isinstance(content, dict) else type(content).__name__
        if isinstance(content, dict) and key in content:
            found = f"{key!r} with {shorten(content[key])}"
        raise DataError(str(path), f"an object with a list {key!r}", found)
    if not entries:
        raise DataError(str(path), f"at least one entry in {key!r}", "none")
    return entries


def _images(path: Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    images: dict[str, dict[str, Any]] = {}
    listed = content.get("images") or []
    if not isinstance(listed, list):
        raise DataError(str(path), "a list 'images'", shorten(listed))
    for index, entry in enumerate(listed):
        where = f"{path}, images[{index}]"
        if not isinstance(entry, dict) or entry.get("id") is None:
            raise DataError(where, "an object with an 'id'", shorten(entry))
        if not isinstance(entry.get("file_name", ""), str):
            raise DataError(where, "a 'file_name' that is a string", shorten(entry["file_name"]))
        if str(entry["id"]) in images:
            raise DataError(where, "a unique 'id'", f"{entry['id']} once more")
        images[str(entry["id"])] = entry
    return images


def _annotation_names(path: Path) -> list[Path]:
    """Candidate annotation files of a questions file: this toolkit's name, then the official ones of VQA v1 and v2."""
    if "questions" not in path.name:
        return []
    plain = re.sub("questions(?!.*questions)", "annotations", path.name)
    official = plain.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    return [path.with_name(name) for name in dict.fromkeys((plain, official))]


def _annotations_beside(path: Path) -> Path | None:
    return next((candidate for candidate in _annotation_names(path) if candidate.exists()), None)


def _read_annotations(path: Path, problems: Problems) -> dict[str, tuple[str, dict[str, Any]]]:
    annotations: dict[str, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(_entries(path, read_json(path), "annotations")):
        where = f"{path}, annotations[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("question_id"), (int, str)):
            problems.add(where, "an object with a 'question_id'", shorten(entry))
            continue
        question_id = str(entry["question_id"])
        where += f" (question_id {question_id})"
        if question_id in annotations:
            problems.add(where, "one annotation per question", f"another at {annotations[question_id][0]}")
        else:
            annotations[question_id] = (where, entry)
    return annotations


def _image_folders(folder: Path, subset: str) -> list[Path]:
    names = [name for name in ("images", subset, f"images/{subset}" if subset else "") if name]
    return [*(folder / name for name in names), folder, *(folder.parent / name for name in names)]


class _ImageFinder:
    """Finds images in some folders; the folder and the naming scheme of the last hit are tried first."""

    def __init__(self, folders: list[Path], subset: str) -> None:
        self.folders = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        names = ["{id}{ending}", *([f"COCO_{subset}_" + "{id:0>12}{ending}"] if subset else []), "{id:0>12}{ending}"]
        self.patterns = [(name, ending) for name in names for ending in IMAGE_EXTENSIONS]
        self.known: dict[str, str] = {}

    def named(self, name: str) -> str:
        """The path of an image with a given file name."""
        if name not in self.known:
            self.known[name] = self._search([name]) or self._missing(name)
        return self.known[name]

    def numbered(self, image_id: str) -> str:
        """The path of an image with a given id."""
        key = f"#{image_id}"
        if key not in self.known:
            found = None
            for place, (name, ending) in enumerate(self.patterns):
                found = self._search([name.format(id=image_id, ending=ending)])
                if found:
                    self.patterns.insert(0, self.patterns.pop(place))
                    break
            self.known[key] = found or self._missing(f"{image_id}.png, .jpg, ...")
        return self.known[key]

    def _search(self, names: list[str]) -> str | None:
        for place, folder in enumerate(self.folders):
            for name in names:
                path = find_file(os.path.join(folder, name))
                if os.path.isfile(path):
                    self.folders.insert(0, self.folders.pop(place))
                    return str(path)
        return None

    def _missing(self, name: str) -> str:
        raise _BadItem(f"its image {name} in {self.tried}", "no such file")


def _given(row: Mapping[str, Any], key: str, default: Any) -> Any:
    return default if row.get(key) in (None, "") else row[key]


def _id(value: Any, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise _BadItem(f"a number or a string for {key!r}", shorten(value))
    return str(value)


def _answers(several: Any, one: Any, split: bool) -> list[str]:
    if split and isinstance(several, str) and several.strip():
        several = _from_cell(several, "answers") if several.lstrip().startswith("[") else several.split("|")
    if several is None or several == "":
        several = [] if one is None else [one]
    if not isinstance(several, list):
        raise _BadItem("a list of answers", shorten(several))
    answers = []
    for entry in several:
        answer = entry.get("answer") if isinstance(entry, Mapping) else entry
        if isinstance(answer, bool) or not isinstance(answer, (str, int)):
            raise _BadItem("answers that are strings", shorten(answer))
        answers.append(str(answer).strip())
    return answers if any(answers) else []  # an empty answer among ten is an annotator's answer and counts


def _from_cell(value: Any, key: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError as error:
        raise _BadItem(f"JSON in {key!r}", f"{shorten(value)} ({error.msg})") from None


def _set_boxes(sample: Fields, boxes: Mapping[str, Any]) -> None:
    """Set regions and objects, in fractions of the image."""
    size = (1.0, 1.0)
    if any(key.endswith("_pixels") and boxes[key] for key in boxes):
        try:
            size = image_size(sample["image"])
        except DataError as error:
            raise _BadItem("an image whose size can be read", str(error)) from None
    for key, value in boxes.items():
        scale = size if key.endswith("_pixels") else (1.0, 1.0)
        if not isinstance(value, list):
            raise _BadItem(f"a list for {key!r}", shorten(value))
        if key.startswith("regions"):
            nested = bool(value) and all(isinstance(v, list) and all(isinstance(b, list) for b in v) for v in value)
            for phrase, boxes_of_phrase in enumerate(value if nested else [value]):
                sample.setdefault("regions", []).extend(_box(box, scale, key) for box in boxes_of_phrase)
                sample.setdefault("phrases", []).extend([phrase] * len(boxes_of_phrase))
            continue
        for entry in value:
            labels = entry.get("labels") if isinstance(entry, Mapping) else None
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise _BadItem(f"objects with 'box' and a list of 'labels' in {key!r}", shorten(entry))
            sample.setdefault("objects", []).append((_box(entry.get("box"), scale, key), tuple(labels)))


def _box(box: Any, size: tuple[float, float], key: str) -> Box:
    numbers = isinstance(box, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in box)
    if not numbers or len(box) != 4:
        raise _BadItem(f"[x1, y1, x2, y2] in {key!r}", shorten(box))
    return (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])
