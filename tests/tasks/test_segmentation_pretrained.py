"""Prediction with and fine-tuning of pretrained models: public SegFormers, timm backbones, ours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmattn
from mmattn.data.image.masks import ClassList
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.segmentation.demo import NAMES, make
from mmattn.tasks.segmentation.predict import load
from tests.conftest import refused
from tests.image_files import write_pairs
from tests.tasks.runs import BRIEF, STILL, ask, assert_kept, edited, read, run

Image = pytest.importorskip("PIL.Image")

BASE = f"{BRIEF} --data.demo_size 8 --data.batch_size 4"
SIZE = {"height": 48, "width": 64}
PREPARED: dict[str, dict[str, Any]] = {
    "default": {},
    "statistics": {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7]},
    "not normalized": {"do_normalize": False},
    "another scale": {"rescale_factor": 1 / 127.5},
    "reduced labels": {"do_reduce_labels": True},
}


def fit(folder: Path, options: str) -> Path:
    """The model folder of a run."""
    return run("fit", folder, options, base=BASE, task="segmentation") / "model"


def write_segformer(folder: Path, labels: int = 9, head: str = "SemanticSegmentation", **processor: Any) -> Any:
    """Saves a tiny random SegFormer and its image processor with transformers; returns both."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "num_encoder_blocks": 2}
    names = {n: f"thing {n}" for n in range(labels)}
    config = transformers.SegformerConfig(**sizes, decoder_hidden_size=12, id2label=names)
    torch.manual_seed(0)
    model = getattr(transformers, f"SegformerFor{head}")(config).eval()
    with torch.no_grad():  # scores far apart, statistics other than 0 and 1
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    kind = getattr(transformers, "SegformerImageProcessorPil", transformers.SegformerImageProcessor)
    prepare = kind(**{"size": SIZE, **processor})
    prepare.save_pretrained(folder)
    return model, prepare


def masks_of_transformers(theirs: Any, images: list[Any]) -> list[np.ndarray]:
    model, prepare = theirs
    sizes = [(image.height, image.width) for image in images]
    with torch.no_grad():
        outputs = model(**prepare(images, return_tensors="pt"))
    return [mask.numpy() for mask in prepare.post_process_semantic_segmentation(outputs, sizes)]


def images() -> list[Any]:
    """Scenes of several sizes, one of them the model's own."""
    found = [Image.fromarray(sample.image) for sample in make("test", 4)]
    sizes = [(64, 64), (64, 48), (131, 90), (33, 70)]
    return [image.resize(size) for image, size in zip(found, sizes, strict=True)]


@pytest.mark.parity
@pytest.mark.parametrize("processor", PREPARED.values(), ids=PREPARED)
def test_masks_equal_transformers(processor: dict[str, Any], tmp_path: Path) -> None:
    theirs = write_segformer(tmp_path / "public", **processor)
    predictor = mmattn.load(tmp_path / "public", device="cpu")
    expected = masks_of_transformers(theirs, images())
    answers = predictor.predict(images())
    seen = {int(k) for mask in expected for k in np.unique(mask)}
    assert len(seen) > 2, "a constant prediction would prove nothing"
    for answer, mask in zip(answers, expected, strict=True):
        assert np.array_equal(answer.labels, mask)
    first = 1 if processor.get("do_reduce_labels") else 0
    classes = ClassList(tuple(f"thing {n}" for n in range(9)), tuple(range(first, 9 + first)), (0,) * first)
    assert predictor.processor.classes == classes
    (tmp_path / "in").mkdir()  # and from the command line, as class indices
    for n, image in enumerate(images()):
        image.save(tmp_path / "in" / f"{n}.png")
    words = f"--checkpoint {tmp_path}/public --input {tmp_path}/in --masks {tmp_path}/m --output {tmp_path}/o"
    ask("predict", *words.split(), task="segmentation")
    for n, mask in enumerate(expected):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "m" / f"{n}.png")), classes.mask(mask))


@pytest.mark.parity
def test_fine_tuning_a_public_model_with_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_segformer(tmp_path / "public")
    model = fit(tmp_path / "run", f"{STILL} --init_from {tmp_path}/public --model.dropout 0.2")
    assert "was trained on 9 other classes: its last layer is reinitialized" in capsys.readouterr().err
    first, second = load(tmp_path / "public", device="cpu"), load(model, device="cpu")
    before, after = first.model.state_dict(), second.model.state_dict()
    assert after["head.decoder.classifier.weight"].shape[0] == len(NAMES)
    assert assert_kept(before, after, ".classifier.") == len(before) - 2 - 3
    assert second.processor.size == (48, 64)
    assert second.processor.image.mean == (0.485, 0.456, 0.406)
    assert second.processor.classes.names == NAMES
    assert sum(second.processor.counts) == 8 * 64 * 64
    assert read(model / "config.json")["model"]["dropout"] == 0.2


