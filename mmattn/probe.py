"""Where `capture` listens to maps that no kernel makes."""

from __future__ import annotations

from torch import Tensor, nn


class Probe(nn.Module):
    """Passes a map on as it is: a gate, or the weights of a module that attends without a kernel.

    ``mmattn.explain.capture`` records what goes through, of whatever shape, under the probe's own path; gradients flow
    through what it records, and nothing is computed twice. It has no parameters.

    >>> Probe()(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def forward(self, weights: Tensor) -> Tensor:
        """weights: (...). Returns them."""
        return weights
