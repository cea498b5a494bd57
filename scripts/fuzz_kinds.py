"""The kinds of file that `fuzz.py` changes: how whole files are written, and how they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.fuzz_labeled import read_corpora, read_labels, read_video, write_corpora, write_labels, write_videos

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000
FIT = "--trainer.accelerator cpu --trainer.max_steps 1 --trainer.limit_val_batches 1 --data.train demo"
ROW = {"id": "{n}", "image": "{n}.png", "path": "{n}.png", "label": "cat", "question": "What is it?", "answer": "a cat"}
ROW |= {"answers": "cat|a cat", "image_id": "{n}", "audio": "{n}.wav", "text": 'He said "no".', "duration": "0.1"}
ROW |= {"speaker": "x", "document": "A dog, barking.", "summary": "A dog.", "en": "a dog", "de": "ein Hündchen"}


class Kind(NamedTuple):
    """Files of a kind."""

    name: str
    make: Callable[[Path], None]  # writes whole files into a folder
    read: Callable[[Path, Path, str], Any]  # reads a file of the folder, with on_error
    names: str = "*"  # patterns of the paths that are changed
    is_named: bool = True  # errors name the file; those of options name the option

    @property
    def folder(self) -> str:
        """Name of the folder of the whole files, which kinds may share."""
        return getattr(self.make, "__name__", self.names.strip("*."))

    def files(self, folder: Path) -> list[Path]:
        """The files of a folder that are changed."""
        return sorted(path for path in folder.rglob("*") if any(map(path.match, self.names.split())) and path.is_file())


def pixels(*shape: int) -> np.ndarray:
    """Random pixels, smooth enough to be compressed."""
    small = np.random.default_rng(0).integers(0, 255, (4, 4, *shape[2:]), np.uint8)
    return small.repeat(shape[0] // 4, 0).repeat(shape[1] // 4, 1)


def wave(seconds: float, channels: int = 1) -> np.ndarray:
    """A tone and noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (round(seconds * RATE), channels))
    return noise + 0.3 * np.sin(np.arange(len(noise)))[:, None]


