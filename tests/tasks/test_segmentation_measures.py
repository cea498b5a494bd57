"""Segmentation metrics and losses against their definitions, and tiles."""

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.data.image.tiles import starts
from mmattn.tasks.segmentation.losses import class_weights, cross_entropy, dice, focal, segmentation_loss
from mmattn.tasks.segmentation.metrics import SegmentationMetric
from mmattn.tasks.segmentation.tiles import bands, segment
from tests.conftest import refused

VOID = 255


def by_hand(pairs: list[tuple[int, int]], names: list[str]) -> dict[str, float]:
    """The metrics from (truth, prediction) per pixel: a confusion matrix in plain Python."""
    count, K = Counter(pair for pair in pairs if pair[0] != VOID), range(len(names))
    hits = [count[k, k] for k in K]
    true, predicted = [sum(count[k, i] for i in K) for k in K], [sum(count[i, k] for i in K) for k in K]
    ious = {f"iou/{names[k]}": hits[k] / (true[k] + predicted[k] - hits[k]) for k in K if true[k] + predicted[k]}
    recalls = [hits[k] / true[k] for k in K if true[k]]
    return ious | {
        "miou": sum(ious.values()) / max(len(ious), 1),
        "pixel_accuracy": sum(hits) / max(sum(true), 1),
        "mean_accuracy": sum(recalls) / max(len(recalls), 1),
    }


def test_miou_equals_naive_confusion_matrix() -> None:
    """One to nine classes, some absent from truth, prediction or both; no, some or only void pixels; batches."""
    draw = random.Random(0)
    seen = {"absent": 0, "only predicted": 0, "all void": 0}
    for _ in range(1000):
        K = draw.randint(1, 9)
        names = [f"c{k}" for k in range(K)]
        true_classes, predicted_classes = (draw.sample(range(K), draw.randint(1, K)) for _ in range(2))
        void = draw.choice([0.0, 0.0, 0.2, 0.9, 1.0])
        metric, pairs = SegmentationMetric(names), []
        for _ in range(draw.randint(1, 3)):
            size = (draw.randint(1, 3), draw.randint(1, 5), draw.randint(1, 5))
            pixels = math.prod(size)
            true = [VOID if draw.random() < void else draw.choice(true_classes) for _ in range(pixels)]
            predicted = [t if t != VOID and draw.random() < 0.5 else draw.choice(predicted_classes) for t in true]
            pairs += list(zip(true, predicted, strict=True))
            metric.update(*(torch.tensor(x, dtype=torch.uint8).view(size) for x in (predicted, true)))
        expected = by_hand(pairs, names)
        found = {name: float(value) for name, value in metric.compute().items()}
        assert found == pytest.approx(expected, abs=1e-12)
        assert found.keys() == expected.keys()
        seen["absent"] += any(f"iou/{name}" not in expected for name in names)
        seen["only predicted"] += any(value == 0 for name, value in expected.items() if name.startswith("iou/"))
        seen["all void"] += all(t == VOID for t, _ in pairs)
    assert min(seen.values()) > 50


def test_miou_equals_torchmetrics_jaccard() -> None:
    # An image with a class and one without: the mean of their IoUs would be 0.75.
    metric = SegmentationMetric(["a", "b"])
    metric.update(torch.tensor([[0, 0]]), torch.tensor([[0, 0]]))
    metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]]))
    found = [float(metric.compute()[name]) for name in ("iou/a", "iou/b", "miou")]
    assert found == pytest.approx([3 / 4, 2 / 3, (3 / 4 + 2 / 3) / 2])
    torchmetrics = pytest.importorskip("torchmetrics")
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=6, ignore_index=VOID)
    ours = SegmentationMetric([str(k) for k in range(6)])
    for n in range(20):
        generator = torch.Generator().manual_seed(n)
        true = torch.randint(5, (2, 8, 9), generator=generator)  # class 5 does not occur in the truth
        predicted = torch.randint(6 if n % 2 else 5, (2, 8, 9), generator=generator)
        true[torch.rand(2, 8, 9, generator=generator) < 0.2] = VOID
        theirs.update(predicted, true)
        ours.update(predicted, true)
    torch.testing.assert_close(ours.compute()["miou"].float(), theirs.compute())


# Losses ---------------------------------------------------------------------------------------------------------------


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 5, 6), generator=generator)  # class 3 is absent
    labels[0, :2] = VOID
    return logits, labels, torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)


