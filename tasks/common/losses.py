"""Losses that are shared by tasks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy against soft scores, each row normalized to a distribution.

    Rows whose scores are all zero are excluded from the mean; if all rows are, the loss is zero.

    Args:
        logits: (B, V).
        targets: (B, V), non-negative scores, e.g. VQA's soft scores in 0..1.
        label_smoothing: Probability mass that is distributed evenly over the V classes.

    Returns:
        A scalar.
    """
    total = targets.sum(-1, keepdim=True)  # (B, 1)
    distribution = targets / total.clamp_min(1e-9)
    distribution = distribution * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    loss = -(distribution * F.log_softmax(logits.float(), dim=-1)).sum(-1)  # (B,)
    counted = (total.squeeze(-1) > 0).to(loss.dtype)
    return (loss * counted).sum() / counted.sum().clamp_min(1.0)
