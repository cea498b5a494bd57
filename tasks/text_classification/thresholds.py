"""The choice of each label's threshold in multi-label classification."""

from __future__ import annotations

import torch
from torch import Tensor


def best_thresholds(probabilities: Tensor, true: Tensor) -> Tensor:
    """The probability for each label from which predicting it has the greatest F1; 0.5 for a label that never occurs.

    It lies halfway between two samples' probabilities; of equal ones the greatest is taken.

    Args:
        probabilities: (n, K), in 0..1.
        true: (n, K) bool.

    Returns:
        (K,).

    >>> best_thresholds(torch.tensor([[0.2], [0.4], [0.6]]), torch.tensor([[False], [True], [True]]))
    tensor([0.3000])
    """
    ordered, order = probabilities.sort(dim=0, descending=True, stable=True)  # (n, K)
    hits = true.gather(0, order).cumsum(0)  # (n, K): of the k + 1 most probable samples
    count = torch.arange(1, len(true) + 1, device=true.device)[:, None]
    f1 = 2 * hits / (count + true.sum(0)).clamp_min(1)  # (n, K)
    below = torch.cat([ordered[1:], torch.zeros_like(ordered[:1])])  # the next sample's
    f1 = f1.masked_fill(ordered == below, -1.0)  # no threshold lies between equal ones
    best = f1.argmax(0, keepdim=True)
    edges = (ordered.gather(0, best) + below.gather(0, best)).squeeze(0) / 2
    return torch.where(true.any(0), edges, torch.full_like(edges, 0.5))
