"""Readers of tables, JSON and text, through the data sets of all tasks that use them."""

from __future__ import annotations

import codecs
import csv
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image

from mmattn.data.audio.reading import read_audio
from mmattn.data.errors import Problems, shorten
from mmattn.data.image.processor import load_image
from mmattn.data.names import nfc
from mmattn.data.readers import parse_json, read_json, read_lines, read_rows, read_text
from mmattn.data.text.sentences import read_sentences
from mmattn.data.text.tokenizer import TextProcessor
from mmattn.generate import GenerationConfig
from mmattn.pretrained.files import open_source, read_config
from mmattn.tasks.asr.data import ASRDataset
from mmattn.tasks.asr.public_processors import CTCText
from mmattn.tasks.classification.data import ClassificationDataset, ClassificationSample
from mmattn.tasks.classification.processor import ClassificationProcessor
from mmattn.tasks.segmentation.data import SegmentationDataset
from mmattn.tasks.summarization.data import SummaryDataset
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.vqa.data import VQADataset
from tests.conftest import refused
from tests.data.files import bad_data, write

Texts = Callable[[Any], list[str]]
TASKS: dict[str, tuple[Any, dict[str, str], str, Texts]] = {  # data set, a row's other cells, its column of text
    "asr": (ASRDataset, {"audio": "{n}.wav"}, "text", lambda found: [s.text for s in found]),
    "summarization": (SummaryDataset, {"summary": "it"}, "document", lambda found: [s.source for s in found]),
    "translation": (TranslationDataset, {"de": "es"}, "en", lambda found: [s.source for s in found]),
    "vqa": (VQADataset, {"image": "{n}.png", "answer": "yes"}, "question", lambda found: [s.question for s in found]),
    "classification": (ClassificationDataset, {"path": "{n}.png"}, "label", lambda found: [s.labels[0] for s in found]),
}
TEXTS = ['5" of rain', 'he said "so', "it's", '"quoted"', '" a lone one']
NESTED, ENDLESS = "[" * 100_000 + "]" * 100_000, "9" * 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for n in range(len(TEXTS)):
        soundfile.write(folder / f"{n}.wav", torch.zeros(800).numpy(), 8000)
        Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / f"{n}.png")
    return folder


def table(task: str, texts: list[str]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a task's table with one text a row."""
    _, others, column, _ = TASKS[task]
    return [column, *others], [[text, *(cell.format(n=n) for cell in others.values())] for n, text in enumerate(texts)]


@pytest.mark.parametrize("task", TASKS)
def test_quotation_marks_in_a_tsv_are_literal(task: str, folder: Path) -> None:
    columns, rows = table(task, TEXTS)
    path = write(folder / f"{task}.tsv", "\r\n".join("\t".join(row) for row in [columns, *rows]) + "\r\n")
    dataset, *_, texts = TASKS[task]
    assert texts(dataset(path)) == TEXTS


@pytest.mark.parametrize("task", TASKS)
def test_manifest_named_json(task: str, folder: Path) -> None:
    if task == "vqa":
        return  # .json is a file of questions in the format of VQA v2
    columns, rows = table(task, TEXTS)
    path = write(folder / f"{task}.json", [dict(zip(columns, row, strict=True)) for row in rows])
    dataset, *_, texts = TASKS[task]
    assert texts(dataset(path)) == TEXTS


def test_cells_of_any_length(tmp_path: Path) -> None:
    limit, long = csv.field_size_limit(), "a " * 200_000
    for name, cell in (("a.csv", f'"{long}"'), ("a.tsv", long)):
        (row,) = read_rows(write(tmp_path / name, f"document\n{cell}\n"), Problems())
        assert row[2] == {"document": long}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "UTF-32-LE", "UTF-32-BE"])
