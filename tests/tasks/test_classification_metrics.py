"""Top-k, calibration, average precision and F1 against their definitions, on 1,000 random cases."""

import pytest
import torch
from torch import Tensor

from mmattn.tasks.common.labels.metrics import BINS, ClassificationMetric


def top_k(scores: Tensor, labels: Tensor, k: int) -> float:
    """The fraction of samples with fewer than k classes scored above their own."""
    own = scores.gather(1, labels[:, None])
    return float(((scores > own).sum(1) < k).double().mean())


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Sum over bins of n_b / n |accuracy_b - confidence_b| (Guo et al. 2017, equation 3)."""
    confidence, best = scores.max(1)
    total = 0.0
    for b in range(BINS):
        inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if inside.any():
            gap = (best == labels)[inside].double().mean() - confidence[inside].double().mean()
            total += float(inside.double().mean() * gap.abs())
    return total


def average_precision(scores: Tensor, truth: Tensor) -> float | None:
    """The mean, over the positive samples, of the precision at their rank."""
    if not truth.any():
        return None
    order = scores.argsort(descending=True)
    hits = truth[order].bool()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float(precision[hits].double().mean())


def f1(scores: Tensor, truth: Tensor) -> float | None:
    if not truth.any():
        return None
    found = scores > 0.5
    both = (found & truth.bool()).sum()
    return float(2 * both / (found.sum() + truth.sum()))


@pytest.mark.parametrize("part", range(10))
def test_single_label_metrics(part: int) -> None:
    generator = torch.Generator().manual_seed(part)
    for _ in range(100):
        K, number = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 12), (1, 40)))
        logits = 3 * torch.randn(number, K, generator=generator)
        labels = torch.randint(K, (number,), generator=generator)
        metric, targets = ClassificationMetric(K), torch.nn.functional.one_hot(labels, K).float()
        for rows in filter(len, torch.arange(number).split([number // 2, number - number // 2])):
            metric.update(logits[rows], targets[rows])
        values, scores = metric.compute(), logits.softmax(1)
        assert set(values) == ({"top1", "top5", "ece"} if K > 5 else {"top1", "ece"})
        assert values["top1"] == pytest.approx(top_k(scores, labels, 1), abs=1e-6)
        if K > 5:
            assert values["top5"] == pytest.approx(top_k(scores, labels, 5), abs=1e-6)
        assert values["ece"] == pytest.approx(calibration_error(scores, labels), abs=1e-5)
        pairs = labels * K + scores.argmax(1)
        assert torch.equal(metric.confusion, torch.bincount(pairs, minlength=K * K).view(K, K))
        metric.reset()
        metric.update(logits[:1], targets[:1])
        assert metric.compute()["top1"] in (0.0, 1.0)


@pytest.mark.filterwarnings("ignore:No positive samples found in target")
@pytest.mark.parametrize("part", range(10))
def test_multi_label_metrics(part: int) -> None:
    """Includes classes without samples, which are in neither mean."""
    generator, absent = torch.Generator().manual_seed(part), 0
    for _ in range(100):
        K, number = (int(torch.randint(2, high, (), generator=generator)) for high in (7, 40))
        logits = torch.randn(number, K, generator=generator)
        truth = (torch.rand(number, K, generator=generator) < 0.2).float()
        truth[0, 0] = 1  # without any positive sample the metric is undefined
        metric = ClassificationMetric(K, multi_label=True)
        for rows in (slice(number // 2), slice(number // 2, None)):
            metric.update(logits[rows], truth[rows])
        values, scores = metric.compute(), logits.sigmoid()
        for name, part_of in (("map", average_precision), ("f1_macro", f1)):
            found = [value for k in range(K) if (value := part_of(scores[:, k], truth[:, k])) is not None]
            assert values[name] == pytest.approx(sum(found) / len(found), abs=1e-5)
        absent += len(found) < K
        assert metric.confusion is None
    assert absent > 5