@pytest.mark.parity
def test_fine_tuning_an_encoder(tmp_path: Path) -> None:
    write_segformer(tmp_path / "public", head="ImageClassification")
    unfinished = r"expected a finished model, found a backbone .*fit --init_from"
    refused(unfinished, mmattn.load, tmp_path / "public", error=CheckpointError)
    options = f"--init_from {tmp_path}/public --model.decoder_channels [6] --data.image_size 32"
    predictor = load(fit(tmp_path / "run", f"{STILL} {options}"), device="cpu")
    assert predictor.processor.size == 32
    assert predictor.model.head.decoder.fuse.weight.shape[0] == 6
    assert predictor.predict(make("test", 2))[1].labels.shape == (64, 64)
    wrong = f"--init_from {tmp_path}/public --model.reductions [4,2]"
    message = r"model\.reductions: .* has \(2, 1\), the configuration says"
    refused(message, fit, tmp_path / "other", wrong, error=CheckpointError)


def test_unet_with_timm_backbone(tmp_path: Path) -> None:
    model = pytest.importorskip("timm").create_model("resnet10t")
    pytest.importorskip("timm.models").save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    with edited(tmp_path / "timm" / "config.json") as config:
        config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    theirs = model.state_dict()
    start = f"--init_from {tmp_path}/timm"
    options = f"{STILL} {start} --model.decoder_channels [8,8,8,8] --model.gates false"
    predictor = load(fit(tmp_path / "run", options), device="cpu")
    ours = {n.removeprefix("encoder.body."): v for n, v in predictor.model.state_dict().items() if "encoder." in n}
    assert ours.keys() <= theirs.keys()
    assert len(ours) > 50
    assert_kept(ours, theirs)
    assert predictor.processor.image.mean == (0.1, 0.2, 0.3)
    assert predictor.model.head.decoder.channels == (8, 8, 8, 8)
    unknown = r"model\.channels: .* has no such keyword"
    refused(unknown, fit, tmp_path / "other", f"{start} --model.channels [8,8]", error=CheckpointError)
    (tmp_path / "timm" / "model.safetensors").unlink()
    nothing = r"timm: expected weights, one of model\.safetensors"
    refused(nothing, fit, tmp_path / "third", start, error=CheckpointError)


SEGFORMER = "--model.network segformer --model.channels [8,16] --model.num_heads [1,2] --model.reductions [2,1]"


@pytest.mark.parametrize("options", ["--model.channels [6,8,12]", SEGFORMER], ids=["unet", "segformer"])
def test_fine_tuning_with_other_classes(options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(tmp_path / "first", f"{options} --trainer.max_steps 1 --data.image_size 48")
    scenes = [dataclasses.replace(scene, mask=(scene.mask > 2).astype(np.uint8)) for scene in make("train", 4)]
    start, data = f"{STILL} --init_from {first}", write_pairs(tmp_path / "data", scenes)
    (data / "classes.txt").write_text("0 calm\n1 other\n")
    before, again = load(first, device="cpu").model.state_dict(), load(fit(tmp_path / "again", start), device="cpu")
    assert "is reinitialized" not in capsys.readouterr().err
    assert_kept(before, again.model.state_dict())
    assert again.processor.size == 48
    other = load(fit(tmp_path / "other", f"{start} --data.train {data} --data.val {data}"), device="cpu")
    assert "was trained on 8 other classes" in capsys.readouterr().err
    after = other.model.state_dict()
    assert all(value.shape[0] == 2 for name, value in after.items() if "classifier" in name)
    assert_kept(after, before, "classifier")
    assert other.labels == ["calm", "other"]


@pytest.mark.parity
def test_incompatible_models_raise(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    other = "expected a model for segmentation, found one of vit, for classif"
    refused(other, load, tmp_path / "vit", error=CheckpointError)
    write_segformer(tmp_path / "public", resample=3)
    refused("expected resample 2, bilinear; found 3", load, tmp_path / "public", error=CheckpointError)
    config = tmp_path / "public" / "preprocessor_config.json"
    config.write_text(json.dumps({"size": {"longest_edge": 9}}))
    unlike = r"expected size with height and width, found \{'longest_edge': 9\}"
    refused(unlike, load, tmp_path / "public", error=CheckpointError)
    config.unlink()  # without it images are not resized
    assert load(tmp_path / "public", device="cpu").processor.size is None
    with edited(tmp_path / "public" / "config.json") as labels:
        labels["id2label"]["3"] = "thing 2"
    refused("id2label: expected at most 255 names", load, tmp_path / "public", error=CheckpointError)
