"""Captioning from public image encoders, from its own models, with few data, with an LSTM and its loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn import load
from mmattn.pretrained import load_pretrained
from mmattn.tasks.captioning.data import CaptionDataset
from mmattn.tasks.captioning.demo import make
from mmattn.tasks.captioning.model import CaptioningModel
from mmattn.tasks.captioning.predict import CaptioningPredictor
from mmattn.tasks.captioning.processor import CaptionProcessor
from mmattn.tasks.captioning.self_critical import draw, self_critical_loss
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.sources import find_model
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, STILL, assert_kept, read, run, weights

BASE = f"{BRIEF} --data.demo_size 6 --data.batch_size 3 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32"
STATISTICS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


def fit(folder: Path, options: str, base: str = BASE) -> Path:
    return run("fit", folder, options, base, task="captioning")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random encoders, saved by transformers and timm."""
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    root = tmp_path_factory.mktemp("public")
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    sizes["patch_size"] = 8
    mlp = {"intermediate_size": 24}
    kinds = {"ViT": mlp, "Dinov2": {"mlp_ratio": 2}, "SiglipVision": mlp}
    for name, more in kinds.items():
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes, **more))
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    given = timm.create_model("test_resnet", num_classes=5)
    torch.nn.init.normal_(given.bn1.running_mean)
    timm.models.save_for_hf(given, root / "timm", safe_serialization=True)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parity
@pytest.mark.parametrize("name", slow_but_first(["ViT", "Dinov2", "SiglipVision"]))
def test_public_vit_folders(name: str, public: dict[str, Path], tmp_path: Path) -> None:
    """Weights and preprocessing are kept, features are computed once; all other layers are trained."""
    predictor = load(fit(tmp_path / "run", f"--model.freeze pretrained --init_from {public[name]}") / "model", "cpu")
    assert predictor.processor.image.size == (32, 32)
    assert predictor.processor.image.mean == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, 32, 32)
    theirs = load_pretrained(public[name])(images).states[:, -16:]
    ours = predictor.model.image_encoder.stem.body_features(images).flatten(2).mT
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert isinstance(predictor(make("test", 1)[0]).caption, str)
    assert predictor.explain(make("test", 1)[0]).attention.shape[1:] == (4, 4)


@pytest.mark.parity
def test_timm_network_at_another_size(public: dict[str, Path], tmp_path: Path) -> None:
    options = f"--data.image_size 64 --init_from {public['timm']} {STILL} --model.decoder lstm"
    folder = fit(tmp_path / "run", options)
    given, found = read_parts("captioning", public["timm"]), weights(folder)
    assert assert_kept(given.state, found) > 10
    statistics = [name for name in given.state if name.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(found[name], given.state[name]) for name in statistics)
    predictor = load(folder / "model", device="cpu")
    assert predictor.processor.image.size == (64, 64)
    assert predictor.model.grid_size == (2, 2)


@pytest.mark.parity
def test_encoders_do_not_become_the_default_task(public: dict[str, Path]) -> None:
    """`load` still takes classifiers for classifiers."""
    assert next(iter(find_model(public["ViT"]).routes())) == "classification"
    assert list(find_model(public["timm"]).routes())[-3:] == ["captioning", "video", "vqa"]


@pytest.mark.parity
def test_mistakes(public: dict[str, Path], tmp_path: Path) -> None:
    message = "expected a finished model, found a backbone"
    refused(message, CaptioningPredictor.load, public["ViT"], error=CheckpointError)
    (public["Dinov2"] / "preprocessor_config.json").rename(tmp_path / "kept.json")
    message = r"Dinov2: expected preprocessor_config\.json.*found no such file"
    refused(message, read_parts, "captioning", public["Dinov2"], error=CheckpointError)
    (tmp_path / "kept.json").rename(public["Dinov2"] / "preprocessor_config.json")
    options = f"--init_from {public['ViT']} --model.image_encoder timm/resnet18"
    refused("image_encoder: .* has 'vit'", fit, tmp_path / "run", options, error=CheckpointError)


def test_own_model_keeps_its_words(tmp_path: Path) -> None:
    first = fit(tmp_path / "first", "")
    second = fit(tmp_path / "second", f"--init_from {first / 'model'} {STILL}", BRIEF)
    before, after = weights(first), weights(second)
    assert assert_kept(before, after) == len([n for n in before if "running" not in n and "num_batches" not in n])
    updated = weights(fit(tmp_path / "lora", f"--init_from {first / 'model'} --model.lora.rank 2", BRIEF))
    assert updated.keys() == before.keys(), "low-rank updates are merged"
    options = f"--init_from {first / 'model'} --data.tokenizer bpe"
    refused(r"data\.tokenizer: expected 'word'", fit, tmp_path / "third", options, BRIEF, error=ConfigError)


