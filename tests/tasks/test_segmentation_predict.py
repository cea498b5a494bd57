"""Asking a shipped segmentation model: from Python and from the command line, good items and bad ones."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.data.image.masks import palette
from mmattn.tasks.common import inference
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.dispatch import model_parser
from mmattn.tasks.segmentation.__main__ import INPUTS
from mmattn.tasks.segmentation.data import SegmentationDataset, collate
from mmattn.tasks.segmentation.demo import NAMES, THINGS, make
from mmattn.tasks.segmentation.metrics import SegmentationMetric
from mmattn.tasks.segmentation.predict import SegmentationPredictor

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def predictor() -> SegmentationPredictor:
    return mmattn.tasks.segmentation.load(device="cpu")


def run(command: str, *words: str) -> None:
    options = model_parser("segmentation", command, INPUTS).parse_args([*words, "--device", "cpu"])
    inference.run("segmentation", command, options)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def miou(predictor: SegmentationPredictor, samples: list) -> float:
    metric = SegmentationMetric(NAMES)
    for sample, answer in zip(samples, predictor.predict(samples), strict=True):
        metric.update(torch.from_numpy(answer.labels), torch.from_numpy(sample.mask))
    return float(metric.compute()["miou"])


def test_the_stated_figure_is_found(predictor: SegmentationPredictor) -> None:
    stated = read_config(inference.shipped_folder("segmentation"))["metrics"]["built-in test"]
    assert stated["miou"] >= 0.85
    assert min(stated[f"iou/{name}"] for name in NAMES) >= 0.75
    assert miou(predictor, make("test", 100)) == pytest.approx(stated["miou"], abs=0.02)


def test_the_mean_with_the_mirror_image_is_no_worse_by_much(predictor: SegmentationPredictor) -> None:
    samples = make("test", 40)
    plain = miou(predictor, samples)
    predictor.flip = True
    try:
        assert miou(predictor, samples) > plain - 0.02
    finally:
        predictor.flip = False


def test_what_speaks_for_a_thing_lies_on_it(predictor: SegmentationPredictor) -> None:
    batch = collate(make("test", 40), predictor.processor)
    hits = []
    for name in THINGS:
        true = batch.labels == NAMES.index(name)
        there = true.flatten(1).any(1)
        gates, relevance = predictor.relevance(batch.pixel_values[there], [NAMES.index(name)] * int(there.sum()))
        assert gates[0].shape == relevance.shape == true[there].shape
        peaks = relevance.flatten(1).argmax(1)
        hits += true[there].flatten(1)[torch.arange(len(peaks)), peaks].tolist()
    assert sum(hits) / len(hits) >= 0.9


def test_a_batch_equals_one_by_one(predictor: SegmentationPredictor) -> None:
    samples = make("test", 5)
    samples[1].image = samples[1].image[:50]  # another size
    together = predictor.predict(samples, batch_size=4)
    for sample, answer in zip(samples, together, strict=True):
        alone = predictor.predict([sample])[0]
        assert alone.labels.shape == sample.image.shape[:2]
        assert (alone.labels != answer.labels).mean() < 0.002
        assert sum(answer.shares.values()) == pytest.approx(1, abs=1e-3)


def test_tiles_find_what_the_whole_does(predictor: SegmentationPredictor) -> None:
    """Four scenes side by side, cut into overlapping tiles of one scene's size."""
    scenes = make("test", 4)
    wide = np.concatenate([np.concatenate([s.image for s in scenes[i : i + 2]], 1) for i in (0, 2)], 0)
    whole = predictor.predict([{"image": wide}])[0].labels
    predictor.tile = 80
    try:
        tiled = predictor.predict([{"image": wide}])[0].labels
    finally:
        predictor.tile = 1024
    assert (whole == tiled).mean() > 0.93


def test_masks_and_overlays_are_written(tmp_path: Path, predictor: SegmentationPredictor) -> None:
    masks, overlays = tmp_path / "m", tmp_path / "o"
    run(
        "predict",
        "--input",
        "demo",
        "--masks",
        str(masks),
        "--overlays",
        str(overlays),
        "--output",
        str(tmp_path / "a"),
    )
    rows = lines(tmp_path / "a")
    assert len(rows) == 8
    assert set(rows[0]) == {"id", "size", "shares", "mask", "overlay"}
    for row, sample in zip(rows, make("test", 8), strict=True):
        written = Image.open(row["mask"])
        assert written.mode == "P"
        assert np.array_equal(np.asarray(written), predictor.predict([sample])[0].labels)
        colours = np.array(written.getpalette(), np.uint8).reshape(-1, 3)
        assert np.array_equal(colours[: len(NAMES)], palette(len(NAMES)))
        assert Image.open(row["overlay"]).size == (64, 64)
    # What was written is a data set for training.
    images = tmp_path / "images"
    images.mkdir()
    for sample in make("test", 8):
        Image.fromarray(sample.image).save(images / f"{sample.id}.png")
    masks.rename(tmp_path / "masks")
    assert len(SegmentationDataset(tmp_path)) == 8


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for ending in ("png", "bmp"):
        Image.fromarray(make("test", 1)[0].image).save(tmp_path / "in" / f"a.{ending}")
    run("predict", "--input", str(tmp_path / "in"), "--masks", str(tmp_path / "m"), "--output", str(tmp_path / "o"))
    assert len({row["mask"] for row in lines(tmp_path / "o")}) == 2
    assert len(list((tmp_path / "m").iterdir())) == 2


