"""Asking a classification model: one picture, a folder with every kind of bad file, a table, and pictures of why."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.classification.__main__ import INPUTS
from mmattn.tasks.classification.demo import CLASSES, make
from mmattn.tasks.classification.predict import ClassificationPredictor, load
from mmattn.tasks.common import inference
from mmattn.tasks.common.dispatch import model_parser
from mmattn.tasks.common.errors import CheckpointError
from tests.tasks.runs import run as train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("fit", tmp_path_factory.mktemp("runs") / "run", task="classification") / "model"


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> ClassificationPredictor:
    return load(checkpoint, device="cpu")


def run(command: str, checkpoint: Path, *words: str) -> None:
    given = ["--checkpoint", str(checkpoint), "--device", "cpu", *words]
    inference.run("classification", command, model_parser("classification", command, INPUTS).parse_args(given))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_public_load_finds_the_task(checkpoint: Path) -> None:
    assert isinstance(mmattn.tasks.load(checkpoint, device="cpu"), ClassificationPredictor)


def test_predictions_do_not_depend_on_the_batch(predictor: ClassificationPredictor) -> None:
    items = [{"image": sample.image, "id": sample.id} for sample in make("test", 5)]
    together, alone = predictor.predict(items), predictor.predict(items, batch_size=1)
    assert [a.id for a in together] == [f"test-{n}" for n in range(5)]
    assert [a.label for a in together] == [a.label for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=1e-3)


def test_top_k(checkpoint: Path, tmp_path: Path) -> None:
    run("predict", checkpoint, "--input", "demo", "--top_k", "9", "--output", str(tmp_path / "o"))
    rows = lines(tmp_path / "o")
    assert len(rows) == 2 * len(CLASSES)
    for row in rows:
        assert {row["label"], *(name for name, _ in row["alternatives"])} == set(CLASSES)
        assert row["score"] + sum(score for _, score in row["alternatives"]) == pytest.approx(1, abs=1e-3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to nothing in it."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(1000))}
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of one picture in every guise that must give the same answer, and of files that cannot be read."""
    folder = tmp_path_factory.mktemp("album")
    plain = Image.fromarray(make("test", 1)[0].image)
    plain.save(folder / "plain.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg", quality=100, subsampling=0)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    plain.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=turned)
    gray = plain.convert("L")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(folder / "sixteen.png")
    palette = plain.convert("RGB").quantize(256)
    palette.save(folder / "palette.png", transparency=0)
    (folder / "deep").mkdir()
    plain.save(folder / "deep" / "below.bmp")
    stream = io.BytesIO()
    plain.save(stream, "JPEG")
    (folder / "cut.jpg").write_bytes(stream.getvalue()[:700])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "bomb.png").write_bytes(bomb(20_000, 10_000))
    (folder / "notes.txt").write_text("passed over")
    errors = {
        "cut.jpg": "expected a whole image, found a truncated or damaged one",
        "empty.png": "expected an image, found an empty file",
        "text.jpg": "found a file that starts with",
        "bomb.png": "expected at most 89,478,485 pixels",
    }
    return folder, errors


