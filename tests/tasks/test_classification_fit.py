"""Training on own data: class folders, tables, multi-label, augmentation, layer-wise rates, a confusion plot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn import load
from mmattn.data.image.processor import ImageProcessor
from mmattn.tasks.classification.demo import CLASSES, make
from mmattn.tasks.classification.module import ClassificationModule
from mmattn.tasks.classification.processor import ClassificationProcessor
from tests.conftest import refused
from tests.tasks.runs import read, run


def fit(folder: Path, options: str = "", command: str = "fit") -> Path:
    return run(command, folder, options, task="classification")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, and a multi-label table."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rows = ["path,labels"]
    for n, sample in enumerate(make("train", 24)):
        label = sample.labels[0]
        (folder / "tree" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(folder / "tree" / label / f"{n}.png")
        rows.append(f"tree/{label}/{n}.png,{label.split()[1]}|{'even' if n % 2 else 'odd'}")
    (folder / "several.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_own_class_folders(tree: Path, tmp_path: Path) -> None:
    options = f"--data.train {tree}/tree --data.val {tree}/tree --loss.label_smoothing 0.1 --optim.ema_decay 0.9"
    folder = fit(tmp_path / "run", options)
    assert set(read(folder / "metrics.json")["validation"]) >= {"top1", "top5", "ece"}
    fit(folder, f"--checkpoint {folder}/model --data.test {tree}/tree --trainer.report true", "test")
    assert (folder / "confusion_test.png").stat().st_size > 1000
    assert load(folder / "model", device="cpu").labels == sorted(CLASSES)


def test_multi_label(tree: Path, tmp_path: Path) -> None:
    options = f"--data.train {tree}/several.csv --data.val {tree}/several.csv"
    folder = fit(tmp_path / "run", f"{options} --data.multi_label true")
    assert set(read(folder / "metrics.json")["validation"]) >= {"map", "f1_macro"}
    fit(tmp_path / "out", f"--checkpoint {folder}/model --data.test {tree}/several.csv", "test")  # no multi_label
    assert read(tmp_path / "out" / "metrics.json")["test"]["map"] > 0
    predictor = load(folder / "model", device="cpu")
    assert predictor(make("val", 1)[0].image).labels is not None
    assert len(predictor.open_input(f"{tree}/several.csv")) == 24
    refused("line 2: expected one label", fit, tmp_path / "single", options)


@pytest.mark.parametrize(
    "options",
    [
        "--model.backbone cct --model.attention.kind linear --model.tokenizer_layers 2 --model.dropout 0.1",
        "--model.backbone vit --model.attention.kind sliding_window --model.attention.window 4 --optim.layer_decay 0.7",
        "--data.augment.pad 4 --data.augment.flip true --data.augment.rand_augment 1 --data.augment.mixup 0.2 "
        "--data.augment.cutmix 1.0 --data.augment.erase 0.25 --model.channel_attention cbam",
        "--trainer.precision bf16-mixed --trainer.gradient_checkpointing true --data.num_workers 1",
    ],
)
def test_training_options(options: str, tmp_path: Path) -> None:
    assert read(fit(tmp_path / "run", options) / "metrics.json")["fit"]["steps"] > 0


def test_workers_and_preloading_do_not_change_results(tmp_path: Path) -> None:
    """The batches are equal in this process, and in a worker that decodes the images again."""
    weights = []
    for options in ("--data.preload true", "--data.preload false --data.num_workers 1"):
        folder = fit(tmp_path / options[-1], f"{options} --data.augment.pad 4 --data.augment.mixup 0.3")
        weights.append(load(folder / "model", device="cpu").model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_layer_wise_learning_rates() -> None:
    model = {"backbone": "vit", "embed_dim": 16, "num_heads": 2, "num_layers": 3}
    module = ClassificationModule(model, optim={"layer_decay": 0.5})
    module.build({"num_classes": 3, "image_size": 32})
    groups, head, backbone = module.parameter_groups(), module.model.head.out, module.model.backbone
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate_of) == sum(1 for _ in module.model.parameters())
    found = [rate_of[id(next(layer.parameters()))] for layer in backbone.encoder.layers]
    assert found == pytest.approx([1e-3 * 0.5**3, 1e-3 * 0.5**2, 1e-3 * 0.5])
    assert rate_of[id(head.weight)] == 1e-3
    assert rate_of[id(backbone.positions)] == pytest.approx(1e-3 * 0.5**4)
    assert {id(p): group["weight_decay"] for group in groups for p in group["params"]}[id(head.bias)] == 0


def test_shuffled_images_keep_their_patches() -> None:
    processor = ClassificationProcessor(ImageProcessor(64), CLASSES)
    plain, mixed, again = (processor.collate(make("val", 3)) for _ in range(3))
    for batch in (mixed, again):
        processor.ablate(batch, "arrangement", seeds=[1, 2, 3])
    assert torch.equal(mixed.pixel_values, again.pixel_values)
    assert not torch.equal(mixed.pixel_values, plain.pixel_values)

    def patches(x: torch.Tensor) -> Any:
        return np.sort(torch.nn.functional.unfold(x, 8, stride=8).sum(1).numpy(), axis=1)

    np.testing.assert_allclose(patches(mixed.pixel_values), patches(plain.pixel_values), atol=1e-3)


def test_class_unseen_in_training(tree: Path, tmp_path: Path) -> None:
    row = {"path": f"{tree}/tree/{CLASSES[0]}/0.png", "label": "circle over square"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="expected one of the 6 classes of the training data"):
        fit(tmp_path / "run", f"--data.train {tree}/tree --data.val {tmp_path}/val.jsonl")
