"""Prediction with and fine-tuning of public detectors, and of backbones without a head."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmattn
from mmattn.explain import capture
from mmattn.tasks.common.adapter import own_adapter, read_parts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.task import tasks
from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.data import DetectionSample
from mmattn.tasks.detection.demo import CATEGORIES, NAMES, make
from mmattn.tasks.detection.losses import DetectionLoss
from mmattn.tasks.detection.model import DetectionModel
from mmattn.tasks.detection.processor import DetectionProcessor
from tests.conftest import learn, refused
from tests.tasks.runs import BRIEF, STILL, assert_kept, edited, read, run

Image = pytest.importorskip("PIL.Image")

BASE = f"{BRIEF} --data.demo_size 6 --data.batch_size 3"
FIT = {"size": {"shortest_edge": 64, "longest_edge": 90}}
SQUASH = {"size": {"height": 64, "width": 96}}
TWO_STAGES = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 6}
# Each with its class, options of the model, and of its processor.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DETR": ("Detr", {}, FIT),
    "DETR with auxiliary losses": ("Detr", {"auxiliary_loss": True}, SQUASH),
    "Deformable DETR": ("DeformableDetr", {}, FIT),
    "refined": ("DeformableDetr", {"with_box_refine": True}, FIT),
    "two stages": ("DeformableDetr", TWO_STAGES, FIT),
    "RT-DETR": ("RTDetr", {}, SQUASH),
}
LABELS = {0: "N/A", 1: "person", 2: "bicycle", 3: "N/A", 4: "car", 5: "N/A", 6: "dog"}  # with gaps, as COCO's numbers


def config_of(name: str, labels: dict[int, str], **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    net = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4, "layer_type": "basic"}
    more: dict[str, Any] = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    more |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8}
    if name == "RTDetr":
        backbone = transformers.RTDetrResNetConfig(**net, out_indices=[2, 3, 4])
        more |= {"encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
    else:
        backbone = transformers.ResNetConfig(**net, out_indices=[4] if name == "Detr" else [2, 3, 4])
    more |= {"dropout": 0.0, "id2label": labels, "label2id": {}, "backbone_config": backbone}
    return getattr(transformers, f"{name}Config")(**more | options)


def write(kind: str, folder: Path, labels: dict[int, str] = LABELS, head: str = "ForObjectDetection") -> Any:
    """Saves a small random model of transformers and its processor; returns both."""
    transformers = pytest.importorskip("transformers")
    name, options, sizes = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")(config_of(name, labels, **options)).eval()
    with torch.no_grad():  # scores far apart, statistics other than 0 and 1
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
        for statistic, buffer in model.named_buffers():
            if statistic.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    prepare = getattr(transformers, f"{name}ImageProcessorPil")(**sizes)
    prepare.save_pretrained(folder)
    return model, prepare


def images() -> list[Any]:
    """Two scenes of unequal size, of which DETR's rule makes one as long, and one as short as it may be."""
    sizes = [(131, 90), (61, 107)]
    return [Image.fromarray(s.image).resize(size) for s, size in zip(make("test", 2), sizes, strict=True)]


