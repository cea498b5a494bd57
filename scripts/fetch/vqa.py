"""The public VQA sets of ``scripts/fetch_data.py``: conversion to the VQA v2 layout, and the split into train and val.

Both sets have an official test split and no validation split. Validation images were drawn once; their numbers are in
``validation/``, so that the split is reproducible. Test images are named ``test_*``.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from scripts.fetch.archive import Archive, FetchError, validation


def write_vqa(folder: Path, split: str, rows: list[tuple[str, str, int]], name: str) -> None:
    """Write ``questions_SPLIT.json`` and ``annotations_SPLIT.json`` in the layout of VQA v2.

    Args:
        folder: Output folder.
        split: Name of the split.
        rows: Question, answer, image number; in the order of the question ids.
        name: Format of the images' file names, with ``{}`` for the number.
    """
    questions, annotations = [], []
    for question_id, (question, answer, image_id) in enumerate(rows, start=1):
        questions.append({"image_id": image_id, "question": question, "question_id": question_id})
        kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
        annotations.append(
            {
                "question_id": question_id,
                "image_id": image_id,
                "question_type": " ".join(question.lower().split()[:2]),
                "answer_type": kind,
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
            }
        )
    head = {"info": {"description": split}}
    named = [{"id": image_id, "file_name": name.format(image_id)} for image_id in sorted({row[2] for row in rows})]
    _write(
        folder / f"questions_{split}.json",
        head
        | {"task_type": "Open-Ended", "data_subtype": split, "license": {}, "images": named, "questions": questions},
    )
    _write(
        folder / f"annotations_{split}.json",
        head | {"data_type": "image", "data_subtype": split, "license": {}, "annotations": annotations},
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _split_by_image(folder: Path, rows: list[tuple[str, str, int]], val: set[int], name: str) -> None:
    """Write train and val, which are split by the images' numbers."""
    for split in ("train", "val"):
        mine = [row for row in rows if (row[2] in val) == (split == "val")]
        write_vqa(folder, split, mine, name)


def convert_easy_vqa(archive: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    for part in ("train", "test"):
        prefix = rf"(?:easy_vqa/)?data/{part}"
        try:
            content = json.loads(archive.text(rf"{prefix}/questions\.json"))
            rows = [(str(question), str(answer), int(image)) for question, answer, image in content]
        except FetchError:
            raise
        except (TypeError, ValueError) as error:
            raise FetchError(f"easy_vqa: {part}/questions.json is not a list of triples ({error})") from None
        rows.sort(key=lambda row: row[2])
        name = "{}.png" if part == "train" else "test_{}.png"
        for path, content in archive.files(rf"{prefix}/images/\d+\.png"):
            (folder / "images" / name.format(Path(path).stem)).write_bytes(content)
        if part == "train":
            _split_by_image(folder, rows, set(validation("easy_vqa")), name)
        else:
            write_vqa(folder, "test", rows, name)


# Almost every question names its image, "what is on the desk in the image3 ?"; the name is removed.
_DAQUAR_TAIL = re.compile(r"\s*(?:\b(?:in|of|on) the )?image(\d+)\s*\?\s*$")


def convert_daquar(archive: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    parts = {
        part: {int(n) for n in re.findall(r"image(\d+)", archive.text(rf"dataset/{part}_images_list\.txt"))}
        for part in ("train", "test")
    }
    lines = [line for line in archive.text(r"dataset/all_qa_pairs\.txt").splitlines() if line.strip()]
    if len(lines) % 2:
        raise FetchError(f"daquar: expected questions and answers in turn, found {len(lines)} lines")
    rows = []
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        match = re.findall(r"image\s*(\d+)", question)
        if not match:
            raise FetchError(f"daquar: expected a question that names its image, found {question!r}")
        rows.append((_DAQUAR_TAIL.sub("", question).strip() + " ?", answer.strip(), int(match[-1])))
    rows.sort(key=lambda row: row[2])
    training = [row for row in rows if row[2] in parts["train"]]
    _split_by_image(folder, training, set(validation("daquar")), "image{}.jpg")
    write_vqa(folder, "test", [row for row in rows if row[2] in parts["test"]], "test_image{}.jpg")
    for path, content in archive.files(r"dataset/images/image\d+\.png"):
        number = int(Path(path).stem.removeprefix("image"))
        if number in parts["train"] | parts["test"]:
            name = f"image{number}.jpg" if number in parts["train"] else f"test_image{number}.jpg"
            _shrink(content, folder / "images" / name)


def _shrink(png: bytes, path: Path) -> None:
    """Resize to 280x212 and convert to JPEG: half the side suffices for the models here, a thirtieth of the size."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").resize((280, 212), Image.Resampling.LANCZOS).save(path, "JPEG", quality=92)
