"""The detection model: the tests of every task's model, and its own."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.explain import capture
from mmattn.tasks.common.export import export_model
from mmattn.tasks.detection.boxes import box_iou, cxcywh_to_xyxy
from mmattn.tasks.detection.decoder import READERS
from mmattn.tasks.detection.demo import CATEGORIES, make
from mmattn.tasks.detection.denoising import disturb, group_mask
from mmattn.tasks.detection.head import DetectionHead
from mmattn.tasks.detection.losses import DetectionLoss
from mmattn.tasks.detection.model import DetectionModel
from mmattn.tasks.detection.processor import DetectionProcessor
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"num_classes": 5, "channels": (6, 8, 8, 8), "embed_dim": 16, "num_queries": 7}
SMALL |= {"num_maps": 3, "num_layers": 2, "num_heads": 2, "ffn_dim": 24}
DENSE: dict[str, Any] = {"cross_attention": {"kind": "dense"}}


class TestDetectionModel(TaskModelTests):
    task = "detection"
    unused = ("head.label_embed",)  # of denoising queries, which the inputs here do not ask for
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "dense": DENSE,
        "more queries": {"copy_queries": 5, "denoising_queries": 0, "num_maps": 2},
        "position attention": {"position_attention": True, "cross_attention": {"kind": "deformable", "num_points": 2}},
        "mean": {"pooling": "mean", "dropout": 0.1},
        "other kernels": {"decoder_attention": {"kind": "cosine"}, "attention": {"kind": "linear"}},
    }
    wrong: ClassVar = [
        ({"backbone": "resnet"}, "unknown backbone 'resnet'"),
        ({"num_maps": 5}, "num_maps: expected 1 to 4, the backbone's maps, found 5"),
        ({"pooling": "max"}, "pooling: expected attention or mean, found 'max'"),
        ({"cross_attention": {"kind": "local"}}, "unknown cross_attention 'local'; expected one of: deformable, dense"),
        ({"cross_attention": {"kind": "deformable", "window": 3}}, "unknown options .'window'.; it has: num_points"),
        ({"cross_attention": {"kind": "dense", "window": 3}}, "window"),
        ({"num_queries": 0}, "expected num_queries and num_layers from 1"),
        ({"label_noise": 3.0}, "expected label_noise in 0..2 and box_noise from 0, found 3.0 and 1.0"),
    ]
    batch, rows, columns = Dim("batch", max=64), Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {
        "pixel_values": {0: batch, 2: 16 * rows, 3: 16 * columns},
        "pixel_mask": {0: batch, 1: 16 * rows, 2: 16 * columns},
    }

    def build(self, **keywords: Any) -> nn.Module:
        return DetectionModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        pixels = torch.randn(batch, 3, 16 * length, 16 * (length + 2), generator=generator)
        mask = torch.ones(batch, *pixels.shape[2:], dtype=torch.bool)
        mask[0, :, -9:] = False
        return {"pixel_values": pixels * mask[:, None], "pixel_mask": mask}

    def heads(self) -> Any:
        head = DetectionHead((16, 32), num_classes=4, embed_dim=24, num_queries=6, num_layers=1, denoising_queries=0)
        maps = [torch.randn(2, 16, 12, 8), torch.randn(2, 32, 6, 4)]
        refused("expected 2 maps, found 1", head, maps[:1])
        refused("each twice as high and wide", head, [maps[0], maps[1][:, :, :5]])
        refused(
            "at least num_queries=6 cells of all maps, found 5", head, [maps[0][:, :, :2, :2], maps[1][:, :, :1, :1]]
        )
        shapes: list[tuple[int, ...]] = [(2, 6, 4), (2, 6, 4), (1, 2, 6, 4), (1, 2, 6, 4), (2, 6)]
        return [(head, (maps,), [*shapes, (1, 2, 120, 4), (1, 2, 120, 4), (2, 120)])]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", READERS)
    def test_onnx_gives_equal_outputs(self, kind: str, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        model = self.build(cross_attention={"kind": kind})
        examples = [self.inputs(3, 7), self.inputs(1, 2), self.inputs(4, 9)]
        assert len(export_model(model, examples, self.dynamic, tmp_path, "model", ("onnx",))) == 1

    def test_head_with_other_feature_sizes(self) -> None:
        """Boxes and logits are of one size here, and masks have no gradient: the base's test, without them."""
        for head, given, shapes in self.heads():
            output = head(*given)
            found = (*output[:2], *output.layers, *output.proposals)
            assert [tuple(x.shape) for x in found if x is not None] == shapes
            sum(x.sum() for x in (*output.layers[:2], *output.proposals[:2])).backward()
            assert all(
                parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters()
            )


