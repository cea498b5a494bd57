"""Integrated gradients of a score with respect to embeddings (Sundararajan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def integrated_gradients(
    embedding: nn.Module, score: Callable[[], Tensor], steps: int = 8, start: Tensor | None = None
) -> Tensor:
    r"""Signed relevance of each token, \((x_i - z_i) \cdot \int_0^1 \nabla_{x_i} s(z + \alpha (x - z)) d\alpha\).

    Sundararajan et al. 2017, section 3, for every encoder, with attention or without.

    Args:
        embedding: The module whose output x (..., E) is replaced.
        score: Runs the model and returns one number for each sample, (N,).
        steps: Number of points on the way.
        start: z (..., E), the embeddings of a text that says nothing; None: zeros.

    Returns:
        (...), the shape of the tokens.
    """
    total: Tensor | None = None
    for step in range(steps):
        with torch.enable_grad(), _between(embedding, start, (step + 0.5) / steps) as found:
            (gradient,) = torch.autograd.grad(score().sum(), found[1:2])
        part = (found[0] * gradient).sum(-1) / steps
        total = part if total is None else total + part
    assert total is not None
    return total


@contextmanager
def _between(embedding: nn.Module, start: Tensor | None, share: float) -> Iterator[list[Tensor]]:
    """Replaces an embedding's output x by ``z + share (x - z)``; yields a list that it fills with x - z and that."""
    found: list[Tensor] = []

    def replace(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        x = output.detach()
        z = torch.zeros_like(x) if start is None else start
        found.extend([x - z, (z + share * (x - z)).requires_grad_()])
        return found[1]

    hook = embedding.register_forward_hook(replace)
    try:
        yield found
    finally:
        hook.remove()
