"""VQA by ViLT and BLIP: answers of transformers, relevance, fine-tuning with other answers, export, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmattn
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.vqa.demo import make
from mmattn.tasks.vqa.predict import VQAPredictor
from tests.conftest import refused
from tests.tasks.public_images import PATCH, SIDE, greedy_onnx, images, run_onnx, write
from tests.tasks.runs import BRIEF, STILL, assert_kept, read, run, weights

VILT, BLIP = "ViltForQuestionAnswering", "BlipForQuestionAnswering"
BASE = f"{BRIEF} --data.demo_size 6 --data.batch_size 12"
QUESTIONS = ["what is left of the red star ?", "how many", "is there a blue ring , two squares ?"]

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, Any]]:
    root = tmp_path_factory.mktemp("public")
    return {kind: (root / kind, *write(kind, root / kind)) for kind in (VILT, BLIP)}


def items() -> list[dict[str, Any]]:
    return [{"image": image, "question": question} for image, question in zip(images(), QUESTIONS, strict=True)]


def fit(folder: Path, options: str) -> Path:
    return run("fit", folder, options, BASE, task="vqa")


def test_vilt_answers_equal_transformers(folders: Any) -> None:
    folder, model, (prepare, tokenizer) = folders[VILT]
    predictor = mmattn.load(folder, device="cpu")
    assert isinstance(predictor, VQAPredictor)
    batch = predictor.processor.collate([predictor.to_sample(item, 0) for item in items()])
    given = dict(prepare(images(), return_tensors="pt")) | dict(tokenizer(QUESTIONS, return_tensors="pt", padding=True))
    torch.testing.assert_close(batch.pixel_values, given["pixel_values"], atol=1e-4, rtol=0)
    assert batch.pixel_mask is not None
    assert torch.equal(batch.pixel_mask, given["pixel_mask"].bool())
    with torch.no_grad():
        for n in range(3):  # theirs depend on the padding of a batch
            one = dict(prepare(images()[n : n + 1], return_tensors="pt")) | dict(
                tokenizer(QUESTIONS[n], return_tensors="pt")
            )
            ours = predictor.model(*batch.inputs).logits[n]
            torch.testing.assert_close(ours, model(**one).logits[0], atol=1e-4, rtol=1e-4)
            found = predictor(items()[n], top_k=4)
            order = model(**one).logits[0].argsort(descending=True).tolist()
            names = [found.answer, *(name for name, _ in found.alternatives)]
            assert names == [model.config.id2label[k] for k in order]


@pytest.mark.parametrize("beams", [1, 3])
def test_blip_answers_equal_transformers(beams: int, folders: Any) -> None:
    folder, model, (prepare, tokenizer) = folders[BLIP]
    predictor = mmattn.load(folder, device="cpu")
    found = predictor.predict(items(), num_beams=beams)
    for n, one in enumerate(found):
        given = dict(prepare(images()[n : n + 1], return_tensors="pt")) | dict(
            tokenizer(QUESTIONS[n], return_tensors="pt")
        )
        del given["token_type_ids"]
        with torch.no_grad():
            ids = model.generate(**given, num_beams=beams)
        assert one.answer == tokenizer.decode(ids[0], skip_special_tokens=True)
        assert 0 <= one.score <= 1
    several = predictor.predict(items(), top_k=3)
    assert all(one.alternatives for one in several)
    assert predictor.labels is None


@pytest.mark.parametrize("kind", [VILT, BLIP])
def test_relevance(kind: str, folders: Any, tmp_path: Path) -> None:
    """Maps are of each image's own grid, and do not depend on the others of a batch."""
    predictor = mmattn.load(folders[kind][0], device="cpu")
    found = predictor.explain_all(items())
    for item, one in zip(items(), found, strict=True):
        (alone,) = predictor.explain_all([item])
        torch.testing.assert_close(one.attention, alone.attention, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(one.words, alone.words, atol=1e-4, rtol=1e-3)
        assert float(one.attention.sum()) == pytest.approx(1, abs=1e-4)
        assert float(one.words.sum()) == pytest.approx(1, abs=1e-4)
        assert len(one.words) == len(one.tokens)
    sides = {one.attention.shape for one in found}
    assert sides == {(SIDE // PATCH,) * 2} if kind == BLIP else len(sides) > 1
    found[0].save(tmp_path / "0.png")


@pytest.mark.parametrize("kind", [VILT, BLIP])
def test_fine_tuning(kind: str, folders: Any, tmp_path: Path) -> None:
    """All weights are kept but those of other answers; a run's model loads, is evaluated, and begins another."""
    folder = fit(tmp_path / "run", f"--init_from {folders[kind][0]} {STILL}")
    before = read_parts("vqa", folders[kind][0])
    given = dict(before.state)
    given.pop("net.text.output.tokens.weight", None)  # which is that of the embeddings
    if kind == VILT:
        assert given.pop("net.classifier.3.bias").shape == (4,)
        assert len(weights(folder)["net.classifier.3.bias"]) > 10
        del given["net.classifier.3.weight"]
    assert_kept(given, weights(folder))
    assert "accuracy" in read(folder / "metrics.json")["validation"]
    run("test", folder, "--data.demo_size 4", "", task="vqa")
    predictor = mmattn.load(folder / "model", "cpu")
    if kind == VILT:
        assert "red" in predictor.labels
        assert predictor(items()[0]).answer in predictor.labels
    assert predictor.explain(items()[0]).attention.sum() > 0
    second = fit(tmp_path / "second", f"--init_from {folder / 'model'} --data.image_size 48 {STILL}")
    assert_kept({k: v for k, v in weights(folder).items() if "positions" not in k}, weights(second))


def test_answers_are_learnt(folders: Any, tmp_path: Path) -> None:
    """BLIP learns to write the answers of a few questions."""
    predictor = mmattn.load(folders[BLIP][0], device="cpu")
    batch = predictor.processor.collate([predictor.to_sample(item, 0) for item in items()])
    assert batch.target_ids is None, "no answers are known"
    samples = [predictor.to_sample(item, n) for n, item in enumerate(items())]
    for sample, answer in zip(samples, ("red star", "square", "blue"), strict=True):
        sample.answers = [answer]
    batch = predictor.processor.collate(samples)
    from mmattn.tasks.vqa.writing import write_answers, writing_loss

    optimizer = torch.optim.Adam(predictor.model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = writing_loss(predictor.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = write_answers(predictor.model.eval(), batch, predictor.processor)
    assert [row[0][0] for row in found] == ["red star", "square", "blue"]


def test_vilt_without_a_classifier(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write(VILT, tmp_path / "source")
    transformers.ViltModel.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "source")
    refused("expected a finished model", VQAPredictor.load, tmp_path / "source", error=CheckpointError)
    options = f"--init_from {tmp_path / 'source'} --data.tokenizer bpe"
    refused(r"data\.tokenizer: expected 'tokenizer\.json'", fit, tmp_path / "run", options, error=ConfigError)
    folder = fit(tmp_path / "run", f"--init_from {tmp_path / 'source'} {STILL}")
    assert mmattn.load(folder / "model", "cpu")(make("test", 1)[0]).answer


@pytest.mark.parametrize("kind", [VILT, BLIP])
def test_export(kind: str, folders: Any, tmp_path: Path) -> None:
    lines = mmattn.load(folders[kind][0], device="cpu").export(tmp_path, formats=("torch",))
    names = ["vqa.pt2"] if kind == VILT else ["encoder.pt2", "step.pt2"]
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == [*names, "processor"]


@pytest.mark.slow
def test_onnx_gives_the_same_scores(folders: Any, tmp_path: Path) -> None:
    """ViLT, for other numbers and lengths of questions than those of the export."""
    predictor = mmattn.load(folders[VILT][0], device="cpu")
    predictor.export(tmp_path, formats=("onnx",))
    square = images()[2]
    for questions in (QUESTIONS[1:2], [*QUESTIONS, "is it red ?"]):
        given = [predictor.to_sample({"image": square, "question": question}, 0) for question in questions]
        batch = predictor.processor.collate(given)
        one_each = batch.pixel_values[batch.image_index]
        feed = {"pixel_values": one_each, "input_ids": batch.input_ids, "key_mask": batch.key_mask}
        with torch.no_grad():
            expected = predictor.model(*batch.inputs).logits
        found = run_onnx(tmp_path / "vqa.onnx", feed)
        torch.testing.assert_close(torch.from_numpy(found["logits"]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_writes_the_same_answers(folders: Any, tmp_path: Path) -> None:
    predictor = mmattn.load(folders[BLIP][0], device="cpu")
    predictor.export(tmp_path, formats=("onnx",))
    batch = predictor.processor.collate([predictor.to_sample(item, 0) for item in items()])
    config = GenerationConfig(**predictor.processor.options["generation"] | {"num_beams": 1, "max_new_tokens": 8})
    expected = predictor.model.generate(*batch.inputs, config)
    assert config.start is not None
    source = {"pixel_values": batch.pixel_values[batch.image_index]}
    source |= {"source_ids": batch.input_ids, "source_mask": batch.key_mask}
    found = greedy_onnx(tmp_path, source, config.start, 8)
    for own, ids, length in zip(found, expected.ids[:, 0].tolist(), expected.lengths[:, 0].tolist(), strict=True):
        assert own[:length] == ids[:length]


def test_mistakes(folders: Any, tmp_path: Path) -> None:
    source = folders[VILT][0]
    for options, message in (
        ("--data.resize pad", r"data\.resize: expected none"),
        ("--data.tokenizer bpe", r"data\.tokenizer: expected 'tokenizer\.json', as in the model to fine-tune"),
        ("--loss.attention_supervision 1", r"loss\.attention_supervision: expected 0"),
        ("--model.fusion single_stream", r"model\.fusion"),
    ):
        refused(message, fit, tmp_path / "run", f"--init_from {source} {options}", error=(CheckpointError, ConfigError))
    options, message = f"--init_from {folders[BLIP][0]} --data.max_answers 3", r"data\.max_answers: expected none"
    refused(message, fit, tmp_path / "run", options, error=ConfigError)
    predictor = mmattn.load(source, device="cpu")
    refused("--num_beams: expected none", predictor.predict, items(), num_beams=3, error=ConfigError)
    write("BlipForConditionalGeneration", tmp_path / "captions")
    refused(
        "for vqa, found one of blip, for captioning", VQAPredictor.load, tmp_path / "captions", error=CheckpointError
    )
    config = json.loads((source / "config.json").read_text())
    del config["id2label"]["3"]
    (source / "config.json").write_text(json.dumps(config))
    refused("expected 4 answers, one for each row", VQAPredictor.load, source, error=CheckpointError)
