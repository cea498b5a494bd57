"""Fine-tuning of pretrained weights: public backbones, and our models with other classes or image sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn import load
from mmattn.pretrained import load_pretrained
from mmattn.tasks.classification.demo import CLASSES, make
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.images import timm_labels
from mmattn.tasks.common.sources import Source
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, STILL, assert_kept, edited, read, run, weights, write_lines

BASE = f"{BRIEF} --data.demo_size 12 --data.batch_size 6"
POSITIONS = ("backbone.positions", "backbone.positions.weight")


def fit(folder: Path, options: str, base: str | None = None) -> Path:
    return run("fit", folder, options, base, task="classification")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models saved by transformers."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"image_size": 32, "patch_size": 8}
    root = tmp_path_factory.mktemp("public")
    for name in ("ViT", "DeiT", "Dinov2"):
        config = getattr(transformers, f"{name}Config")(**sizes)
        getattr(transformers, f"{name}Model")(config).save_pretrained(root / name)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (root / "ViT" / "preprocessor_config.json").write_text(json.dumps(statistics))
    for name in ("bert", "resnet"):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"model_type": name}))
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parity
@pytest.mark.parametrize("name", slow_but_first(["ViT", "DeiT", "Dinov2"]))
def test_public_backbone_with_a_new_head(public: dict[str, Path], name: str, tmp_path: Path) -> None:
    options = f"{STILL} --init_from {public[name]} --optim.layer_decay 0.7 --optim.ema_decay 0.5"
    predictor = load(fit(tmp_path / "run", options, BASE) / "model", device="cpu")
    theirs, ours = load_pretrained(public[name]).state_dict(), predictor.model.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert_kept(theirs, ours)
    assert predictor.processor.image.size == (32, 32)
    assert predictor.labels == sorted(CLASSES)
    mean = (0.1, 0.2, 0.3) if name == "ViT" else (0.485, 0.456, 0.406)
    assert predictor.processor.image.mean == mean
    assert predictor.explain(make("test", 1)[0]).relevance.shape == (4, 4)


@pytest.mark.parity
def test_public_backbone_with_larger_images(public: dict[str, Path], tmp_path: Path) -> None:
    options = f"{STILL} --init_from {public['ViT']} --data.image_size 48 --model.dropout 0.1"
    predictor = load(fit(tmp_path / "run", options, BASE) / "model", device="cpu")
    assert predictor.processor.image.size == (48, 48)
    assert predictor.explain_all(make("test", 2))[1].relevance.shape == (6, 6)


@pytest.mark.parity
@pytest.mark.parametrize("channels", [3, 1])
def test_timm_backbone_of_gray_images_and_at_another_size(channels: int, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    sizes = {"depth": 2, "patch_size": 8, "in_chans": channels}
    given = timm.create_model("vit_tiny_patch16_224", img_size=64, **sizes).eval()
    torch.nn.init.normal_(given.pos_embed)
    timm.models.save_for_hf(given, tmp_path, model_args={"img_size": 64, **sizes}, safe_serialization=True)
    with edited(tmp_path / "config.json") as config:
        config["pretrained_cfg"] |= {"mean": [0.2] * channels, "std": [0.4] * channels}
    parts = read_parts("classification", tmp_path)
    assert parts.processor.image.mean == (0.2, 0.2, 0.2)
    images = torch.randn(2, 3, 32, 32)
    gray = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * images).sum(1, keepdim=True)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, **sizes).eval()
    theirs.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(given.state_dict(), theirs))
    model = parts.adapter.build({**parts.keywords, "num_classes": 2, "image_size": 32}).eval()
    model.load_state_dict(parts.state, strict=False)
    expected = theirs.forward_features(images if channels == 3 else gray)
    assert (model.backbone(images).states - expected).abs().max() < 1e-4


@pytest.mark.parity
def test_timm_network_with_a_new_head(tmp_path: Path) -> None:
    """All of its layers, from a folder of the hub; the pooling begins as the mean, and can be explained."""
    timm = pytest.importorskip("timm")
    given = timm.create_model("test_resnet", num_classes=5)
    torch.nn.init.normal_(given.bn1.running_mean)
    timm.models.save_for_hf(given, tmp_path / "public", safe_serialization=True)
    options = f"--data.image_size 64 --model.freeze pretrained --init_from {tmp_path / 'public'}"
    predictor = load(fit(tmp_path / "run", options, BASE) / "model", device="cpu")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(predictor.model.backbone(images), given.eval().forward_features(images))
    explanation = predictor.explain(make("test", 1)[0])
    assert explanation.attention.shape == explanation.relevance.shape == (2, 2)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_timm_classifier(name: str, tmp_path: Path) -> None:
    """It is kept if it reads the mean of the map and its classes have names, and replaced for other classes."""
    timm = pytest.importorskip("timm")
    given, words = timm.create_model(name, num_classes=3).eval(), ["ant", "bee", "cow"]
    for parameter in given.get_classifier().parameters():
        torch.nn.init.normal_(parameter)
    timm.models.save_for_hf(given, tmp_path / "public", {"label_names": words}, safe_serialization=True)
    if name == "test_convnext":  # a norm is between its pooling and its classifier
        refused("expected a finished model", load, tmp_path / "public", error=CheckpointError)
        return
    predictor = load(tmp_path / "public", device="cpu")
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.model(images).logits, given(images), rtol=1e-5, atol=1e-5)
    assert predictor.labels == words
    sample = make("test", 1)[0]
    assert predictor(sample).label in words
    assert predictor.explain(sample).relevance.shape == predictor.explain(sample).attention.shape
    options = f"--data.image_size 64 --init_from {tmp_path / 'public'}"
    assert load(fit(tmp_path / "run", options, BASE) / "model", device="cpu").labels == sorted(CLASSES)
    with edited(tmp_path / "public" / "config.json") as config:
        del config["label_names"]
    refused("expected a finished model", load, tmp_path / "public", error=CheckpointError)


def test_names_of_imagenet() -> None:
    pytest.importorskip("timm")
    names = timm_labels(Source("x", Path(), {"num_classes": 1000}))
    assert len(set(names)) == 1000
    assert names[0] == "tench"
    assert {"crane (n02012849)", "crane (n03126707)", "maillot, tank suit"} <= set(names)
    assert timm_labels(Source("x", Path(), {"num_classes": 7})) == []


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bert",
            "expected a model for classification, found one of bert, for qa and summarization and "
            "text_classification and vqa",
        ),
        ("resnet", "resnet"),
        ("none", "none"),
    ],
)
def test_other_models_raise(public: dict[str, Path], name: str, message: str, tmp_path: Path) -> None:
    start = f"--init_from {public['ViT'].parent / name}"
    refused(rf"init_from: .*{message}", fit, tmp_path / "run", start, error=CheckpointError)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built-in images with two other class names."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("table")
    rows = []
    for n, sample in enumerate(make("train", 12)):
        Image.fromarray(sample.image).save(folder / f"{n}.png")
        rows.append({"path": f"{n}.png", "label": "one" if n % 2 else "two"})
    return write_lines(folder / "all.jsonl", rows)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--model.backbone vit --model.num_layers 1",
        pytest.param("--model.backbone cct --model.num_layers 1 --model.tokenizer_layers 2", marks=pytest.mark.slow),
    ],
)
def test_fine_tuning_with_other_classes_and_sizes(options: str, table: Path, tmp_path: Path) -> None:
    first = fit(tmp_path / "first", f"{options} --trainer.max_steps 1")
    start = f"{STILL} --init_from {first}"
    before = weights(first)
    assert_kept(before, weights(fit(tmp_path / "again", start)))
    other = fit(tmp_path / "other", f"{start} --data.train {table} --data.val {table} --data.image_size 96")
    after = weights(other)
    assert after["head.out.weight"].shape[0] == 2
    assert_kept(before, after, "head.", *POSITIONS)
    if options:
        (name,) = [k for k in before if k.endswith(POSITIONS)]
        assert after[name].shape[2] == before[name].shape[2] * 3 // 2
    config: Any = read(other / "model" / "config.json")["model"]
    assert (config["num_classes"], config["image_size"]) == (2, 96)


def test_conflicting_keywords_raise(tmp_path: Path) -> None:
    first = fit(tmp_path / "first", "--trainer.max_steps 1")
    message = r"model\.num_queries: .* has 2, the configuration says 3"
    refused(message, fit, tmp_path / "second", f"--init_from {first} --model.num_queries 3", error=CheckpointError)