def detected(theirs: Any, pictures: list[Any]) -> list[tuple[Tensor, ...]]:
    """Scores, labels and boxes of transformers, the best first, clipped to the image."""
    model, prepare = theirs
    sizes = [(image.height, image.width) for image in pictures]
    inputs = prepare(pictures, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.no_grad():
        outputs = model(**inputs)
    found = []
    for one, (height, width) in zip(prepare.post_process_object_detection(outputs, 0.0, sizes), sizes, strict=True):
        order = one["scores"].argsort(descending=True)
        boxes = one["boxes"][order].clamp_min(0).minimum(torch.tensor([width, height, width, height]))
        found.append((one["scores"][order], one["labels"][order], boxes))
    return found


def fit(folder: Path, options: str) -> Path:
    return run("fit", folder, options, base=BASE, task="detection") / "model"


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_detections_equal_transformers(kind: str, tmp_path: Path) -> None:
    theirs = write(kind, tmp_path)
    predictor = mmattn.load(tmp_path, device="cpu")
    batch = predictor.processor.collate([DetectionSample(str(n), image) for n, image in enumerate(images())])
    inputs = theirs[1](images(), return_tensors="pt")
    torch.testing.assert_close(batch.pixel_values, inputs["pixel_values"], atol=1e-5, rtol=0)
    # In float64, and each image alone: theirs depend on the padding of a batch, ours do not.
    theirs[0].double(), predictor.model.double()
    batch = replace(batch, pixel_values=batch.pixel_values.double())
    expected = [detected(theirs, [image])[0] for image in images()]
    every = torch.cat([scores for scores, _, _ in expected])
    assert float(every.max() - every.min()) > 5e-3, "a constant prediction would prove nothing"
    for ours, (scores, labels, boxes) in zip(predictor.detect(batch), expected, strict=True):
        count = len(scores)
        assert len(ours.scores) >= count >= 6
        torch.testing.assert_close(ours.scores[:count], scores.float(), atol=1e-5, rtol=0)
        assert torch.equal(ours.labels[:count], labels)
        torch.testing.assert_close(ours.boxes_xyxy[:count], boxes.float(), atol=1e-3, rtol=0)
    predictor.model.float()
    assert predictor.processor.classes.names == ("N/A 0", "person", "bicycle", "N/A 3", "car", "N/A 5", "dog")
    answer = predictor(images()[0], threshold=0.0)
    assert {box.label for box in answer.boxes} <= set(predictor.labels)
    explained = predictor.explain(images()[0], threshold=0.0)
    assert len(explained.readings) == len(answer.boxes) > 0


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_overfits_one_batch_and_says_where_queries_read(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path)
    parts = read_parts("detection", tmp_path)
    torch.manual_seed(0)
    model = own_adapter(tasks()["detection"]).build(parts.keywords | {"num_classes": 5})
    batch = DetectionProcessor(CATEGORIES, 64, resize="squash").collate(make("train", 2))
    true = (batch.boxes_cxcywh, batch.labels, batch.box_mask)
    criterion, layers = DetectionLoss(), {"classification", "l1", "giou", "auxiliary"}
    proposals = {"proposals"} if kind in ("two stages", "RT-DETR") else set()
    assert set(criterion(model(batch.pixel_values, batch.pixel_mask), *true)) == layers | proposals

    def loss() -> Tensor:
        return torch.stack(list(criterion(model(batch.pixel_values, batch.pixel_mask, *true), *true).values())).sum()

    losses = learn(torch.optim.AdamW(model.parameters(), lr=2e-3), 30, loss)
    assert losses[-1] < 0.87 * losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    mask = batch.pixel_mask.clone()
    mask[:, :, 48:] = False
    with torch.no_grad(), capture(model.eval()) as maps:
        output = model(batch.pixel_values * mask[:, None], mask)
    points, weights = model.reading(maps)
    assert output.layers is None
    assert points.shape == (*weights.shape, 2)
    assert weights.shape[:2] == output.logits.shape[:2]
    assert float(weights.sum(-1).detach().max()) <= 1 + 1e-5
    if kind.startswith("DETR"):  # a map of 2 x 2 cells
        expected = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]) / torch.tensor([0.75, 1])
        torch.testing.assert_close(points[0, 0], expected)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["DETR", "two stages", "RT-DETR"])
def test_fine_tuning_with_other_classes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(kind, tmp_path / "public")
    model = fit(tmp_path / "run", f"{STILL} --init_from {tmp_path}/public --model.dropout 0.1")
    assert "was trained on 7 other classes: its last layer is reinitialized" in capsys.readouterr().err
    first, second = mmattn.load(tmp_path / "public", device="cpu"), mmattn.load(model, device="cpu")
    before, after = first.model.state_dict(), second.model.state_dict()
    classes = ("classifier.", "class_heads.", "proposal_classes.")
    assert before.keys() == after.keys()
    kept = assert_kept(before, after, *classes)
    assert kept > 50
    assert all(
        after[name].shape[0] == len(NAMES) + (kind == "DETR") for name in after if any(c in name for c in classes)
    )
    assert second.processor.labels == list(NAMES)
    assert (second.processor.size, second.processor.resize) == (first.processor.size, first.processor.resize)
    assert second.processor.image.mean == first.processor.image.mean
    assert read(model / "config.json")["model"]["dropout"] == 0.1
    assert len(second.predict(images(), threshold=0.0)) == 2
    again = f"{STILL} --init_from {model} --trainer.max_steps 1"
    assert_kept(after, mmattn.load(fit(tmp_path / "again", again), device="cpu").model.state_dict())
    assert "reinitialized" not in capsys.readouterr().err


