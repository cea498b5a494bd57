"""The matching and the loss of detection, against naive loops."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmattn.tasks.detection.boxes import cxcywh_to_xyxy, paired_iou
from mmattn.tasks.detection.losses import (
    CLASSIFICATION,
    DetectionLoss,
    Objects,
    assign,
    focal,
    matchability,
    varifocal,
)
from mmattn.tasks.detection.outputs import Denoised, DetectionOutput, QuerySet
from tests.conftest import refused


def boxes(*shape: int, seed: int = 0) -> Tensor:
    """Random boxes cxcywh within 0..1, (*shape, 4), float64."""
    draws = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([0.2 + 0.6 * draws[..., :2], 0.05 + 0.3 * draws[..., 2:]], -1)


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(images: int = 3, objects: int = 4) -> Objects:
    """One image without boxes, others with fewer than `objects`; padded boxes are not numbers."""
    mask = torch.arange(objects) < torch.arange(images)[:, None]
    true = boxes(images, objects, seed=1).masked_fill(~mask[..., None], torch.nan)
    return Objects(true, torch.arange(images * objects).view(images, objects) % 5, mask)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_assignment_is_the_best_of_all(rows: int) -> None:
    """Among them ties, rows that take no part, and more rows than columns."""
    draw = np.random.RandomState(rows)
    for trial in range(30):
        costs = draw.randn(4, rows, 4) if trial % 2 else draw.randint(0, 3, (4, rows, 4)).astype(float)
        mask = draw.rand(4, rows) < 0.8
        for cost, there, found in zip(costs, mask, assign(costs, mask), strict=True):
            size = min(int(there.sum()), 4)
            best = min(
                sum(cost[n, m] for n, m in zip(chosen, order, strict=True))
                for chosen in itertools.combinations(np.nonzero(there)[0], size)
                for order in itertools.permutations(range(4), size)
            )
            kept = found >= 0
            assert len(set(found[kept])) == kept.sum() == size
            assert not kept[~there].any()
            assert cost[kept, found[kept]].sum() == pytest.approx(best)


def test_assignment_without_objects() -> None:
    assert assign(np.zeros((0, 2, 3)), np.ones((0, 2), bool)).shape == (0, 2)
    assert assign(np.zeros((2, 3, 4)), np.zeros((2, 3), bool)).tolist() == [[-1] * 3] * 2


def test_giou_equals_that_of_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    mine, others = cxcywh_to_xyxy(boxes(20)), cxcywh_to_xyxy(boxes(30, seed=1))
    iou, giou = paired_iou(mine[:, None], others)
    torch.testing.assert_close(iou, ops.box_iou(mine, others))
    torch.testing.assert_close(giou, ops.generalized_box_iou(mine, others))
    far = paired_iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1]))
    assert [float(value) for value in far] == [0.0, -0.5]


def test_classification_losses_by_element() -> None:
    logits, quality = scores(6, 5), torch.rand(6, 5, dtype=torch.float64)
    positive = torch.arange(30).view(6, 5) % 4 == 0
    found = [kind(logits, quality, positive) for kind in (focal, varifocal, matchability)]
    for x, q, yes, plain, vari, match in zip(*(t.flatten() for t in (logits, quality, positive, *found)), strict=True):
        p = x.sigmoid()
        if yes:
            assert plain == pytest.approx(float(-0.25 * (1 - p) ** 2 * p.log()))
            assert vari == pytest.approx(float(-q * (q * p.log() + (1 - q) * (1 - p).log())))
            assert match == pytest.approx(float(-(q**1.5) * p.log() - (1 - q**1.5) * (1 - p).log()))
        else:
            assert plain == pytest.approx(float(-0.75 * p**2 * (1 - p).log()))
            assert vari == pytest.approx(float(-0.75 * p**2 * (1 - p).log()))
            assert match == pytest.approx(float(-(p**1.5) * (1 - p).log()))


def naive(criterion: DetectionLoss, logits: Tensor, found: Tensor, true: Objects) -> list[float]:
    """Classification, L1 and GIoU of one layer: best of all permutations, image by image."""
    sums, number = [0.0, 0.0, 0.0], max(1, int(true.mask.sum()))
    for x, predicted, box, label, mask in zip(logits, found, *true, strict=True):
        box, label = box[mask], label[mask]
        p = x.sigmoid()[:, label]
        cost = 2 * (-0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log())
        cost = cost + 5 * torch.cdist(predicted, box, p=1)
        giou = paired_iou(cxcywh_to_xyxy(predicted)[:, None], cxcywh_to_xyxy(box))[1]
        cost = cost - 2 * giou
        order = min(
            itertools.permutations(range(len(x)), len(box)), key=lambda order: sum(cost[order, range(len(box))])
        )
        positive, quality = torch.zeros_like(x).bool(), torch.zeros_like(x)
        for n, q in enumerate(order):
            positive[q, label[n]] = True
            quality[q, label[n]] = paired_iou(cxcywh_to_xyxy(predicted[q]), cxcywh_to_xyxy(box[n]))[0]
            sums[1] += 5 * float((predicted[q] - box[n]).abs().sum())
            sums[2] += 2 * float(1 - giou[q, n])
        kind = CLASSIFICATION[criterion.classification]
        sums[0] += criterion.weights[0] * float(kind(x, quality, positive).sum())
    return [value / number for value in sums]


@pytest.mark.parametrize("kind", CLASSIFICATION)
def test_loss_equals_a_naive_loop(kind: str) -> None:
    criterion, true = DetectionLoss(classification=kind, aux_weight=0.5), truth()
    layers = QuerySet(scores(2, 3, 6, 5), boxes(2, 3, 6))
    parts = criterion(DetectionOutput(layers.logits[-1], layers.boxes_cxcywh[-1], layers), *true)
    first, last = (naive(criterion, *layer, true) for layer in zip(*layers[:2], strict=True))
    assert [float(parts[name]) for name in ("classification", "l1", "giou")] == pytest.approx(last)
    assert float(parts["auxiliary"]) == pytest.approx(0.5 * sum(first))
    alone = criterion(DetectionOutput(layers.logits[-1], layers.boxes_cxcywh[-1]), *true)
    assert {name: float(alone[name]) for name in alone} == {name: float(parts[name]) for name in alone}


def test_copies_match_each_object_several_times() -> None:
    criterion, true = DetectionLoss(), truth()
    queries = QuerySet(scores(2, 3, 9, 5), boxes(2, 3, 9))
    pairs = criterion.match(queries, true, 3)
    for layer in range(2):
        for image in range(3):
            mine = (pairs.layer == layer) & (pairs.image == image)
            assert pairs.object[mine].bincount(minlength=4).tolist() == [3 * int(there) for there in true.mask[image]]
            assert len(pairs.query[mine].unique()) == mine.sum()
    few = criterion.match(QuerySet(scores(1, 3, 4, 5), boxes(1, 3, 4)), true, 3)  # fewer queries than copies
    assert few.image.tolist() == [1] * 3 + [2] * 4


def test_queries_that_take_no_part_are_not_matched_and_learn_nothing() -> None:
    criterion, true = DetectionLoss(), truth()
    logits, found = scores(1, 3, 6, 5).requires_grad_(), boxes(1, 3, 6).requires_grad_()
    mask = torch.arange(6) % 2 == 0
    proposals = QuerySet(logits, found, mask.expand(3, 6))
    output = DetectionOutput(scores(3, 6, 5), boxes(3, 6), proposals=proposals)
    part = criterion(output, *true)["proposals"]
    part.backward()
    assert logits.grad is not None
    assert found.grad is not None
    assert not logits.grad[:, :, ~mask].any()
    assert not found.grad[:, :, ~mask].any()
    kept = QuerySet(logits[:, :, mask], found[:, :, mask])
    assert float(criterion(output._replace(proposals=kept), *true)["proposals"]) == pytest.approx(float(part))


def test_denoising_needs_no_matching() -> None:
    """Queries of known objects: a loop; padding is left out."""
    criterion, true = DetectionLoss(), truth()
    objects = torch.tensor([[-1, -1], [0, -1], [1, 0]])
    mask = torch.tensor([[False, False], [True, True], [True, True]])
    logits, found = scores(2, 3, 2, 5), boxes(2, 3, 2)
    output = DetectionOutput(scores(3, 6, 5), boxes(3, 6), denoised=Denoised(logits, found, objects, mask))
    total = 0.0
    for layer, image, query in itertools.product(range(2), (1, 2), range(2)):
        n = int(objects[image, query])
        positive, quality = torch.zeros(5).bool(), torch.zeros(5, dtype=torch.float64)
        if n >= 0:
            mine, theirs = found[layer, image, query], true.boxes_cxcywh[image, n]
            iou, giou = paired_iou(cxcywh_to_xyxy(mine), cxcywh_to_xyxy(theirs))
            positive[true.labels[image, n]], quality[true.labels[image, n]] = True, iou
            total += float(5 * (mine - theirs).abs().sum() + 2 * (1 - giou))
        total += 2 * float(matchability(logits[layer, image, query], quality, positive).sum())
    assert float(criterion(output, *true)["denoising"]) == pytest.approx(total / 3)


def test_images_without_boxes_have_a_finite_loss_with_gradients() -> None:
    true = truth()
    empty = true._replace(mask=torch.zeros_like(true.mask))
    logits = scores(3, 6, 5).requires_grad_()
    parts = DetectionLoss()(DetectionOutput(logits, boxes(3, 6)), *empty)
    assert parts["l1"] == parts["giou"] == 0
    parts["classification"].backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_padding_of_boxes_has_no_effect() -> None:
    criterion, true = DetectionLoss(), truth()
    output = DetectionOutput(scores(3, 6, 5), boxes(3, 6))
    more = Objects(
        *(torch.cat([part, part[:, :2]], 1) for part in true[:2]), torch.cat([true.mask, true.mask[:, :2] & False], 1)
    )
    few, many = criterion(output, *true), criterion(output, *more)
    assert all(float(few[name]) == pytest.approx(float(many[name])) for name in few)


@pytest.mark.parametrize("kind", CLASSIFICATION)
def test_gradients(kind: str) -> None:
    """Of boxes in every loss, and of logits; the weights of the other two losses are constants by definition."""
    criterion, true = DetectionLoss(classification=kind), truth()
    logits, found = scores(3, 6, 5), boxes(3, 6).requires_grad_()

    def boxes_loss(found: Tensor) -> Any:
        parts = criterion(DetectionOutput(logits, found), *true)
        return parts["l1"] + parts["giou"]

    assert torch.autograd.gradcheck(boxes_loss, (found,))
    if kind == "focal":
        free = logits.clone().requires_grad_()
        output = DetectionOutput(free, found.detach())
        assert torch.autograd.gradcheck(
            lambda x: criterion(output._replace(logits=x), *true)["classification"], (free,)
        )


def test_half_precision_is_computed_in_float32() -> None:
    true = truth()
    output = DetectionOutput(scores(3, 6, 5).bfloat16(), boxes(3, 6).bfloat16())
    parts = DetectionLoss()(output, true.boxes_cxcywh.float(), *true[1:])
    assert {part.dtype for part in parts.values()} == {torch.float32}


def test_wrong_options() -> None:
    refused(
        "unknown classification 'dice'; expected one of: focal, varifocal, matchability, cross_entropy",
        DetectionLoss,
        classification="dice",
    )
    refused("expected weights from 0, found -0.1", DetectionLoss, no_object_weight=-0.1)
    independent, competing = (
        "expected focal or varifocal or matchability for this network",
        "expected cross_entropy for this network",
    )
    refused(f"classification: {independent}, found 'cross", DetectionLoss(classification="cross_entropy").kind, False)
    refused(f"classification: {competing}, found 'focal'", DetectionLoss(classification="focal").kind, True)
    refused("expected weights from 0, found -1", DetectionLoss, giou_cost=-1.0)
    refused("copies: expected at least 1, found 0", DetectionLoss, copies=0)