def test_twenty_photographs(tmp_path: Path) -> None:
    """Few items of one's own: one command, with parts held out and defaults by the number of items."""
    rows = []
    for n, sample in enumerate(make("train", 20)):
        Image.fromarray(sample.image).save(tmp_path / f"{n}.png")
        rows += [{"image": f"{n}.png", "caption": text} for text in sample.captions[:2]]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = f"{BRIEF} --trainer.max_epochs auto --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32"
    folder = fit(tmp_path / "run", f"--data.train {tmp_path / 'mine.jsonl'}", base)
    metrics = read(folder / "metrics.json")
    assert {"bleu1", "bleu4", "rouge_l", "cider_d", "loss"} <= metrics["validation"].keys()
    assert "facts" not in metrics["validation"], "there are no annotated scenes"
    assert "PTB" in json.dumps(metrics), "the tokenizer is stated"
    predictor = load(folder / "model", device="cpu")
    assert predictor({"image": np.zeros((9, 12, 3), np.uint8), "id": "x"}).id == "x"


@pytest.mark.parametrize("draws", [3, 1])
@pytest.mark.parametrize("decoder", slow_but_first(["transformer", "lstm"]))
def test_self_critical_training_raises_its_reward(decoder: str, draws: int) -> None:
    """From random weights, of which greedy captions and drawn ones are of no use, to words of the references."""
    samples = make("train", 4)
    processor = CaptionProcessor.fit(CaptionDataset(samples), image_size=32, max_target_len=8)
    batch = processor.collate(samples)
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "decoder_layers": 1, "image_size": 32}
    model = CaptioningModel(processor.target.vocab_size, decoder=decoder, **small)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def reward(texts: Any, references: Any) -> list[float]:
        return [sum(word in {"a", "small"} for word in text.split()) for text in texts]

    rewards = []
    for _ in range(60):
        ids, mask, advantage = draw(model.eval(), batch, processor, reward, draws)
        assert ids.shape == mask.shape
        assert len(ids) == 4 * draws
        assert draws == 1 or advantage.view(4, draws).sum(1).abs().max() < 1e-5, "compared with each other"
        loss = self_critical_loss(model.train(), batch, processor, ids, mask, advantage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(sum(reward([processor.decode(row.tolist()) for row in ids], None)))
    first = 10 if draws == 1 else 3  # steps; after ten steps three draws have reached half of the largest reward
    assert sum(rewards[-10:]) / 10 > 3 * sum(rewards[:first]) / first + 2 * draws


def test_captions_are_drawn_without_the_options_of_generation() -> None:
    """The loss has the probabilities of plain sampling, which those of a public model would change."""
    samples = make("train", 2)
    processor = CaptionProcessor.fit(CaptionDataset(samples), image_size=32, max_target_len=8)
    ids = {"decoder_start_token_id": processor.target.start_id, "eos_token_id": processor.target.eos_id}
    others = {"top_k": 1, "min_length": 5, "repetition_penalty": 9.0, "num_beams": 4, "num_beam_groups": 2}
    small: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "decoder_layers": 1, "image_size": 32}
    model = CaptioningModel(processor.target.vocab_size, **small).eval()
    found = []
    for options in ({}, others):
        processor.options["generation"] = ids | options
        torch.manual_seed(0)
        batch = processor.collate(samples)
        found.append(draw(model, batch, processor, lambda texts, _: [float(len(text)) for text in texts], 3))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_self_critical_fit(tmp_path: Path) -> None:
    first = fit(tmp_path / "first", "")
    options = f"--init_from {first / 'model'} --loss.objective self_critical"
    folders = [fit(tmp_path / f"{n}", options, BRIEF) for n in range(2)]
    one, other = map(weights, folders)
    assert all(torch.equal(one[name], other[name]) for name in one), "what is drawn depends on the seed alone"
    message = r"loss\.label_smoothing: expected 0 with loss\.objective self_critical"
    refused(message, fit, tmp_path / "x", f"{options} --loss.label_smoothing 0.1", BRIEF, error=ConfigError)
    options = "--loss.objective self_critical"
    refused(
        "expected --init_from a model that writes captions.*random", fit, tmp_path / "x", options, error=ConfigError
    )
    refused(r"loss\.draws: expected loss\.objective", fit, tmp_path / "x", "--loss.draws 3", error=ConfigError)


@pytest.mark.parametrize(
    "options",
    [
        "--model.decoder lstm --loss.doubly_stochastic 1.0 --data.captions_per_image 1 --loss.word_dropout 0.2",
        "--loss.attention_supervision 1 --loss.object_supervision 1 --model.cross_attention.kind sigmoid",
    ],
)
def test_losses(options: str, tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", f"{options} --data.augment.flip false")
    assert read(folder / "metrics.json")["fit"]["steps"] == 2
    names = weights(folder)
    assert ("object_head.weight" in names) == ("object_supervision" in options)