@pytest.mark.parity
def test_fewer_classes_reinitialize_class_layers_alone(tmp_path: Path) -> None:
    """Without a run: three classes, and a model without heads."""
    three = DetectionProcessor(Categories(("a", "b", "c"), (1, 2, 3)), 64)
    for kind in KINDS:
        write(kind, tmp_path / kind)
        parts = read_parts("detection", tmp_path / kind)
        adapted = parts.adapter.adapt(parts, three, three.sizes(), 0)
        model = adapted.build(adapted.keywords).eval()
        assert model(torch.randn(1, 3, 128, 128)).logits.shape[2] == 3
        assert all("class" in name for name in adapted.fresh)
        assert len(adapted.fresh) == sum("class" in name for name in parts.state)
    write("DETR", tmp_path / "headless", head="Model")
    refused("expected a finished model, found a backbone", mmattn.load, tmp_path / "headless", error=CheckpointError)
    parts = read_parts("detection", tmp_path / "headless")
    adapted = parts.adapter.adapt(parts, three, three.sizes(), 0)
    assert {name.split(".")[2] for name in adapted.fresh} == {"classifier", "boxes"}


@pytest.mark.parity
def test_wrong_folders_and_options(tmp_path: Path) -> None:
    write("DETR", tmp_path / "public")
    start = f"--init_from {tmp_path}/public"
    message = "loss.classification: expected cross_entropy for this network, found 'focal'"
    refused(message, fit, tmp_path / "a", f"{start} --loss.classification focal", error=ConfigError)
    message = r"model\.num_queries: .* has no such keyword"
    refused(message, fit, tmp_path / "b", f"{start} --model.num_queries 9", error=CheckpointError)
    with edited(tmp_path / "public" / "preprocessor_config.json") as config:
        config["resample"] = 3
    refused("expected resample 2, found 3", mmattn.load, tmp_path / "public", error=CheckpointError)
    config_file = tmp_path / "public" / "preprocessor_config.json"
    config_file.write_text(json.dumps({"size": {"longest_edge": 9}}))
    refused(
        r"expected size with height and width, or .* found", mmattn.load, tmp_path / "public", error=CheckpointError
    )
    config_file.write_text(json.dumps({"size": 70, "max_size": 90, "feature_extractor_type": "DetrFeatureExtractor"}))
    assert mmattn.load(tmp_path / "public", device="cpu").processor.size == (70, 90)
    config_file.write_text(json.dumps({"do_resize": False}))
    assert mmattn.load(tmp_path / "public", device="cpu").processor.size is None
    config_file.unlink()  # DETR's own size
    assert mmattn.load(tmp_path / "public", device="cpu").processor.size == (800, 1333)
    with edited(tmp_path / "public" / "config.json") as config:
        config["id2label"]["7"] = "cat"
    refused("id2label: expected numbers from 0 to 6", mmattn.load, tmp_path / "public", error=CheckpointError)
    with edited(tmp_path / "public" / "config.json") as config:
        del config["id2label"]["7"]
        config["id2label"]["4"] = "person"
    refused("with different names", mmattn.load, tmp_path / "public", error=CheckpointError)
    weights = tmp_path / "public" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    refused("model.safetensors", mmattn.load, tmp_path / "public", error=CheckpointError)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    other = "expected a model for detection, found one of vit"
    refused(other, read_parts, "detection", tmp_path / "vit", error=CheckpointError)


