"""Integrated gradients of a score with respect to embeddings (Sundararajan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def integrated_gradients(embedding: nn.Module, score: Callable[[], Tensor], steps: int = 8) -> Tensor:
    r"""Signed relevance of each token, \(x_i \cdot \int_0^1 \nabla_{x_i} s(\alpha x) d\alpha\), from zeros.

    Sundararajan et al. 2017, section 3, for every encoder, with attention or without.

    Args:
        embedding: The module whose output x (..., E) is scaled.
        score: Runs the model and returns one number for each sample, (N,).
        steps: Number of points on the way.

    Returns:
        (...), the shape of the tokens.
    """
    total: Tensor | None = None
    for step in range(steps):
        with torch.enable_grad(), _scaled(embedding, (step + 0.5) / steps) as found:
            (gradient,) = torch.autograd.grad(score().sum(), found[1:2])
        part = (found[0] * gradient).sum(-1) / steps
        total = part if total is None else total + part
    assert total is not None
    return total


@contextmanager
def _scaled(embedding: nn.Module, scale: float) -> Iterator[list[Tensor]]:
    """Scales an embedding's output; yields a list that it fills with the output, and with the scaled one."""
    found: list[Tensor] = []

    def replace(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        found.extend([output.detach(), (scale * output.detach()).requires_grad_()])
        return found[1]

    hook = embedding.register_forward_hook(replace)
    try:
        yield found
    finally:
        hook.remove()
