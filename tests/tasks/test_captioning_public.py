"""Captioning by BLIP, GIT and pairs of ViT and BERT: transformers' texts, relevance, fine-tuning, export, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn import load
from mmattn.tasks.captioning.predict import CaptioningPredictor
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.seq2seq.model import decode_options
from tests.conftest import refused
from tests.tasks.public_folders import into_hub_cache
from tests.tasks.public_images import SIDE, greedy_onnx, images, write
from tests.tasks.runs import BRIEF, STILL, assert_kept, run, weights

BLIP, GIT, PAIR = "BlipForConditionalGeneration", "GitForCausalLM", "VisionEncoderDecoderModel"
KINDS = (BLIP, GIT, PAIR)
BASE = f"{BRIEF} --data.demo_size 6 --data.batch_size 3"
WAYS: dict[str, dict[str, Any]] = {"greedy": {"max_new_tokens": 9}, "beams": {"num_beams": 3, "max_new_tokens": 7}}

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, Any]]:
    root = tmp_path_factory.mktemp("public")
    return {kind: (root / kind, *write(kind, root / kind)) for kind in KINDS}


def fit(folder: Path, options: str) -> Path:
    return run("fit", folder, options, BASE, task="captioning")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_captions_equal_transformers(kind: str, way: str, folders: Any) -> None:
    folder, model, (prepare, tokenizer) = folders[kind]
    predictor = load(folder, device="cpu")
    assert isinstance(predictor, CaptioningPredictor)
    pixels = prepare(images(), return_tensors="pt")["pixel_values"]
    batch = predictor.processor.collate([predictor.to_sample(image, 0) for image in images()])
    torch.testing.assert_close(batch.pixel_values, pixels, atol=1e-4, rtol=0)
    with torch.no_grad():
        ids = model.generate(pixel_values=pixels, **WAYS[way])
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)
    found = [found.caption for found in predictor.predict(images(), **WAYS[way])]
    assert found == [" ".join(text.split()) for text in expected]
    assert len(set(found)) > 1


@pytest.mark.parametrize(("kind", "options"), [(BLIP, {}), (PAIR, {"max_length": 6, "num_beams": 2})])
def test_options_of_the_folder(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """BLIP's decoder has its own in transformers, which are the defaults."""
    model, (prepare, tokenizer) = write(kind, tmp_path, **options)
    with torch.no_grad():
        ids = model.generate(pixel_values=prepare(images(), return_tensors="pt")["pixel_values"])
    found = load(tmp_path, device="cpu").predict(images())
    assert [one.caption for one in found] == tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_hub_name(folders: Any, offline: Path) -> None:
    """All files that a model needs are fetched."""
    into_hub_cache(folders[BLIP][0], offline, "own/blip")
    found, expected = (load(name, device="cpu").predict(images()) for name in ("hf:own/blip", folders[BLIP][0]))
    assert found == expected


