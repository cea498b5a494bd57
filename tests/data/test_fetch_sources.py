"""The public data sets from a server on loopback: converted as documented, or one error and no files."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmattn.data.errors import Problems
from mmattn.data.readers import read_rows
from mmattn.tasks.asr.data import ASRDataset
from mmattn.tasks.classification.data import ClassificationDataset
from mmattn.tasks.segmentation.data import SegmentationDataset
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.vqa.data import VQADataset
from scripts.fetch.archive import digest, fetch, sources, validation
from scripts.fetch.images import masks_digest
from tests.data.fetching import NOWHERE, easy_vqa_files, get, measured_on, not_fetched, not_got, png
from tests.image_files import encoded

# Questions about images


def test_easy_vqa_is_converted(tmp_path: Path) -> None:
    folder = get("easy_vqa", easy_vqa_files(), tmp_path)
    parts = {split: VQADataset(folder / f"questions_{split}.json") for split in ("train", "val", "test")}
    val = {i for i in validation("easy_vqa") if i < 200}
    assert {int(sample.image_id) for sample in parts["val"]} == val
    assert {int(sample.image_id) for sample in parts["train"]} == set(range(200)) - val
    assert len(parts["train"]) + len(parts["val"]) == 201
    assert Path(parts["test"][0].image).name == "test_0.png"
    assert Path(parts["test"][0].image).read_bytes() == png(1000)
    sample = next(s for s in parts["train"] if s.question == "is it red?")
    assert (sample.answers, sample.question_type, sample.answer_type) == (["yes"], "is it", "yes/no")


def test_daquar_is_converted(tmp_path: Path) -> None:
    pairs = [
        ("what is on the desk in the image3 ?", "book, scissor"),
        ("what is at the left of the image5 ?", "garbage_bin"),
        ("how many brown objects in this image3 ?", "2"),
        ("what is behind the image4 on the table in the image4 ?", "door"),
        ("what is it in the image1 ?", "x"),
    ]
    files = {
        "dataset/all_qa_pairs.txt": "\n".join(line for pair in pairs for line in pair).encode(),
        "dataset/train_images_list.txt": b"image3\nimage4\nimage5\n",
        "dataset/test_images_list.txt": b"image1\n",
    }
    files |= {f"dataset/images/image{i}.png": png(i, (560, 425)) for i in (1, 3, 4, 5, 6)}
    folder = get("daquar", files, tmp_path)
    parts = {split: VQADataset(folder / f"questions_{split}.json") for split in ("train", "val", "test")}
    rows = {split: [(s.id, s.question, s.answers[0]) for s in part] for split, part in parts.items()}
    assert rows["train"] == [
        ("1", "what is on the desk ?", "book, scissor"),
        ("2", "how many brown objects in this ?", "2"),
        ("3", "what is behind the image4 on the table ?", "door"),
    ]
    assert rows["val"] == [("1", "what is at the left ?", "garbage_bin")]
    assert rows["test"] == [("1", "what is it ?", "x")]
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == ["image3.jpg", "image4.jpg", "image5.jpg", "test_image1.jpg"]
    with Image.open(folder / "images" / "image3.jpg") as image:
        assert image.size == (280, 212)


# Images

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_cifar10(tmp_path: Path) -> None:
    val = {name: set(numbers) for name, numbers in validation("cifar10").items()}
    assert list(val) == CLASSES
    assert all(len(numbers) == 500 and min(numbers) >= 0 and max(numbers) < 5000 for numbers in val.values())
    chosen = {name: [min(numbers), min(set(range(5000)) - numbers)] for name, numbers in val.items()}
    files = {f"train/{c}/{n:04d}.jpg": png(n, (32, 32), "JPEG") for c, numbers in chosen.items() for n in numbers}
    files |= {f"test/{c}/0007.jpg": png(7, (32, 32), "JPEG") for c in CLASSES} | {
        "README.md": b"no",
        "get_pic.sh": b"no",
    }
    folder = get("cifar10", files, tmp_path)
    assert {p.name for p in folder.iterdir()} == {"SOURCE.json", "classes.txt", "test.tar", "train.tar", "val.tar"}
    assert (folder / "classes.txt").read_text().split() == CLASSES
    for part, place in (("val", 0), ("train", 1)):
        samples = ClassificationDataset(folder / f"{part}.tar").samples
        assert {s.id for s in samples} == {f"{c}/{numbers[place]:04d}.jpg" for c, numbers in chosen.items()}
        for sample in samples:
            assert sample.image.read() == files[f"train/{sample.id}"]
        assert [s.labels[0] for s in samples] != sorted(s.labels[0] for s in samples), "classes are shuffled"


def mask(value: int, size: tuple[int, int] = (480, 360), **options: int) -> bytes:
    numbers = np.full((size[1], size[0]), value, np.uint8)
    numbers[:5] = 11
    return encoded(Image.fromarray(numbers), **options)


CAMVID = {f"CamVid/{part}/{n}_x.png": png(n, (480, 360)) for part in ("train", "val", "test") for n in (1, 2)}
CAMVID |= {f"CamVid/{part}annot/{n}_x.png": mask(n) for part in ("train", "val", "test") for n in (1, 2)}


def test_camvid(tmp_path: Path) -> None:
    folder = get("camvid", {**CAMVID, "CamVid/train.txt": b"no", "Models/a.png": b"no"}, tmp_path)
    for part in ("train", "val", "test"):
        dataset = SegmentationDataset(folder / part)
        assert [s.id for s in dataset.samples] == ["1_x", "2_x"]
        assert dataset.classes is not None
        assert dataset.classes.names[:2] == ("Sky", "Building")
        assert dataset.classes.void == (11,)
        numbers = np.asarray(Image.open(folder / part / "masks" / "2_x.png"))
        assert np.array_equal(numbers, np.asarray(Image.open(io.BytesIO(mask(2)))))
        with Image.open(folder / part / "images" / "1_x.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (480, 360))
    before = masks_digest(folder / "val" / "masks")
    (folder / "val" / "masks" / "1_x.png").write_bytes(mask(1, compress_level=0))
    assert masks_digest(folder / "val" / "masks") == before
    (folder / "val" / "masks" / "1_x.png").write_bytes(mask(3))
    assert masks_digest(folder / "val" / "masks") != before


# Speech


def wav(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 8000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def digits(takes: list[int]) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        f"recordings/{digit}_{speaker}_{take}.wav": wav(rng.integers(-999, 999, 80 + take).astype(np.int16))
        for digit in (3, 7)
        for speaker in ("theo", "anna")
        for take in takes
    }


def test_fsdd(tmp_path: Path) -> None:
    files = digits([0, 7, 12])
    folder = get("fsdd", files | {"README.md": b"x", "recordings/3_theo_60.wav": wav(np.zeros(9))}, tmp_path)
    for split, take, mark in (("test", 0, "test_"), ("val", 7, ""), ("train", 12, "")):
        found = ASRDataset(folder / f"{split}.jsonl")
        names = [f"audio/{mark}{d}_{s}_{take}.flac" for d in (3, 7) for s in ("anna", "theo")]
        assert [sample.id for sample in found.samples] == names
        assert [(s.text, s.speaker) for s in found.samples][1:3] == [("three", "theo"), ("seven", "anna")]
        assert found[0].duration == round((80 + take) / 8000, 4)
    kept = soundfile.read(folder / "audio" / "7_theo_12.flac", dtype="int16")[0]
    assert np.array_equal(kept, soundfile.read(io.BytesIO(files["recordings/7_theo_12.wav"]), dtype="int16")[0])


# Texts


def packed(text: str) -> bytes:
    return gzip.compress(text.encode())


MULTI30K = {
    f"data/task1/raw/{part}.{language}.gz": packed(text)
    for part in ("train", "val", "test_2016_flickr")
    for language, text in (("en", "A dog.\nTwo  cats.\n"), ("de", "Ein Hund. \nZwei\tKatzen\u00a0.\n"))
} | {"data/task1/raw/train.fr.gz": packed("Un chien.\n"), "README.md": b"no"}
AESLC = {
    "enron_subject_line/train/b_1.subject": b"Hello  all,\nthe  plan.\n\n@subject\nThe plan",
    "enron_subject_line/train/a_1.subject": "Café\n\n@subject\nMenu \n".encode(),
    "enron_subject_line/train/c_1.subject": b"\n\n@subject\nNothing",
    "enron_subject_line/dev/d_1.subject": b"Body.\n\n@subject\nOne\n\n@ann0\nTwo  words\n\n@ann1\nThree\n\n@ann2\nFour",
    "enron_subject_line/test/e_1.subject": b"Body.\n\n@subject\nOne\n\n@ann0\nTwo",
}


def test_multi30k(tmp_path: Path) -> None:
    folder = get("multi30k_en_de", MULTI30K, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "SOURCE.json", "test.de", "test.en", "train.de", "train.en", "val.de", "val.en"
    ]  # fmt: skip
    assert (folder / "train.de").read_bytes() == b"Ein Hund.\nZwei Katzen .\n"
    samples = TranslationDataset(folder / "train").samples
    assert [(s.source, s.target) for s in samples] == [("A dog.", "Ein Hund."), ("Two cats.", "Zwei Katzen .")]


def test_aeslc(tmp_path: Path) -> None:
    folder = get("aeslc", AESLC, tmp_path)
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert train == [
        {"id": "a_1", "document": "Café", "summary": "Menu"},
        {"id": "b_1", "document": "Hello  all,\nthe  plan.", "summary": "The plan"},
    ]
    (val,) = [row for _, _, row in read_rows(folder / "val.jsonl", Problems())]
    assert val["references"] == ["One", "Two words", "Three", "Four"]


def test_tinyshakespeare(tmp_path: Path) -> None:
    plays = "".join(chr(97 + n % 26) for n in range(200))
    folder = get("tinyshakespeare", {"data/tinyshakespeare/input.txt": plays.encode()}, tmp_path)
    parts = [(folder / f"{name}.txt").read_text() for name in ("train", "val", "test")]
    assert "".join(parts) == plays
    assert list(map(len, parts)) == [180, 10, 10]


def zipped(**parts: str) -> dict[str, bytes]:
    """The archive's file of the Penn Treebank."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as files:
        for part, text in parts.items():
            files.writestr(f"ptb/ptb.{part}.txt", text)
    return {"data/ptb.zip": content.getvalue()}