# Images and recordings ------------------------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    from PIL import Image

    color, gray = Image.fromarray(pixels(32, 40, 3)), Image.fromarray(pixels(32, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {"a.png": color, "b.png": gray, "d.png": color.convert("P"), "a.gif": color, "a.bmp": gray, "a.tif": color}
    images |= {"c.png": Image.fromarray(pixels(32, 40, 4)), "a.webp": color, "a.jpg": color, "c.jpeg": gray}
    images |= {"e.png": Image.fromarray(pixels(32, 40).astype(np.uint16) * 200), "b.jpg": color.convert("CMYK")}
    for name, image in images.items():
        image.save(folder / name, **({"exif": exif} if name in ("a.png", "a.jpg") else {}))
    color.save(folder / "b.tif", compression="tiff_lzw")
    color.save(folder / "d.jpg", progressive=True)
    color.save(folder / "b.webp", lossless=True)


def read_image(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.image.processor import image_size, load_image

    image = load_image(path)
    assert image.mode == "RGB"
    assert image.size == image_size(path), "another size than the header's"


def write_masks(folder: Path) -> None:
    from PIL import Image

    mask = Image.fromarray(pixels(32, 40) % 5)
    wide = Image.fromarray((pixels(32, 40) % 5).astype(np.uint16))
    for name, image in {"a.png": mask, "b.png": mask.convert("1"), "c.png": wide, "a.gif": mask, "a.tif": mask}.items():
        image.save(folder / name)
    mask.putpalette([n // 3 for n in range(768)])
    mask.save(folder / "d.png")
    (folder / "classes.txt").write_text("0 void\n1 sky\n2 road\n3 tree\n4 Bär\n", encoding="utf-8")


def read_mask(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.image.masks import load_mask, read_classes

    return read_classes(path) if path.suffix == ".txt" else load_mask(path)


def write_audio(folder: Path) -> None:
    import soundfile

    forms = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG", "aiff": "AIFF", "au": "AU", "w64": "W64"}
    forms |= {"caf": "CAF", "rf64": "RF64", "voc": "VOC", "nist": "NIST", "svx": "SVX", "avr": "AVR", "mpc": "MPC2K"}
    for ending, form in forms.items():
        soundfile.write(folder / f"a.{ending}", wave(0.5), RATE, format=form)
    for name, subtype in {"b.wav": "MS_ADPCM", "c.wav": "FLOAT", "b.ogg": "OPUS", "b.aiff": "ALAW"}.items():
        soundfile.write(folder / name, wave(0.3, 2 if name == "c.wav" else 1), RATE, subtype=subtype)
    (folder / "b.mp3").write_bytes((folder / "a.mp3").read_bytes() * 2)


def read_audio(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.audio.reading import audio_seconds, read_audio

    samples = read_audio(path, RATE)
    assert np.isfinite(samples.numpy()).all()
    difference = len(samples) - audio_seconds(path) * RATE
    assert abs(difference) <= 2, f"audio_seconds differs by {difference:.1f} samples"


# Tables and texts -----------------------------------------------------------------------------------------------------


def write_table(folder: Path, ending: str) -> None:
    import soundfile
    from PIL import Image

    rows = [{key: text.format(n=n) for key, text in ROW.items()} for n in range(4)]
    for n in range(4):
        Image.fromarray(pixels(8, 8, 3) // (n + 1)).save(folder / f"{n}.png")
        soundfile.write(folder / f"{n}.wav", wave(0.1), RATE)
    if ending == "jsonl":
        more: dict[str, Any] = {
            "words": [["no", 0.0, 0.1]],
            "regions": [[0.1, 0.2, 0.5, 0.6]],
            "references": ["Ein Hund"],
        }
        more |= {"objects": [{"box": [0, 0, 1, 1], "labels": ["cat"]}], "answers": ["cat", "a cat"], "duration": 0.1}
        lines = [json.dumps(row | more, ensure_ascii=False) for row in rows]
    else:
        between, quote = ("\t", "") if ending == "tsv" else (",", '"')
        cells = [[*ROW], *([cell.replace('"', quote * 2) for cell in row.values()] for row in rows)]
        lines = [between.join(f"{quote}{cell}{quote}" for cell in row) for row in cells]
    (folder / f"table.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_table(path: Path, folder: Path, on_error: str) -> Any:
    """Reads a table as that of every task; its error is that of the last task that has one."""
    from mmattn.data.errors import UserError
    from mmattn.tasks.asr.data import ASRDataset
    from mmattn.tasks.classification.data import ClassificationDataset
    from mmattn.tasks.summarization.data import SummaryDataset
    from mmattn.tasks.translation.data import TranslationDataset
    from mmattn.tasks.vqa.data import VQADataset

    problem = None
    kinds: list[Any] = [ASRDataset, ClassificationDataset, SummaryDataset, VQADataset]
    for kind in kinds if path.suffix == ".csv" else [*kinds, TranslationDataset]:
        try:
            kind(path, on_error=on_error).fingerprint()
        except UserError as error:
            problem = error if problem is None or path.name in str(problem) else problem
    if problem is not None:
        raise problem


def write_texts(folder: Path) -> None:
    from PIL import Image

    (folder / "t.en").write_text("A dog.\nTwo dogs,  three.\n", encoding="utf-8")
    (folder / "t.de").write_text("Ein Hund.\nZwei Hündchen.\n", encoding="utf-8")
    write_table(folder, "jsonl")
    (folder / "0.trans.txt").write_text("0 HE SAID\n1 NO\n")
    Image.fromarray(pixels(8, 8, 3)).save(folder / "7.png")
    for name in ("questions", "annotations"):
        rows: list[Any] = [{"question_id": n, "image_id": 7, "question": "What is it?"} for n in range(3)]
        if name == "annotations":
            rows = [{"question_id": n, "image_id": 7, "answers": [{"answer": "cat"}]} for n in range(3)]
        images = {"images": [{"id": 7, "file_name": "7.png", "regions": [[0, 0, 1, 1]]}]}
        (folder / f"{name}.json").write_text(json.dumps({name: rows, "info": {}} | images))
    (folder / "captions.json").write_text(json.dumps({"a": [{"caption": "A dog."}], "b": {"text": ["one", "two"]}}))


def read_texts(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.text.sentences import read_sentences
    from mmattn.tasks.asr.data import ASRDataset
    from mmattn.tasks.translation.data import TranslationDataset
    from mmattn.tasks.vqa.data import VQADataset

    if path.suffix in (".en", ".de"):
        return TranslationDataset(folder / "t", on_error=on_error)
    if path.name == "0.trans.txt":
        return ASRDataset(folder, on_error=on_error)
    if path.name == "captions.json":
        return read_sentences(path)
    return VQADataset(folder / "questions.json", on_error=on_error)


def write_tars(folder: Path) -> None:
    from PIL import Image

    stream, whole = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels(8, 8, 3)).save(stream, "PNG")
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name in ("set/cat/a.png", "set/dog/b.png", "set/dog/c.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(stream.getvalue())
            archive.addfile(entry, io.BytesIO(stream.getvalue()))
    packed = {"a.tar": whole.getvalue(), "b.tar.gz": gzip.compress(whole.getvalue(), mtime=0)}
    packed |= {"c.tar.bz2": bz2.compress(whole.getvalue()), "d.tar.xz": lzma.compress(whole.getvalue())}
    for name, content in packed.items():
        (folder / name).write_bytes(content)


def read_tar(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.image.processor import load_image
    from mmattn.tasks.classification.data import ClassificationDataset

    data = ClassificationDataset(path, on_error=on_error)
    for where, sample in zip(data.places, data.samples, strict=True):
        load_image(sample.image, name=where)
    return data.fingerprint()


def write_boxes(folder: Path) -> None:
    from PIL import Image

    for place in ("coco", "voc", "yolo/images"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for n in (1, 2):
            Image.fromarray(pixels(32, 40, 3) // n).save(folder / place / f"{n}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 32} for n in (1, 2)]
    boxes = [{"id": n, "image_id": 1, "category_id": 3, "bbox": [n, 2, 9.5, 9], "iscrowd": n % 2} for n in range(3)]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "Bär"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "coco" / "all.json").write_text(json.dumps(content))
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), "1289", strict=True)
    )
    thing = f"<object><name>cat</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
    size = "<size><width>40</width><height>32</height></size>"
    for n in (1, 2):
        xml = f"<annotation><filename>{n}.png</filename>{size}{thing}</annotation>"
        (folder / "voc" / f"{n}.xml").write_text(xml)
    (folder / "yolo" / "labels").mkdir()
    (folder / "yolo" / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.1 0.2 0.4\n")
    (folder / "yolo" / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames:\n  0: cat\n  1: dog\n")


def read_boxes(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.tasks.detection.data import DetectionDataset
    from mmattn.tasks.detection.processor import DetectionProcessor

    source = {".json": path, ".xml": folder / "voc"}.get(path.suffix, folder / "yolo" / "data.yaml")
    dataset = DetectionDataset(source, on_error=on_error)
    batch = DetectionProcessor.fit(dataset).collate(dataset.samples)
    assert all(np.isfinite(truth.boxes_xyxy).all() and np.isfinite(truth.area).all() for truth in batch.truths)
    corners = batch.boxes_cxcywh[batch.box_mask]
    assert bool((corners > 0).all()), "a box without area"


def write_captions(folder: Path) -> None:
    from PIL import Image

    names = ["a.png", "b.png"]
    for n, name in enumerate(names, 1):
        Image.fromarray(pixels(32, 40, 3) // n).save(folder / name)
    images: list[dict[str, Any]] = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    told = [{"id": n, "image_id": n % 2, "caption": f"A dog, {n} Hündchen."} for n in range(4)]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": told}))
    images = [{"filename": name, "split": "train", "sentences": [{"raw": "A dog."}]} for name in names]
    (folder / "karpathy.json").write_text(json.dumps({"images": images, "dataset": "x"}))
    (folder / "captions.txt").write_text("image,caption\n" + "".join(f'{name},"A dog, one ."\n' for name in names))
    (folder / "x.token.txt").write_text("".join(f"{name}#{n}\tA dog .\n" for name in names for n in range(2)))
    (folder / "results.csv").write_text("image_name| comment_number| comment\na.png| 0| A dog .\nb.png| 0| Two .\n")


def read_captions(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.tasks.captioning.data import CaptionDataset
    from mmattn.tasks.captioning.processor import CaptionProcessor

    dataset = CaptionDataset(path, "train", on_error=on_error)
    CaptionProcessor.fit(dataset, image_size=8).collate(dataset.samples)
    return dataset.fingerprint()


# Models and configurations --------------------------------------------------------------------------------------------


def write_runs(folder: Path) -> None:
    """Trains the smallest model of every task for one step."""
    from mmattn.tasks.common.task import tasks

    def fit(name: str) -> None:
        words = [*FIT.split(), *tasks()[name].tiny.split(), "--trainer.default_root_dir", str(folder / name)]
        subprocess.run([sys.executable, "-m", "mmattn", name, "fit", *words], check=True, capture_output=True, cwd=ROOT)

    with ThreadPool(os.cpu_count()) as pool:
        pool.map(fit, tasks())


def write_public(folder: Path) -> None:
    """Writes public models with random weights."""
    from tests.public_speech import write_ctc
    from tests.tasks.public_folders import FAMILIES, write

    for family in FAMILIES:
        write(family, folder / family / "model")
    write_ctc(folder / "ctc" / "model")


@cache
def _samples(task: str) -> list[Any]:
    from mmattn.tasks.common.task import tasks

    return list(tasks()[task].resolve("predictor").demo_samples(None)[:2])


def read_model(path: Path, folder: Path, on_error: str) -> Any:
    """Loads a model and predicts two items."""
    import mmattn

    model = next(parent for parent in path.parents if parent.name == "model")
    predictor = mmattn.load(model, device="cpu")
    generation = getattr(predictor.processor, "options", {}).get("generation") or {}
    for name in {"max_length", "max_new_tokens"} & generation.keys():  # a long text is no fault, but takes its time
        generation[name] = min(generation[name], 20)
    return predictor.predict(_samples(predictor.task))


def read_training(path: Path, folder: Path, on_error: str) -> Any:
    """Reads a training checkpoint, and the weights in it, as resuming does before it makes a model."""
    from mmattn.tasks.common.callbacks import read_checkpoint, shipped_weights

    return shipped_weights(read_checkpoint(path))


def read_yaml(path: Path, folder: Path, on_error: str) -> Any:
    """Reads a configuration, and stops before training."""
    from mmattn.tasks.common import cli
    from mmattn.tasks.common.task import tasks

    with suppress(SystemExit):  # behind the printed configuration
        cli.run(tasks()[path.parent.name], "fit", ["--config", str(path), "--print_config"])


KINDS = (
    Kind("image", write_images, read_image),
    Kind("mask", write_masks, read_mask),
    Kind("audio", write_audio, read_audio),
    Kind("jsonl", partial(write_table, ending="jsonl"), read_table, "*.jsonl"),
    Kind("csv", partial(write_table, ending="csv"), read_table, "*.csv"),
    Kind("tsv", partial(write_table, ending="tsv"), read_table, "*.tsv"),
    Kind("text", write_texts, read_texts, "t.* *.txt *.json"),
    Kind("tar", write_tars, read_tar),
    Kind("boxes", write_boxes, read_boxes, "*.json *.xml *.txt *.yaml"),
    Kind("captions", write_captions, read_captions, "*.json *.txt *.csv"),
    Kind("labels", write_labels, read_labels, "*.conll *.conllu *.jsonl *.csv"),
    Kind("corpora", write_corpora, read_corpora),
    Kind("video", write_videos, read_video),
    Kind("safetensors", write_runs, read_model, "model/model.safetensors"),
    Kind("config", write_runs, read_model, "model/config.json"),
    Kind("processor", write_runs, read_model, "model/processor/*"),
    Kind("public", write_public, read_model, "*.json *.txt *.spm spiece.model"),
    Kind("ckpt", write_runs, read_training, "*.ckpt"),
    Kind("yaml", write_runs, read_yaml, "config.yaml", is_named=False),
)