def test_a_folder_of_everything(checkpoint: Path, album: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, errors = album
    run("predict", checkpoint, "--input", str(folder), "--output", str(tmp_path / "o"), "--on_error", "skip")
    rows = {row["id"]: row for row in lines(tmp_path / "o")}
    good = {"plain.png", "cmyk.jpg", "turned.png", "sixteen.png", "palette.png", "deep/below.bmp"}
    assert rows.keys() == good | errors.keys()
    for name, message in errors.items():
        assert message in rows[name]["error"]
        assert name in rows[name]["error"]
    for name in ("turned.png", "deep/below.bmp"):
        assert (rows[name]["label"], rows[name]["score"]) == (rows["plain.png"]["label"], rows["plain.png"]["score"])
    gray = load(checkpoint, device="cpu").predict([{"image": Image.open(folder / "plain.png").convert("L")}])[0]
    assert (rows["sixteen.png"]["label"], rows["sixteen.png"]["score"]) == (
        gray.label,
        pytest.approx(gray.score, abs=2e-3),
    )
    assert rows["cmyk.jpg"]["score"] == pytest.approx(rows["plain.png"]["score"], abs=0.1)


def test_a_bad_picture_ends_the_run(checkpoint: Path, album: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bomb\.png"):
        run("predict", checkpoint, "--input", str(album[0]), "--output", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists(), "nothing half-written stays behind"


def test_what_is_seen_of_sixteen_bits_and_transparency(album: tuple[Path, dict[str, str]]) -> None:
    from mmattn.data.image.processor import load_image

    plain = np.asarray(load_image(album[0] / "plain.png").convert("L")).astype(int)
    assert abs(np.asarray(load_image(album[0] / "sixteen.png")).astype(int)[..., 0] - plain).max() <= 1
    clear = np.asarray(Image.open(album[0] / "palette.png")) == 0
    seen = np.asarray(load_image(album[0] / "palette.png"))
    assert clear.any()
    assert (seen[clear] == 255).all(), "what is transparent lies on white"
    assert abs(seen[~clear].astype(int) - np.asarray(load_image(album[0] / "plain.png"))[~clear]).mean() < 12
    assert abs(np.asarray(load_image(album[0] / "cmyk.jpg").convert("L")).astype(int) - plain).mean() < 12


def test_a_table_and_one_picture(
    checkpoint: Path, album: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(f"path,id\n{album[0]}/plain.png,x7\n")
    run("predict", checkpoint, "--input", str(tmp_path / "a.csv"), "--output", str(tmp_path / "o"))
    assert lines(tmp_path / "o")[0]["id"] == "x7"
    run("predict", checkpoint, "--image", str(album[0] / "plain.png"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] in CLASSES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --image, or --input PATH, found neither"),
        (["--image", "a.png", "--input", "demo"], "expected --image, or --input PATH, found both"),
        (["--input", "none"], "none: .*found no such file"),
        (["--image", "none.png"], r"item none\.png: image none\.png: expected an image file, found no such file"),
    ],
)
def test_bad_inputs_are_named(checkpoint: Path, words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run("predict", checkpoint, *words)


def test_bad_items_are_named(predictor: ClassificationPredictor) -> None:
    with pytest.raises(DataError, match="item x: expected the key image, found id"):
        predictor.predict([{"id": "x"}])
    with pytest.raises(DataError, match=r"predict\(\[item\]\)"):
        predictor.predict({"image": "a.png"})  # type: ignore[arg-type]


def test_pictures_of_explanations(checkpoint: Path, album: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run("explain", checkpoint, "--input", "demo", "--output", str(tmp_path / "folder"))
    written = sorted((tmp_path / "folder").glob("*.png"))
    assert len(written) == 2 * len(CLASSES)
    assert all(Image.open(path).size[0] > 300 for path in written)
    run("explain", checkpoint, "--image", str(album[0] / "plain.png"), "--output", str(tmp_path / "one.png"))
    assert (tmp_path / "one.png").exists()


def test_a_model_that_attends_to_nothing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    options = "--model.pool mean --model.backbone timm/test_resnet --trainer.max_steps 1"
    mean = train("fit", tmp_path / "run", options, task="classification")
    with pytest.raises(DataError, match="expected a model that attends to the picture"):
        load(mean / "model", device="cpu").explain(make("test", 1)[0])


def test_export_equals_the_model(checkpoint: Path, tmp_path: Path, predictor: ClassificationPredictor) -> None:
    pytest.importorskip("onnxruntime")
    run("export", checkpoint, "--output", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classification.onnx", "classification.pt2", "processor"]
    program = torch.export.load(tmp_path / "classification.pt2").module()
    example = predictor._example(6)
    torch.testing.assert_close(program(**example).logits, predictor.model(**example).logits, atol=1e-4, rtol=0)


def test_no_model_ships_of_another_task(tmp_path: Path, checkpoint: Path) -> None:
    from mmattn.tasks.vqa.predict import load as load_vqa

    with pytest.raises(CheckpointError, match="expected a model of vqa, found one of classification"):
        load_vqa(checkpoint)