def pixels_of(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, int]]:
    """(log-probabilities (K,), label) of the labeled pixels."""
    log_p = logits.log_softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return [(row, int(y)) for row, y in zip(log_p, labels.reshape(-1), strict=True) if y != VOID]


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_match_definition(weighted: bool) -> None:
    logits, labels, given = case()
    weights = given if weighted else None
    w = given.tolist() if weighted else [1.0] * 4
    pixels = pixels_of(logits, labels)
    mass = sum(w[y] for _, y in pixels)
    expected = sum(-w[y] * float(row[y]) for row, y in pixels) / mass
    assert float(cross_entropy(logits, labels, weights)) == pytest.approx(expected, abs=1e-10)
    expected = sum(-w[y] * (1 - math.exp(float(row[y]))) ** 2 * float(row[y]) for row, y in pixels) / mass
    assert float(focal(logits, labels, weights)) == pytest.approx(expected, abs=1e-10)
    parts = []
    for k in range(3):
        p, true = [math.exp(float(row[k])) for row, _ in pixels], [y == k for _, y in pixels]
        parts.append(1 - (2 * sum(itertools.compress(p, true)) + 1) / (sum(p) + sum(true) + 1))
    expected = sum(w[k] * part for k, part in enumerate(parts)) / sum(w[:3])
    assert float(dice(logits, labels, weights)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, dice, focal])
def test_void_and_correct_pixels_have_zero_loss(loss: Any) -> None:
    logits, labels, weights = case()
    changed = logits + torch.randn_like(logits) * (labels == VOID)[:, None]
    assert float(loss(logits, labels, weights)) == pytest.approx(float(loss(changed, labels, weights)), abs=1e-6)
    for given in (labels, torch.full_like(labels, VOID)):
        scores = logits.clone().requires_grad_()
        value = loss(scores, given, weights, 0.1)
        value.backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        assert (scores.grad.permute(0, 2, 3, 1)[given == VOID] == 0).all()
    assert float(value.detach()) == float(loss(logits, given)) == 0, "without a labeled pixel"
    labels = torch.randint(3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    assert float(loss(60.0 * F.one_hot(labels, 3).permute(0, 3, 1, 2), labels)) < 1e-6


def test_labels_are_resized_to_coarse_scores() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]], dtype=torch.uint8)
    logits = 60.0 * F.one_hot(torch.tensor([[[0, 1], [2, 0]]]), 3).permute(0, 3, 1, 2)
    parts = segmentation_loss({"cross_entropy": 2.0, "dice": 1.0}, logits, labels)
    assert set(parts) == {"cross_entropy", "dice"}
    assert float(sum(parts.values())) < 1e-6
    unsure = torch.randn_like(logits)
    single, double = (segmentation_loss({"dice": weight}, unsure, labels)["dice"] for weight in (1.0, 2.0))
    torch.testing.assert_close(double, 2 * single)


def test_class_weights_match_definition() -> None:
    assert class_weights("none", [1, 2]) is None
    raw = torch.tensor([4.0, 1.0, 0.8])
    torch.testing.assert_close(class_weights("median", [10, 40, 50]), raw / raw.mean())
    assert (absent := class_weights("log", [0, 30, 70])) is not None
    assert absent[0] == absent.max() < torch.inf
    refused("unknown class_weights 'inverse'", class_weights, "inverse", [1])


# Tiles ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 70), (32, 90), (20, 20), (33, 32)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_of_a_local_model_equal_full_image(size: tuple[int, int], overlap: float) -> None:
    """For a model that scores each pixel independently, blended tiles equal a single pass."""
    pixels, mix = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, *size), (5, 3)))
    run = lambda x: torch.einsum("kc,bchw->bkhw", mix, x)  # noqa: E731
    torch.testing.assert_close(segment(run, pixels, 32, overlap), run(pixels), atol=1e-10, rtol=0)
    assert all(band.shape[2] <= 32 for band in bands(run, pixels, 32, overlap))


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(100, 40, 0.25), (101, 100, 0.5), (64, 64, 0.25), (999, 37, 0.9)]
)
def test_tiles_cover_and_overlap(size: int, tile: int, overlap: float) -> None:
    found = starts(size, tile, overlap)
    assert found[0] == 0 <= found[-1] + tile - size
    assert all(b - a <= max(1, math.ceil(tile * (1 - overlap))) for a, b in itertools.pairwise(found))
    assert all(0 <= start <= max(0, size - tile) for start in found)


def test_flips_are_inverted() -> None:
    pixels, right = torch.randn(1, 2, 6, 8), torch.arange(8.0)
    run = lambda x: x * right  # noqa: E731
    torch.testing.assert_close(segment(run, pixels, flip=True), pixels * (right + right.flip(0)) / 2)