@pytest.fixture(scope="module")
def batch() -> Any:
    """Four built-in scenes, two of them cut, so that there is padding."""
    samples = make("train", 4)
    for sample, (height, width) in zip(samples, [(128, 128), (96, 128), (128, 72), (128, 128)], strict=True):
        image: Any = sample.image
        kept = [(box[2:] <= (width, height)).all() for box in sample.boxes_xyxy]  # type: ignore[union-attr]
        sample.image = image[:height, :width]
        sample.boxes_xyxy = sample.boxes_xyxy[kept]  # type: ignore[index]
        sample.labels = [label for label, there in zip(sample.labels, kept, strict=True) if there]
    samples[3].boxes_xyxy, samples[3].labels = samples[3].boxes_xyxy[:0], []  # type: ignore[index]
    return DetectionProcessor(CATEGORIES, multiple=32).collate(samples)


def given(batch: Any) -> tuple[Tensor, ...]:
    return batch.pixel_values, batch.pixel_mask, batch.boxes_cxcywh, batch.labels, batch.box_mask


def test_overfits_one_batch(batch: Any) -> None:
    """Every object is found, and its class, in padded images too."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": (8, 16, 24, 32), "embed_dim": 32, "num_queries": 30, "num_layers": 2}
    model = DetectionModel(5, num_maps=3, denoising_queries=0, **small)  # disturbed boxes are others each time
    criterion = DetectionLoss()

    def loss() -> Tensor:
        return torch.stack(list(criterion(model(*given(batch)), *given(batch)[2:]).values())).sum()

    losses = learn(torch.optim.AdamW(model.parameters(), lr=3e-3), 120, loss)
    assert losses[-1] < 0.35 * losses[0]
    with torch.no_grad():
        output = model.eval()(*given(batch)[:2])
    found = []
    for logits, boxes, true, labels, mask in zip(*output[:2], *given(batch)[2:], strict=True):
        iou = box_iou(cxcywh_to_xyxy(true[mask]), cxcywh_to_xyxy(boxes))  # (N, Q)
        scores = logits.sigmoid()[:, labels[mask]].T  # (N, Q)
        found += ((iou > 0.5) & (scores > 0.3)).any(1).tolist()
    assert sum(found) >= 0.8 * len(found)


@pytest.mark.parametrize("kind", READERS)
def test_captured_equals_fused_and_says_where_queries_read(kind: str, batch: Any) -> None:
    torch.manual_seed(0)
    model = DetectionModel(**SMALL, cross_attention={"kind": kind}).eval()
    plain = model(*given(batch)[:2])
    with capture(model) as maps:
        seen = model(*given(batch)[:2])
    torch.testing.assert_close(seen.logits, plain.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.boxes_cxcywh, plain.boxes_cxcywh, atol=1e-5, rtol=0)
    for layer in (0, -1):
        points, weights = model.reading(maps, layer)
        assert points.shape == (*weights.shape, 2)
        assert weights.shape[:2] == (4, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 7))
        assert weights.min() >= 0


def test_deformable_points_begin_within_the_box(batch: Any) -> None:
    """In images with padding, too: their boxes are shares of the image's own part."""
    torch.manual_seed(0)
    model = DetectionModel(**SMALL).eval()
    with capture(model) as maps:
        boxes = cxcywh_to_xyxy(model(*given(batch)[:2]).boxes_cxcywh)  # untrained, they remain where they begin
    points, _ = model.reading(maps, 0)
    assert (points >= boxes[:, :, None, :2] - 1e-4).all()
    assert (points <= boxes[:, :, None, 2:] + 1e-4).all()


