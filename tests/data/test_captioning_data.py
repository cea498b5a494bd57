"""Captions and their images: all file formats, bad input, drawing of captions, boxes of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.data.image.processor import ImageAugment, ImageProcessor
from mmattn.data.text.tokenizer import TextProcessor
from mmattn.tasks.captioning.data import CaptionDataset, CaptionSample
from mmattn.tasks.captioning.demo import make
from mmattn.tasks.captioning.processor import CaptionProcessor
from tests.conftest import refused

CAPTIONS = {"a.jpg": ["A dog runs .", "the dog, running"], "b.jpg": ['two "cats" sleep']}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for n, name in enumerate(CAPTIONS):
        Image.fromarray(np.full((8 + n, 12, 3), 40 * n, np.uint8)).save(tmp_path / "images" / name)
    return tmp_path


def coco() -> dict[str, Any]:
    images = [{"id": n, "file_name": name} for n, name in enumerate(CAPTIONS)]
    pairs = [(n, text) for n, texts in enumerate(CAPTIONS.values()) for text in texts]
    return {"images": images, "annotations": [{"id": k, "image_id": n, "caption": t} for k, (n, t) in enumerate(pairs)]}


def karpathy() -> dict[str, Any]:
    entries = [
        {"filename": name, "imgid": n, "split": "restval" if n else "train", "sentences": [{"raw": t} for t in texts]}
        for n, (name, texts) in enumerate(CAPTIONS.items())
    ]
    entries.append({"filename": "absent.jpg", "imgid": 9, "split": "test", "sentences": [{"raw": "none"}]})
    return {"images": entries, "dataset": "flickr8k"}


def rows() -> list[tuple[str, str]]:
    return [(name, text) for name, texts in CAPTIONS.items() for text in texts]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


FORMATS = {
    "captions_train.json": json.dumps(coco()),
    "dataset_flickr8k.json": json.dumps(karpathy()),
    "captions.txt": "image,caption\n" + "".join(f"{name},{quoted(text)}\n" for name, text in rows()),
    "Flickr8k.token.txt": "".join(f"{name}#{n}\t{text}\n" for n, (name, text) in enumerate(rows())),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{n}| {k}| {t}\n" for k, (n, t) in enumerate(rows())),
    "a.csv": "caption,image\n" + "".join(f"{quoted(text)},images/{name}\n" for name, text in rows()),
    "a.tsv": "image\tcaption\n" + "".join(f"{name}\t{text}\n" for name, text in rows()),
    "a.jsonl": "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows()),
    "b.jsonl": "".join(json.dumps({"image": name, "captions": texts}) + "\n" for name, texts in CAPTIONS.items()),
    "lines.json": "".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(folder: Path, name: str) -> None:
    (folder / name).write_text(FORMATS[name])
    samples = CaptionDataset(folder / name, "train").samples
    assert [sample.captions for sample in samples] == list(CAPTIONS.values())
    assert [Path(sample.image).name for sample in samples] == list(CAPTIONS)


def test_rows_in_memory(folder: Path) -> None:
    first, second = (np.full((8, 8, 3), n, np.uint8) for n in range(2))
    samples = CaptionDataset([(first, "a"), (second, "b"), (first, "c")]).samples
    assert [sample.captions for sample in samples] == [["a", "c"], ["b"]]
    assert samples[0].image is first
    found = CaptionDataset([{"image": str(folder / "images" / "a.jpg"), "caption": "x"}]).samples
    assert found[0].captions == ["x"]


def changed(content: dict[str, Any], key: str, index: int, **values: Any) -> str:
    content[key][index].update(values)
    return json.dumps(content)


LONG = "word " * 1000
BAD: dict[str, tuple[str, str, str]] = {  # file, content, message
    "image without captions": (
        "c.json",
        json.dumps(coco() | {"annotations": coco()["annotations"][:2]}),
        r"c\.json, images\[1\] \(b\.jpg\): expected at least one caption, found none",
    ),
    "caption without image": (
        "c.json",
        changed(coco(), "annotations", 1, image_id=7),
        r"c\.json, annotations\[1\]: expected the image_id of one of the images, found '7'",
    ),
    "row without image": (
        "c.csv",
        "image,caption\n,a dog\n",
        r"c\.csv, line 2: expected the path of an image, found ''",
    ),
    "missing image": (
        "c.csv",
        "image,caption\nno.jpg,a dog\n",
        r"c\.csv, line 2: expected its image no\.jpg in .*no such",
    ),
    "empty caption": ("c.csv", "image,caption\na.jpg,\n", r"c\.csv, line 2: expected a caption of a\.jpg .*not empty"),
    "empty caption in JSON": (
        "c.json",
        changed(coco(), "annotations", 0, caption=" "),
        r"c\.json, annotations\[0\]: expected a caption of the image 0 .*found ' '",
    ),
    "empty sentence": (
        "k.json",
        changed(karpathy(), "images", 0, sentences=[{"raw": ""}]),
        r"k\.json, images\[0\] \(a\.jpg\): expected captions that are texts and not empty",
    ),
    "1,000 words": (
        "c.csv",
        f"image,caption\na.jpg,{LONG}\n",
        r"c\.csv, line 2: expected .*of at most 500 words.*1,000",
    ),
    "JSON of VQA": ("q.json", '{"questions": []}', r"q\.json: expected an object with a list 'images'.*keys questions"),
    "JSON of detection": (
        "d.json",
        json.dumps(coco() | {"annotations": [{"image_id": 0, "bbox": [1, 2, 3, 4]}]}),
        r"d\.json: expected a list 'annotations' with an image_id and a caption each, found .*bbox",
    ),
    "JSON of other annotations": (
        "d.json",
        json.dumps(coco() | {"annotations": {"0": ["a dog"]}}),
        r"d\.json: expected a list 'annotations' with an image_id and a caption each, found \{'0'",
    ),
    "damaged line": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 4   A dog .\n",
        r"results\.csv, line 2: expected 3 cells",
    ),
    "no token list": (
        "x.token.txt",
        "a.jpg#0\ta dog\nb.jpg a cat\n",
        r"x\.token\.txt, line 2: expected NAME\.jpg#NUMBER",
    ),
    "other columns": ("c.csv", "picture,caption\na.jpg,x\n", r"c\.csv, header: expected the column image"),
    "other ending": ("c.xml", "x", r"c\.xml: expected COCO's captions JSON.*the ending '\.xml'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(folder: Path, name: str) -> None:
    file, content, message = BAD[name]
    (folder / file).write_text(content)
    text = refused(message, CaptionDataset, folder / file, "train", error=DataError)
    assert "\n" not in text


def test_bad_items_are_skipped(folder: Path) -> None:
    (folder / "images" / "b.jpg").write_text("no image")
    lines = ["image,caption", "a.jpg,a dog", "b.jpg,a cat", "none.jpg,one", "none.jpg,two", "a.jpg,", "a.jpg,again"]
    (folder / "c.csv").write_text("\n".join(lines))
    dataset = CaptionDataset(folder / "c.csv", on_error="skip")
    assert [sample.captions for sample in dataset.samples] == [["a dog", "again"]]
    assert [where.rpartition(", ")[2] for where, _ in dataset.skipped] == ["line 4", "line 6", "line 3"]
    assert "b.jpg" in dataset.skipped[-1][1]


def test_captions_are_optional_for_prediction(folder: Path) -> None:
    (folder / "c.csv").write_text("image\na.jpg\nb.jpg\n")
    samples = CaptionDataset(folder / "c.csv", require_labels=False).samples
    assert [sample.captions for sample in samples] == [[], []]
    (folder / "c.json").write_text(json.dumps({"images": coco()["images"]}))
    assert len(CaptionDataset(folder / "c.json", require_labels=False)) == 2
    refused("expected a list 'annotations'", CaptionDataset, folder / "c.json", error=DataError)


# The processor -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> CaptionProcessor:
    return CaptionProcessor.fit(CaptionDataset(make("train", 20)), image_size=32)


def test_captions_are_drawn_by_their_seeds(processor: CaptionProcessor) -> None:
    samples = make("train", 3)
    whole = processor.collate(samples)
    assert len(whole) == 3
    assert whole.image_index.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    refused("need seeds", processor.collate, samples, captions=1)
    drawn = [processor.collate(samples, seeds=[s, s + 1, s + 2], captions=2) for s in (0, 0, 40)]
    assert drawn[0].image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(drawn[0].labels, drawn[1].labels)
    assert drawn[0].labels.shape != drawn[2].labels.shape or not torch.equal(drawn[0].labels, drawn[2].labels)
    assert drawn[0].references == whole.references == [sample.captions for sample in samples]
    seen = {n for s in range(200) for n in processor.collate(samples[:1], seeds=[s], captions=1).labels[0].tolist()}
    assert seen == set(processor.collate(samples[:1]).labels.flatten().tolist()) - {0}, "all captions are drawn"


def test_words_keep_their_boxes(processor: CaptionProcessor) -> None:
    sample = make("train", 1)[0]
    batch = processor.collate([sample])
    for row in range(5):
        text = sample.captions[row]
        spans = processor.target.spans(text)
        named = {text[slice(*spans[n])] for n in batch.region_tokens[row][batch.region_mask[row]].tolist()}
        assert named == {text[slice(*span)] for span, _ in sample.groundings[row]}
    augment = ImageAugment(0, 0, shift=0.1, scale=0.2)
    moved = processor.collate([sample], augment=augment, seeds=[3])
    assert not torch.allclose(moved.regions, batch.regions)
    dataset = CaptionDataset([sample])
    assert dataset.preload(processor.image)
    torch.testing.assert_close(processor.collate(dataset.samples).pixel_values, batch.pixel_values)


def test_decoded_captions_are_plain_text() -> None:
    text = "a dog isn't here, it's in a t-shirt."
    target = TextProcessor.fit([text])
    processor = CaptionProcessor(ImageProcessor(8), target)
    assert processor.decode(target.encode(text)) == text
    assert processor.decode([]) == ""


def test_image_without_captions_gives_an_empty_one(processor: CaptionProcessor) -> None:
    batch = processor.collate([CaptionSample("x", np.zeros((9, 9, 3), np.uint8))])
    assert batch.labels.tolist() == [[processor.target.eos_id]]
    assert batch.references == [[]]