def bomb(path: Path) -> None:
    """A PNG whose header says 20,000 x 10,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_a_folder_of_odd_and_bad_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is right or one clear error, and the rest is processed."""
    folder, scene = tmp_path / "in", Image.fromarray(make("test", 1)[0].image)
    folder.mkdir()
    scene.save(folder / "plain.png")
    scene.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    scene.quantize(64).save(folder / "palette.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.crop((0, 0, 64, 40)).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    scene.save(folder / "cut.jpg", quality=95)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    bomb(folder / "bomb.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("a text")
    run(
        "predict",
        "--input",
        str(folder),
        "--on_error",
        "skip",
        "--output",
        str(tmp_path / "o"),
        "--masks",
        str(tmp_path),
    )
    rows = {row["id"]: row for row in lines(tmp_path / "o")}
    errors = {name: row["error"] for name, row in rows.items() if "error" in row}
    expected = {
        "cut.jpg": "truncated or damaged",
        "bomb.png": "at most 89,478,485 pixels (the guard against decompression bombs)",
        "empty.png": "found an empty file",
        "text.jpg": "starts with b'a text'",
    }
    assert errors.keys() == expected.keys()
    for name, message in expected.items():
        assert name in errors[name]
        assert message in errors[name]
        assert "\n" not in errors[name]
    good = {"plain.png": [64, 64], "cmyk.jpg": [64, 64], "sixteen.png": [64, 64], "palette.png": [64, 64]}
    assert {name: row["size"] for name, row in rows.items() if name in good} == good
    assert rows["turned.png"]["size"] == [64, 40], "upright by its EXIF tag"
    predictor = mmattn.tasks.segmentation.load(device="cpu")
    same = {"plain": scene, "sixteen": scene.convert("L"), "turned": scene.crop((0, 0, 64, 40))}
    for name, picture in same.items():
        expected = predictor.predict([{"image": picture}])[0].labels
        assert (np.asarray(Image.open(tmp_path / f"{name}.png")) == expected).mean() > 0.995, name
    plain, cmyk = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "cmyk"))
    assert (plain == cmyk).mean() > 0.8
    white = np.asarray(scene).copy()
    clear = np.asarray(Image.open(folder / "palette.png")) == 3
    assert clear.any()
    white[clear] = 255
    expected = predictor.predict([{"image": white}])[0].labels
    assert (np.asarray(Image.open(tmp_path / "palette.png")) == expected).mean() > 0.9
    assert "4 of 9 items left out" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"bomb\.png"):
        run("predict", "--input", str(folder), "--output", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --image, or --input PATH, found neither"),
        (["--image", "a.png", "--input", "demo"], "expected --image, or --input PATH, found both"),
        (["--input", "nowhere"], "nowhere: expected a folder of pictures, found no such folder"),
        (["--input", "demo", "--tile", "8"], "--tile: expected 32 pixels or more, found 8"),
    ],
)
def test_bad_arguments(words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run("predict", *words)


def test_pictures_of_explanations(tmp_path: Path) -> None:
    scene = make("test", 1)[0]
    Image.fromarray(scene.image).save(tmp_path / "a.png")
    run("explain", "--image", str(tmp_path / "a.png"), "--class_name", "ring", "--output", str(tmp_path / "e.png"))
    assert Image.open(tmp_path / "e.png").size[0] > 600
    with pytest.raises(DataError, match="--class_name: expected one of ground, rows"):
        run("explain", "--image", str(tmp_path / "a.png"), "--class_name", "dog", "--output", str(tmp_path / "f.png"))
    assert not (tmp_path / "f.png").exists()


def test_export_equals_the_model(tmp_path: Path, predictor: SegmentationPredictor) -> None:
    pytest.importorskip("onnxruntime")
    run("export", "--output", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["processor", "segmentation.onnx", "segmentation.pt2"]
    program = torch.export.load(tmp_path / "segmentation.pt2").module()
    example = predictor._example(4, 3, 6)
    torch.testing.assert_close(program(**example)[0], predictor.model(**example).logits, atol=1e-4, rtol=0)