@pytest.mark.parametrize("text", ['{"text": "a"}\n', "audio\ttext\n", "слово, ещё одно\n", "你好，世界。再见 3\n" * 9])
def test_wide_encodings_are_named(encoding: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", text.encode(encoding))
    for read in (
        read_text,
        read_lines,
        read_json,
        read_sentences,
        lambda path: list(read_rows(path, Problems("skip"))),
    ):
        bad_data(rf"a\.jsonl: expected UTF-8 text, found {encoding[:6]} \(iconv -f {encoding[:6]}", read, path)


def test_utf8_is_not_taken_for_a_wide_encoding(tmp_path: Path) -> None:
    for text in ("a\0b and more of it\n", "日本語\n", "é" * 5000, "a" * 4095 + "é\n"):
        assert read_text(write(tmp_path / "a.txt", text)) == text
    assert codecs.BOM_UTF8.decode() not in read_text(write(tmp_path / "a.txt", "\ufeffa"))


@pytest.mark.parametrize(
    ("value", "message"), [(NESTED, "brackets nested too deeply"), (ENDLESS, "an integer of 5,000 digits")]
)
def test_hostile_json(value: str, message: str, folder: Path, tmp_path: Path) -> None:
    whole = f'{{"questions": [],\n "n": {value}}}'
    bad_data(message, read_json, write(tmp_path / "a.json", whole))
    bad_data(message, read_sentences, tmp_path / "a.json")
    bad_data(message, VQADataset, tmp_path / "a.json")
    refused(message, parse_json, whole.encode(), error=json.JSONDecodeError)
    refused(r"a\.json: not JSON", GenerationConfig.read, tmp_path / "a.json")
    (tmp_path / "config.json").write_text(whole)
    refused(r"config\.json: not JSON", read_config, open_source(tmp_path), tmp_path)
    bad_data(
        "tokenizer.json: expected a tokenizer", TextProcessor.load, write(tmp_path / "tokenizer.json", whole).parent
    )
    bad_data(f"vocab.json: expected JSON, found .*{message}", CTCText, {"vocab.json": whole.encode()})
    # A row with such a value is one bad item among others.
    good = {"audio": "0.wav", "text": "a", "document": "a", "summary": "b", "en": "a", "de": "b", "path": "0.png"}
    good |= {"label": "a", "image": "0.png", "question": "a?", "answer": "b"}
    lines = [good, json.dumps(good)[:-1] + f', "duration": {value}}}']
    for task, (dataset, *_) in TASKS.items():
        path = write(folder / f"{task}.jsonl", lines)
        bad_data(rf"{task}\.jsonl, line 2: expected a JSON object, found .*{message}", dataset, path)
        assert len(dataset(path, on_error="skip")) == 1
    cells = {"audio": "0.wav", "text": "a", "words": value, "document": "a", "references": value}
    cells |= {"image": "0.png", "question": "a?", "answer": "b", "regions": value}
    path = write(folder / "cells.csv", f"{','.join(cells)}\n{','.join(cells.values())}\n")
    for dataset in (ASRDataset, SummaryDataset, VQADataset):
        bad_data(r"cells\.csv, line 2: expected ", dataset, path)


def test_values_nested_just_below_the_limit_are_shortened(tmp_path: Path) -> None:
    found: Any = []
    for _ in range(100_000):
        found = [found]
    assert shorten(found) == "a list nested too deeply"
    while found:  # taken apart without recursion
        found = found.pop()
    deep = '{"a": ' * 800 + '{"caption": "A dog."}' + "}" * 800
    assert read_sentences(write(tmp_path / "a.json", deep)) == ["A dog."]


@pytest.mark.parametrize(("stored", "given"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_files_are_found_in_the_other_normalization_form(stored: str, given: str, tmp_path: Path) -> None:
    """Names that look alike are equal: those of files, class folders, masks and ids."""
    there, here = (unicodedata.normalize(form, "Müller-é") for form in (stored, given))
    (tmp_path / there).mkdir()
    for name in (f"{there}.png", f"{there}/{there}.png", "images/x.png", f"images/{there}.png", f"masks/{here}.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    for name in (f"{there}.wav", f"{there}/{there}.wav"):
        soundfile.write(tmp_path / name, torch.zeros(800).numpy(), 8000)
    for name in (here, f"{here}/{here}"):
        row = {
            "audio": f"{name}.wav",
            "text": "a",
            "image": f"{name}.png",
            "question": "a?",
            "answer": "b",
            "label": "c",
        }
        path = write(tmp_path / "a.jsonl", [row])
        assert ASRDataset(path)[0].read(8000).shape == (800,)
        assert load_image(VQADataset(path)[0].image).size == (4, 4)
        assert load_image(ClassificationDataset(path)[0].image).size == (4, 4)
        assert read_audio(tmp_path / f"{name}.wav", 8000).shape == (800,)
    (tmp_path / f"{there}.trans.txt").write_text(f"{here} AH\n")
    assert ASRDataset(tmp_path)[0].text == "AH"
    assert read_text(tmp_path / f"{here}.trans.txt") == f"{here} AH\n"
    (tmp_path / "images/x.png").unlink()
    assert SegmentationDataset(tmp_path)[0].id == nfc(here)
    samples = [ClassificationSample(str(n), tmp_path / f"{here}.png", [label]) for n, label in enumerate((there, "b"))]
    processor = ClassificationProcessor.fit(ClassificationDataset(samples))
    again = ClassificationSample("2", tmp_path / f"{here}.png", [here])
    assert processor.collate([again]).targets.tolist() == [[1, 0]]
    processor.check(ClassificationDataset([again]))
    bad_data("expected an audio file, found no such file", read_audio, tmp_path / f"{here}.flac", 8000)


@pytest.mark.parametrize("name", ["a" * 3000, "é" * 200, "a\0"])
def test_names_that_cannot_exist(name: str, tmp_path: Path) -> None:
    row = {"audio": f"{name}.wav", "text": "a", "image": f"{name}.png", "question": "a?", "answer": "b", "label": "c"}
    path = write(tmp_path / "a.jsonl", [row])
    for dataset in (ASRDataset, VQADataset):
        bad_data(r"a\.jsonl, line 1: expected ", dataset, path)
    images = ClassificationDataset(path)
    assert images.fingerprint()
    bad_data("expected a.* image", load_image, images[0].image)
    bad_data("expected a.* audio file", read_audio, tmp_path / f"{name}.wav", 8000)
