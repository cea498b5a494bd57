"""Losses of segmentation. Void pixels (255) are ignored.

Each loss takes logits (B, K, H, W), labels (B, H, W) long, weights of the classes (K,) or None, and label_smoothing,
the probability mass that is distributed evenly over the classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmattn.data.image.masks import VOID

_pixelwise = functools.partial(F.cross_entropy, ignore_index=VOID)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, ``-sum w_y log p_y / sum w_y`` over the labeled pixels; zero if there are none."""
    total = _pixelwise(logits, labels, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / _mass(labels, weights).clamp_min(1e-9)


def focal(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, gamma: float = 2.0
) -> Tensor:
    """Focal loss, ``-sum w_y (1 - p_y)^gamma log p_y / sum w_y`` (Lin et al. 2017, section 3).

    Well-classified pixels have a small weight; gamma determines how fast it falls. The class weights are the paper's
    alpha. Label smoothing applies to the logarithm.
    """
    plain = _pixelwise(logits, labels, reduction="none")  # (B, H, W), zero where void
    loss = _pixelwise(logits, labels, weights, label_smoothing=label_smoothing, reduction="none")
    # 1 - p = -expm1(log p), exact where p is near one.
    return ((-torch.expm1(-plain)).pow(gamma) * loss).sum() / _mass(labels, weights).clamp_min(1e-9)


def dice(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, eps: float = 1.0
) -> Tensor:
    """Dice loss, ``1 - mean_k (2 sum p_k y_k + eps) / (sum p_k + sum y_k + eps)`` over the batch's labeled pixels.

    Milletari et al. 2016, section 3, without the squares. The mean is weighted, over the classes that occur in the
    batch; eps, in pixels, stabilizes classes of few pixels.
    """
    K, real = logits.shape[1], labels != VOID  # (B, H, W)
    p = logits.float().softmax(1) * real[:, None]  # (B, K, H, W), zero where void
    predicted, safe = p.sum((0, 2, 3)), labels.clamp(max=K - 1)  # (K,), (B, H, W)
    true = torch.bincount(labels[real], minlength=K).to(p)  # (K,)
    hits = torch.zeros_like(predicted).index_add(0, safe.flatten(), p.gather(1, safe[:, None]).flatten())  # (K,)
    keep, spread = 1 - label_smoothing, label_smoothing / K
    there = (true > 0).to(p)
    hits, true = keep * hits + spread * predicted, keep * true + spread * true.sum()
    score = (2 * hits + eps) / (predicted + true + eps)  # (K,)
    share = there if weights is None else there * weights
    return ((1 - score) * share).sum() / share.sum().clamp_min(1e-9)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal}


def segmentation_loss(
    parts: Mapping[str, float],
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The losses by name, multiplied by their weights.

    Args:
        parts: Weights of the losses, by name in LOSSES.
        logits: (B, K, H, W).
        labels: (B, h, w) integers; labels of higher resolution are sampled at the centers of the logits.
        weights: Weights of the classes (K,).
        label_smoothing: Probability mass that is distributed evenly over the classes.
    """
    if labels.shape[1:] != logits.shape[2:]:
        labels = F.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
    labels, logits = labels.long(), logits.float()
    return {name: share * LOSSES[name](logits, labels, weights, label_smoothing) for name, share in parts.items()}


def class_weights(kind: str, counts: Sequence[int]) -> Tensor | None:
    """Weights of the classes from their numbers of pixels; their mean is one.

    "median": ``median(f) / f`` (Eigen and Fergus 2015, section 4, over all pixels); "sqrt": its square root, milder;
    "log": ``1 / ln(1.02 + f)`` (Paszke et al. 2016, section 4); "none". f is the share of the labeled pixels; a class
    without pixels has the largest weight of the others.

    Raises:
        ValueError: The kind is unknown.

    >>> class_weights("sqrt", [80, 20])
    tensor([0.6667, 1.3333])
    """
    if kind == "none":
        return None
    total = torch.tensor(counts, dtype=torch.float64)
    there = total > 0
    share = total / total.sum()
    if kind in ("median", "sqrt"):
        weights = share[there].median() / share
        weights = weights.sqrt() if kind == "sqrt" else weights
    elif kind == "log":
        weights = 1 / (1.02 + share).log()
    else:
        raise ValueError(f"unknown class_weights {kind!r}; expected one of: none, median, sqrt, log")
    weights = weights.masked_fill(~there, 0)
    weights = torch.where(there, weights, weights.max())
    return (weights / weights.mean()).float()


def _mass(labels: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of the weights of the labeled pixels."""
    real = labels != VOID
    return real.sum() if weights is None else weights[labels[real]].sum()
