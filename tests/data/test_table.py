"""Samples given as rows: mappings, tuples, data frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.common.task import tasks
from tests.conftest import refused

IMAGE, ARRAY, MASK = Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
CLIP = np.zeros((3, 8, 8, 3), np.uint8)
WAVE = (np.zeros(800, np.float32), 8000)
ROWS: dict[str, tuple[list[Any], list[Any], str]] = {  # rows, the labels found in them, and the error of an empty one
    "asr": ([(WAVE, "yes"), {"audio": WAVE, "text": "no", "id": "x"}], ["yes", "no"], "row 3: expected the keys audio"),
    "classification": (
        [(IMAGE, "cat"), {"image": ARRAY, "label": 3, "id": "x"}],
        [["cat"], ["3"]],
        "row 3: expected the keys path and label",
    ),
    "segmentation": ([(IMAGE, MASK), {"image": ARRAY, "mask": MASK, "id": "x"}], [], "row 3: expected the key image"),
    "captioning": (
        [(IMAGE, "a cat"), {"image": ARRAY, "captions": ["a", "b"], "id": "x"}],
        [["a cat"], ["a", "b"]],
        "row 3: expected the keys image and caption",
    ),
    "summarization": (
        [("a b", "a"), {"document": "c d", "summary": "d", "id": "x"}],
        ["a", "d"],
        "row 3: expected the keys document and summary",
    ),
    "text_generation": (
        [("a b", "c"), {"prompt": "c d", "response": "e", "id": "x"}],
        ["c", "e"],
        "row 3: expected the key text",
    ),
    "translation": (
        [("a b", "c"), {"en": "c d", "de": "e", "id": "x"}],
        ["c", "e"],
        "row 3: expected the keys en and de",
    ),
    "video": (
        [(CLIP, "run"), {"video": CLIP, "label": "walk", "id": "x"}],
        [["run"], ["walk"]],
        "row 3: expected the keys path and label",
    ),
    "vqa": (
        [(IMAGE, "what?", "cat"), {"image": IMAGE, "question": "who?", "answers": ["a", "b"], "id": "x"}],
        [["cat"], ["a", "b"]],
        "row 3: expected the keys image and question and answer",
    ),
}
FIELDS = {
    "asr": "text",
    "classification": "labels",
    "video": "labels",
    "vqa": "answers",
    "captioning": "captions",
    "summarization": "target",
    "text_generation": "text",
    "translation": "target",
}


class Frame:
    """What is used of a pandas DataFrame."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.columns = rows, list(rows[0])

    def to_dict(self, kind: str) -> list[dict[str, Any]]:
        assert kind == "records"
        return self.rows


@pytest.mark.parametrize("task", ROWS)
def test_rows(task: str) -> None:
    rows, labels, message = ROWS[task]
    module = tasks()[task].resolve("datamodule")()
    module.paths["train"] = "in memory"
    data = module.make_dataset(rows, "train")
    assert data.places == ["in memory, row 1", "in memory, row 2"]
    assert data.samples[1].id == "x"
    assert [getattr(sample, FIELDS[task]) for sample in data.samples if labels] == labels
    assert data.fingerprint() == module.make_dataset(list(rows), "train").fingerprint()
    refused(message, module.make_dataset, [*rows, {"other": 1}], "train", error=DataError)
    refused(r"row 3: expected a mapping, or a tuple", module.make_dataset, [*rows, (1,)], "train", error=DataError)
    module.on_error = "skip"
    skipping = module.make_dataset([*rows, {"other": 1}], "train")
    assert (len(skipping), len(skipping.skipped)) == (2, 1)


def test_frames() -> None:
    data = tasks()["classification"].resolve("datamodule")().make_dataset
    frame = Frame([{" Image ": IMAGE, "Label": "cat", "id": float("nan")}, {" Image ": ARRAY, "Label": "dog", "id": 7}])
    assert [sample.id for sample in data(frame, "train").samples] == ["0", "7"]


def test_questions_about_an_image_in_memory_are_a_group() -> None:
    data = (
        tasks()["vqa"]
        .resolve("datamodule")()
        .make_dataset([(IMAGE, "a", "b"), (ARRAY, "a", "b"), (IMAGE, "c", "d")], "train")
    )
    assert data.groups == [0, 1, 0]


def test_other_things_are_refused() -> None:
    data = tasks()["classification"].resolve("datamodule")().make_dataset
    refused("expected a path, samples, rows or a DataFrame, found 7", data, 7, "train", error=DataError)
    refused("sample 0: expected samples or rows with image, label", data, [IMAGE], "train", error=DataError)