def test_ptb(tmp_path: Path) -> None:
    folder = get("ptb", zipped(train=" a <unk> \n b \n", valid=" c \n", test="d"), tmp_path)
    assert [(folder / f"{name}.txt").read_text() for name in ("train", "val", "test")] == ["a <unk>\nb\n", "c\n", "d\n"]


def scitldr(**parts: list[tuple[str, list[str], list[str]]]) -> dict[str, bytes]:
    """The files of rows of an id, sentences and summaries."""
    return {
        f"SciTLDR-Data/SciTLDR-A/{part}.jsonl": "".join(
            json.dumps({"source": source, "target": target, "paper_id": name, "title": "x"}) + "\n"
            for name, source, target in rows
        ).encode()
        for part, rows in parts.items()
    }


SCITLDR = scitldr(
    train=[("a", ["One  é.", "Two.\n"], ["First ", "second"]), ("b", ["Three."], ["x"])],
    dev=[("c", ["Four."], ["y ", "z"])],
    test=[("d", ["Three."], ["w"])],
)


def test_scitldr(tmp_path: Path) -> None:
    folder = get("scitldr_a", SCITLDR, tmp_path)
    line = '{"id": "a", "document": "One é. Two.", "summary": "First"}\n'
    assert (folder / "train.jsonl").read_text(encoding="utf-8") == line  # the other one is in the test part
    (val,) = [row for _, _, row in read_rows(folder / "val.jsonl", Problems())]
    assert val == {"id": "c", "document": "Four.", "summary": "y", "references": ["y", "z"]}


