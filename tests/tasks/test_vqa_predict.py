"""Asking a shipped VQA model: from Python and from the command line, one item, a folder, a file, and bad items."""

import json
from pathlib import Path

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.common import inference
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.dispatch import model_parser
from mmattn.tasks.vqa.__main__ import INPUTS
from mmattn.tasks.vqa.demo import FAMILIES, make
from mmattn.tasks.vqa.losses import peaks_in_regions
from mmattn.tasks.vqa.predict import VQAPredictor


@pytest.fixture(scope="module")
def predictor() -> VQAPredictor:
    return mmattn.tasks.vqa.load(device="cpu")


def run(command: str, *words: str) -> None:
    options = model_parser("vqa", command, INPUTS).parse_args([*words, "--device", "cpu"])
    inference.run("vqa", command, options)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_stated_accuracy_is_found(predictor: VQAPredictor) -> None:
    stated = read_config(inference.shipped_folder("vqa"))["metrics"]["built-in test"]
    samples = make("test")
    answers = predictor.predict(samples, batch_size=360)
    right = [answer.answer == sample.answers[0] for answer, sample in zip(answers, samples, strict=True)]
    assert sum(right) / len(right) == pytest.approx(stated["accuracy"], abs=1e-3)
    assert stated["accuracy"] >= 0.9
    for family in FAMILIES:
        assert stated[f"accuracy/{family}"] >= 0.8


def test_it_looks_at_what_the_answer_rests_on(predictor: VQAPredictor) -> None:
    samples = [sample for sample in make("test", size=60) if sample.regions]
    found = predictor.explain_batch(samples)
    hits = [peaks_in_regions(e.attention, s.regions, (1 / 16, 1 / 16)) for e, s in zip(found, samples, strict=True)]
    assert sum(hits) / len(hits) >= 0.9


def test_a_batch_equals_one_by_one(predictor: VQAPredictor) -> None:
    samples = make("test", size=2)
    together = predictor.predict(samples, batch_size=7)
    alone = [predictor.predict([sample])[0] for sample in samples]
    assert [a.answer for a in together] == [a.answer for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], abs=1e-3)


def test_words_it_never_saw_are_named(predictor: VQAPredictor) -> None:
    sample = make("test", size=1)[0]
    answer = predictor.predict([{"image": sample.image, "question": "is the zeppelin red?"}])[0]
    assert answer.unknown_words == ["zeppelin"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "a.png"}, "item 0: expected the keys image and question, found image"),
        ({"image": "none.png", "question": "why?"}, r"none\.png"),
        ({"image": "none.png", "question": "  ", "id": "x7"}, "item x7: expected a question, found an empty one"),
    ],
)
def test_bad_items_are_named(predictor: VQAPredictor, item: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictor.predict([item])


def pictures(folder: Path) -> Path:
    from PIL import Image

    for n, sample in enumerate(make("test", size=3)[::18]):
        Image.fromarray(sample.image).save(folder / f"{n}.png")
    return folder


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    run(
        "predict",
        "--input",
        str(pictures(tmp_path)),
        "--question",
        "how many things are there?",
        "--output",
        str(tmp_path / "o"),
    )
    assert [row["id"] for row in lines(tmp_path / "o")] == ["0.png", "1.png", "2.png"]


def test_a_bad_picture_of_a_folder_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures(tmp_path) / "1.png").write_text("no picture")
    words = ["--input", str(tmp_path), "--question", "how many things are there?", "--output", str(tmp_path / "o")]
    run("predict", *words, "--on_error", "skip")
    rows = lines(tmp_path / "o")
    assert [row["id"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert "1.png" in rows[1]["error"]
    assert "1 of 3 items left out" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", ["1", "2", "32"])
def test_a_bad_item_ends_the_run_or_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, batch_size: str
) -> None:
    pictures(tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    rows = [{"image": f"{n}.png", "question": "how many things are there?", "id": str(n)} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--input", str(tmp_path / "q.jsonl"), "--output", str(tmp_path / "o"), "--batch_size", batch_size]
    with pytest.raises(DataError, match=r"1\.png"):
        run("predict", *words)
    assert not (tmp_path / "o").exists(), "nothing half-written stays behind"
    run("predict", *words, "--on_error", "skip")
    assert [row["id"] for row in lines(tmp_path / "o")] == ["0", "2"]
    assert "1.png" in caplog.text


def test_pictures_of_explanations(tmp_path: Path) -> None:
    from PIL import Image

    run("explain", "--input", "demo", "--output", str(tmp_path / "folder"))
    written = sorted((tmp_path / "folder").glob("*.png"))
    assert len(written) == len(FAMILIES)
    assert all(Image.open(path).size[0] > 300 for path in written)
    image = str(pictures(tmp_path) / "0.png")
    run("explain", "--image", image, "--question", "what colour is the star?", "--output", str(tmp_path / "one.png"))
    assert (tmp_path / "one.png").exists()


def test_export_equals_the_model(tmp_path: Path, predictor: VQAPredictor) -> None:
    pytest.importorskip("onnxruntime")
    run("export", "--output", str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["processor", "vqa.onnx", "vqa.pt2"]
    program = torch.export.load(tmp_path / "vqa.pt2").module()
    example = predictor._example(6, 5)
    torch.testing.assert_close(program(**example).logits, predictor.model(**example).logits, atol=1e-4, rtol=0)