@pytest.mark.parametrize("kind", READERS)
def test_padding_is_neither_proposed_nor_read(kind: str) -> None:
    """Whatever the encoder finds there: boxes and scores do not change with the states of padded cells."""
    torch.manual_seed(0)
    model = DetectionModel(**SMALL, cross_attention={"kind": kind}).double().eval()
    head, pixels = model.head, torch.randn(2, 3, 64, 96).double()
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[0, :48, :64] = mask[1] = True
    memory = head._encode(model.backbone(pixels)[-3:], mask)
    other = memory._replace(states=memory.states.masked_fill(~memory.mask[..., None], 7.0))
    assert not memory.mask[0].all()
    assert memory.centers_xy[memory.mask].max() < 1
    found = []
    for cells in (memory, other):
        head._encode = lambda *_, cells=cells: cells  # type: ignore[method-assign]
        found.append(head([], mask))
    torch.testing.assert_close(found[0].logits, found[1].logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(found[0].boxes_cxcywh, found[1].boxes_cxcywh, atol=1e-10, rtol=0)


def test_queries_beyond_the_real_cells_find_nothing() -> None:
    model = DetectionModel(**{**SMALL, "num_queries": 30}).eval()
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, :8, :8] = True
    logits = model(torch.randn(1, 3, 32, 32), mask).logits
    real = int((logits > -100).any(-1).sum())
    assert 0 < real < 30
    assert (logits[:, real:] == -100).all()


def test_mean_pooling_does_not_know_where(batch: Any) -> None:
    torch.manual_seed(0)
    model = DetectionModel(**SMALL, pooling="mean").eval()
    head, maps = model.head, model.backbone(batch.pixel_values)[-3:]
    states = head._encode(maps, batch.pixel_mask).states
    torch.testing.assert_close(states, states[:, :1].expand_as(states))


def test_denoising_queries_change_nothing_but_their_own_predictions(batch: Any) -> None:
    torch.manual_seed(0)
    model = DetectionModel(**SMALL, copy_queries=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    with_truth, without = model(*given(batch)), model(*given(batch)[:2])
    assert without.denoised is None
    torch.testing.assert_close(with_truth.layers.logits, without.layers.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(with_truth.copies.logits, without.copies.logits, atol=1e-5, rtol=0)
    denoised = with_truth.denoised
    assert denoised.logits.shape[:3] == (2, 4, denoised.objects.shape[1])
    assert not denoised.query_mask[3].any()  # the image without boxes
    parts = DetectionLoss()(with_truth, *given(batch)[2:])
    assert set(parts) == {"classification", "l1", "giou", "auxiliary", "proposals", "copies", "denoising"}
    sum(parts.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_disturbed_boxes(batch: Any) -> None:
    truth = given(batch)[2:]
    torch.manual_seed(3)
    found = disturb(*truth, 5, count=96, label_noise=0.0, box_noise=0.4)
    torch.manual_seed(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(found[:4], disturb(*truth, 5, count=96, label_noise=0.0, box_noise=0.4)[:4], strict=True)
    )
    most = int(truth[2].sum(1).max())
    assert found.groups == [2 * most] * (96 // (2 * most))
    assert found.query_mask.sum(1).tolist() == [2 * len(found.groups) * int(n) for n in truth[2].sum(1)]
    for image, query in (found.objects >= 0).nonzero().tolist():
        n = int(found.objects[image, query])
        assert found.labels[image, query] == truth[1][image, n]
        moved = cxcywh_to_xyxy(found.boxes_cxcywh[image, query]) - cxcywh_to_xyxy(truth[0][image, n])
        assert (moved.abs() <= 0.2 * truth[0][image, n, 2:].repeat(2) + 0.0101).all()
    assert found.boxes_cxcywh.isfinite().all()
    assert (found.boxes_cxcywh[..., 2:] >= 0.01).all()
    nothing = disturb(*(part[3:] for part in truth), 5)  # type: ignore[arg-type, misc]
    assert nothing.boxes_cxcywh.shape == (1, 0, 4)


def test_groups_see_what_they_may() -> None:
    seen = group_mask(2, [1], [2, 2])
    assert seen.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 1, 1],
    ]


def test_boxes_need_labels(batch: Any) -> None:
    refused("expected labels and box_mask with them, found none", DetectionModel(**SMALL), *given(batch)[:3])


def test_default_size() -> None:
    assert 1.2e6 < sum(parameter.numel() for parameter in DetectionModel(5).parameters()) < 2.5e6


def test_timm_backbone() -> None:
    pytest.importorskip("timm")
    model = DetectionModel(**{**SMALL, "backbone": "timm/resnet10t"}).eval()
    assert model.unit == 32
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 7, 5)