def test_keywords_of_other_networks() -> None:
    for keywords, message in (
        ({"network": "yolo"}, "unknown network 'yolo'; expected one of: pyramid, detr, deformable_detr, rt_detr"),
        ({"network": "detr", "num_queries": 9}, "num_queries: of the network pyramid alone, not of detr; found 9"),
        ({"network_options": {"num_queries": 9}}, "network_options: of public networks alone"),
        ({"network": "detr", "network_options": {"num_points": 9}}, "detr has no num_points; it has: activation"),
        ({"network": "detr", "network_options": {"dropout": 0.1}}, "detr has no dropout"),
        ({"network": "rt_detr", "cross_attention": {"kind": "dense"}}, "cross_attention: not of the network rt_detr"),
    ):
        refused(message, DetectionModel, 5, **keywords)


def test_boxes_of_rt_detr_are_of_the_images_own_part() -> None:
    """It sees padding as pixels, but its boxes must not depend on how they are counted."""
    net = {"channels": (8, 8, 16), "depths": (1, 1, 1), "bottleneck": False, "variant": "d", "stem_dim": 8}
    sizes = {"embed_dim": 16, "num_queries": 7, "num_heads": 2, "encoder_dim": 16, "encoder_heads": 2, "backbone": net}
    model = DetectionModel(5, network="rt_detr", network_options=sizes)
    assert model.unit == 16
    pixels, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)
    mask[1, :, 32:] = mask[1, 48:] = False
    model.eval()
    whole, own = model(pixels), model(pixels, mask)
    assert torch.equal(own.boxes_cxcywh[0], whole.boxes_cxcywh[0])
    torch.testing.assert_close(own.boxes_cxcywh[1], whole.boxes_cxcywh[1] * torch.tensor([2, 4 / 3, 2, 4 / 3]))


def test_backbone_of_timm(tmp_path: Path) -> None:
    model = pytest.importorskip("timm").create_model("resnet10t")
    pytest.importorskip("timm.models").save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    with edited(tmp_path / "timm" / "config.json") as config:
        config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    theirs, start = model.state_dict(), f"--init_from {tmp_path}/timm"
    head = "--model.embed_dim 16 --model.num_heads 2 --model.num_queries 9 --model.num_layers 1 --model.ffn_dim 16"
    parts = read_parts("detection", tmp_path / "timm")
    refused("expected a finished model, found a backbone", parts.finished, error=CheckpointError)
    predictor = mmattn.load(fit(tmp_path / "run", f"{STILL} {start} {head} --data.image_size 64"), device="cpu")
    ours = {n.removeprefix("backbone.body."): v for n, v in predictor.model.state_dict().items() if "backbone." in n}
    assert ours.keys() <= theirs.keys()
    assert len(ours) > 50
    assert_kept(ours, theirs)
    assert predictor.processor.image.mean == (0.1, 0.2, 0.3)
    assert (predictor.processor.size, predictor.processor.multiple) == ((64, 64), 32)
    refused(
        r"model\.channels: .* no such keyword",
        fit,
        tmp_path / "b",
        f"{start} --model.channels [8,8]",
        error=CheckpointError,
    )


@pytest.mark.parity
def test_loss_of_a_softmax_equals_transformers() -> None:
    """With an image without objects, and an object in another."""
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    from mmattn.tasks.detection.outputs import DetectionOutput

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 6, generator=generator, dtype=torch.float64)
    boxes, true = (torch.rand(3, n, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2 for n in (9, 4))
    labels, mask = torch.arange(12).view(3, 4) % 5, torch.arange(4) < torch.tensor([[0], [1], [4]])
    targets = [{"class_labels": n[m], "boxes": b[m]} for n, b, m in zip(labels, true, mask, strict=True)]
    matcher = theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = theirs.ImageLoss(matcher, 5, 0.1, ["labels", "boxes"]).double()
    expected = criterion({"logits": logits, "pred_boxes": boxes}, targets)
    output = DetectionOutput(logits[..., :-1], boxes, no_object=logits[..., -1])
    found = DetectionLoss(class_cost=1.0, class_weight=1.0)(output, true, labels, mask)
    wanted = [expected["loss_ce"], 5 * expected["loss_bbox"], 2 * expected["loss_giou"]]
    torch.testing.assert_close([found[n] for n in ("classification", "l1", "giou")], wanted)