# Unexpected content

VAL_DE, DIGITS = "data/task1/raw/val.de.gz", digits([0, 7, 12])


def without(part: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if part not in name}


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("cifar10", {"train/fish/1.jpg": b"-"}, r"expected one of the classes airplane.*, found train/fish/1\.jpg"),
        ("cifar10", {f"train/cat/{n:04}.jpg": b"-" for n in range(50)}, "cifar10: the archive has no images of test"),
        ("camvid", CAMVID | {"CamVid/valannot/1_x.png": mask(12)}, r"1_x\.png: mask: .* numbers up to 11, found 12"),
        ("camvid", CAMVID | {"CamVid/valannot/1_x.png": mask(1, (48, 36))}, r"480 x 360 pixels, found \(48, 36\)"),
        ("camvid", CAMVID | {"CamVid/val/1_x.png": mask(1)[:200]}, r"val/1_x\.png: image .*truncated or damaged"),
        ("camvid", CAMVID | {"CamVid/val/3_x.png": CAMVID["CamVid/val/2_x.png"]}, "masks as images of val, found 2, 3"),
        ("fsdd", without("_7.wav", DIGITS), "no recordings of val"),
        ("fsdd", DIGITS | {"recordings/3_theo_7.wav": b"text"}, "3_theo_7.wav is no sound"),
        ("multi30k_en_de", without("val.de", MULTI30K), r"lines of val, found \[2, 0\]"),
        ("multi30k_en_de", MULTI30K | {VAL_DE: packed("Eins.\n")}, r"found \[2, 1\]"),
        ("multi30k_en_de", MULTI30K | {VAL_DE: b"no gzip"}, "val.de.gz is no gzip"),
        ("aeslc", without("dev", AESLC), "no mails of val"),
        ("scitldr_a", without("dev", SCITLDR), "no abstracts of val"),
        ("tinyshakespeare", {"data/tinyshakespeare/input.txt": b"short"}, "expected plays, found 5 characters"),
        ("ptb", {"data/ptb.zip": b"no zip"}, r"expected ptb\.train\.txt.* in data/ptb\.zip"),
        ("ptb", zipped(train="a\n", test="c\n"), r"expected .* \(.*ptb\.valid\.txt"),
        ("scitldr_a", SCITLDR | scitldr(dev=[("c", ["Four."], [])]), "dev.jsonl has no source, target and paper_id"),
    ],
)
def test_unexpected_content(name: str, files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    not_got(message, name, files, tmp_path / "out")


def test_changed_content_raises(tmp_path: Path) -> None:
    not_got(r"train\.jsonl has sha256 .*audio/ has sha256", "fsdd", DIGITS, tmp_path / "out", checked=True)
    message = "train.en has sha256 .*, expected f7cb7c7d411f"
    not_got(message, "multi30k_en_de", MULTI30K, tmp_path / "out", checked=True)


def test_damaged_existing_tar_raises(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train.tar").write_bytes(b"no tar")
    not_fetched(r"exists and is not cifar10 .*damaged", sources()["cifar10"], tmp_path)


# The data of the measurements: sources are rebuilt from them, and converting these must reproduce the data


def questions_of(given: Path) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Question, answer and image of train and val; the images' numbers."""
    rows = []
    for split in ("train", "val"):
        content = json.loads((given / f"questions_{split}.json").read_text())
        notes = json.loads((given / f"annotations_{split}.json").read_text())["annotations"]
        for entry, note in zip(content["questions"], notes, strict=True):
            rows.append((entry["question"], note["multiple_choice_answer"], entry["image_id"]))
    return rows, [re.sub(r"\D", "", path.name) for path in (given / "images").iterdir()]


def easy_vqa(given: Path) -> dict[str, bytes]:
    rows, numbers = questions_of(given)
    files = {"data/train/questions.json": json.dumps(rows).encode(), "data/test/questions.json": b"[]"}
    return files | {f"data/train/images/{i}.png": b"-" for i in numbers}


def daquar(given: Path) -> dict[str, bytes]:
    rows, numbers = questions_of(given)
    lines = [line for q, a, i in rows for line in (re.sub(r" \?$", f" in the image{i} ?", q), a)]
    files = {"dataset/all_qa_pairs.txt": "\n".join(lines).encode(), "dataset/test_images_list.txt": b""}
    files["dataset/train_images_list.txt"] = "\n".join(f"image{i}" for i in numbers).encode()
    return files | dict.fromkeys((f"dataset/images/image{i}.png" for i in numbers), png(0, (4, 4)))


def cifar10(given: Path) -> dict[str, bytes]:
    files = {"test/cat/0000.jpg": b"-"}
    for part in ("train", "val"):
        with tarfile.open(given / f"{part}.tar") as tar:
            files |= {f"train/{m.name}": tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return files


def camvid(given: Path) -> dict[str, bytes]:
    tiny = png(0, (480, 360))
    files = {"CamVid/test/a.png": tiny, "CamVid/testannot/a.png": mask(1)}
    for part in ("train", "val"):
        for path in (given / part / "masks").iterdir():
            files[f"CamVid/{part}annot/{path.name}"] = path.read_bytes()
            files[f"CamVid/{part}/{path.name}"] = tiny
    return files


def fsdd(given: Path) -> dict[str, bytes]:
    """The held-out test split is rebuilt from the validation split."""
    files = {}
    for path in sorted((given / "audio").glob("*.flac")):
        content = wav(soundfile.read(path, dtype="int16")[0])
        files[f"recordings/{path.stem}.wav"] = content
        files[re.sub(r"_5$", "_0", f"recordings/{path.stem}") + ".wav"] = content
    return files


@pytest.mark.slow
@pytest.mark.parametrize("rebuild", [easy_vqa, daquar, cifar10, camvid, fsdd])
def test_splits_are_reproducible(rebuild: Any, real_data: Path, tmp_path: Path) -> None:
    """All files have the checksums of the table."""
    name = rebuild.__name__
    given = measured_on(real_data, name)
    get(name, rebuild(given), tmp_path, checked=True)
    assert fetch(sources()[name], real_data, NOWHERE) == given  # recognized in place


@pytest.mark.parametrize("name", ["multi30k_en_de", "aeslc", "scitldr_a", "tinyshakespeare", "ptb"])
def test_checksums_match_the_table(name: str, real_data: Path) -> None:
    given = measured_on(real_data, name)
    for file, expected in sources()[name].sha256.items():
        assert digest(given / file) == expected
