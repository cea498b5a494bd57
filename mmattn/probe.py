"""A hook point at which `capture` records maps that are not made by a kernel."""

from __future__ import annotations

from torch import Tensor, nn


class Probe(nn.Module):
    """Identity for a map: a gate, or the weights of a module that attends without a kernel.

    ``mmattn.explain.capture`` records its input, of any shape, under the probe's path; gradients flow through the
    recorded tensor, and nothing is computed twice. It has no parameters.

    >>> Probe()(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def forward(self, weights: Tensor) -> Tensor:
        """weights: (...). Returns the weights."""
        return weights