@pytest.mark.parametrize("kind", [BLIP, GIT])
def test_forced_beginning(kind: str, folders: Any) -> None:
    folder, model, (prepare, tokenizer) = folders[kind]
    begun = load(folder, device="cpu").predict(images(), beginning="the large", max_new_tokens=6)
    given = tokenizer(["the large"] * 3, return_tensors="pt").input_ids
    given = given if kind == BLIP else given[:, :-1]  # BLIP's model removes the end token
    with torch.no_grad():
        pixels = prepare(images(), return_tensors="pt")["pixel_values"]
        ids = model.generate(pixel_values=pixels, input_ids=given, max_new_tokens=6)
    assert [one.caption for one in begun] == tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_of_patches(kind: str, folders: Any, tmp_path: Path) -> None:
    predictor = load(folders[kind][0], device="cpu")
    found = predictor.explain_all(images(2), max_new_tokens=5)
    for one in found:
        assert one.attention.shape == (len(one.words), SIDE // 8, SIDE // 8)
        torch.testing.assert_close(one.attention.sum((1, 2)), torch.ones(len(one.words)))
    batch = predictor.processor.collate([predictor.to_sample(image, 0) for image in images(1)])
    batch.target_ids = batch.labels = torch.arange(5, 10)[None]
    maps = predictor.model.relevance(batch.pixel_values, batch.target_ids, batch.labels)
    assert (maps[0] - maps[0].mean(0)).abs().max() > 1e-3, "each word has its own"
    alone = predictor.model.relevance(batch.pixel_values, batch.target_ids[:, :2], batch.labels[:, :2])
    torch.testing.assert_close(alone, maps[:, :2])
    found[0].save(tmp_path / "0.png")


@pytest.mark.parametrize("kind", [BLIP, PAIR, pytest.param(GIT, marks=pytest.mark.slow)])
def test_fine_tuning(kind: str, folders: Any, tmp_path: Path) -> None:
    """Weights and words are kept; a run's model loads, evaluates and is the start of another."""
    source = folders[kind][0]
    folder = fit(tmp_path / "run", f"--init_from {source} {STILL} --loss.attention_supervision 1")
    before, after = load(source, "cpu"), load(folder / "model", "cpu")
    given = before.model.state_dict()
    given.pop("net.text.output.tokens.weight", None)  # which is that of the embeddings
    assert_kept(given, weights(folder))
    assert after.processor.image.config() == before.processor.image.config()
    assert after.predict(images(), max_new_tokens=6) == before.predict(images(), max_new_tokens=6)
    run("test", folder, "--data.demo_size 4", "", task="captioning")
    larger = fit(tmp_path / "larger", f"--init_from {folder / 'model'} --data.image_size 48 --model.lora.rank 2")
    predictor = load(larger / "model", "cpu")
    assert predictor.processor.image.size == (48, 48)
    assert predictor.model.grid_size == (6, 6)
    assert len(predictor.predict(images())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind: str, folders: Any, tmp_path: Path) -> None:
    lines = load(folders[kind][0], device="cpu").export(tmp_path, formats=("torch",))
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == ["encoder.pt2", "step.pt2", "processor"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_writes_the_same_captions(kind: str, folders: Any, tmp_path: Path) -> None:
    predictor = load(folders[kind][0], device="cpu")
    predictor.export(tmp_path, formats=("onnx",))
    processor = predictor.processor
    batch = processor.collate([predictor.to_sample(image, 0) for image in images(2)])
    config = decode_options(processor, None, num_beams=1, max_new_tokens=8)
    expected = predictor.model.generate(batch.pixel_values, config)
    assert config.start is not None
    found = greedy_onnx(tmp_path, {"pixel_values": batch.pixel_values}, config.start, 8)
    for own, ids, length in zip(found, expected.ids[:, 0].tolist(), expected.lengths[:, 0].tolist(), strict=True):
        assert own[:length] == ids[:length]
    assert int(expected.lengths.max()) > 3


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
@pytest.mark.parametrize("kind", [BLIP, GIT])
def test_reduced_precision(kind: str, precision: str, folders: Any) -> None:
    found = load(folders[kind][0], device="cpu", precision=precision).predict(images(), max_new_tokens=5)
    assert any(one.caption for one in found)


def test_mistakes(folders: Any, tmp_path: Path) -> None:
    source = folders[BLIP][0]
    for options, message in (
        ("--model.pooling mean", r"model\.pooling: .* has 'attention'"),
        ("--data.image_size 4", r"data\.image_size: expected at least 8"),
        ("--data.tokenizer bpe", r"data\.tokenizer: expected 'tokenizer.json'"),
        ("--loss.object_supervision 1", r"loss\.object_supervision: expected 0"),
    ):
        refused(message, fit, tmp_path / "run", f"--init_from {source} {options}", error=(CheckpointError, ConfigError))
    write("BlipForQuestionAnswering", tmp_path / "vqa")
    refused("for vqa|answers questions", CaptioningPredictor.load, tmp_path / "vqa", error=CheckpointError)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in source.iterdir():
        if "processor" not in path.name:
            (copied / path.name).write_bytes(path.read_bytes())
    message = r"copied: expected preprocessor_config\.json.*found no such file"
    refused(message, CaptioningPredictor.load, copied, error=CheckpointError)
