"""Training and evaluation of detection, without a trainer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.detection.demo import CATEGORIES, NAMES, make
from mmattn.tasks.detection.detect import detections
from mmattn.tasks.detection.losses import DetectionLoss
from mmattn.tasks.detection.model import DetectionModel
from mmattn.tasks.detection.module import DetectionDataModule, DetectionLossOptions, DetectionModule
from mmattn.tasks.detection.outputs import DetectionOutput
from mmattn.tasks.detection.processor import DetectionProcessor
from tests.conftest import refused


def test_options_of_the_loss_are_those_of_its_class() -> None:
    made, default = DetectionLossOptions(copies=2, classification="focal").build(), DetectionLoss()
    assert (made.copies, made.classification) == (2, "focal")
    assert (made.weights, made.costs, made.set_weights) == (default.weights, default.costs, default.set_weights)
    refused("loss.label_smoothing: expected 0", DetectionLossOptions, label_smoothing=0.1, error=ConfigError)
    refused("loss: copies: expected at least 1", DetectionLossOptions, copies=0, error=ConfigError)


def test_a_step_and_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    processor = DetectionProcessor(CATEGORIES, 128)
    batch = processor.collate(make("train", 2))
    module = DetectionModule({})
    monkeypatch.setattr(DetectionModule, "data", SimpleNamespace(processor=processor))
    module.model = DetectionModel(5, channels=(6, 8, 8, 8), embed_dim=16, num_queries=7, num_layers=1, num_heads=2)
    loss, parts = module.training_loss(batch)
    assert float(loss.detach()) == pytest.approx(sum(float(part.detach()) for part in parts.values()))
    assert {"classification", "l1", "giou", "proposals", "denoising"} == set(parts)
    metric: Any = module.make_metric()
    with torch.inference_mode():
        module.model.eval()
        module.update_metric(metric, batch)
    found = metric.compute()
    assert 0 <= float(found["map50"]) < 0.5
    assert any(name.removeprefix("map/") in NAMES for name in found)


def test_true_boxes_are_perfect_detections() -> None:
    """From boxes in 0..1 back to pixels of the original images."""
    processor = DetectionProcessor(CATEGORIES, 96)
    batch = processor.collate(make("val", 3))
    logits = torch.full((*batch.labels.shape, 5), -9.0)
    logits.scatter_(2, batch.labels[..., None], torch.where(batch.box_mask, 9.0, -9.0)[..., None])
    found = detections(processor, DetectionOutput(logits, batch.boxes_cxcywh), batch.original_sizes)
    for one, truth in zip(found, batch.truths, strict=True):
        kept = one.scores > 0.5
        order, true = one.boxes_xyxy[kept][:, 0].argsort(), torch.from_numpy(truth.boxes_xyxy).float()
        torch.testing.assert_close(one.boxes_xyxy[kept][order], true[true[:, 0].argsort()], atol=1e-3, rtol=0)
        assert sorted(one.labels[kept].tolist()) == sorted(truth.labels.tolist())
    assert (
        len(detections(processor, DetectionOutput(logits, batch.boxes_cxcywh), batch.original_sizes, 2)[0].scores) == 2
    )


def test_built_in_data_have_their_classes() -> None:
    data = DetectionDataModule(demo_size=4, image_size=64)
    assert data.make_dataset(make("train", 4), "train").classes == CATEGORIES
    assert data.processor_options == {"size": 64, "resize": None}
