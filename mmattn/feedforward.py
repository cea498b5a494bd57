"""The feed-forward network of a transformer layer, and the activations by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``, the approximate GELU of CLIP (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """``W2 dropout(f(W1 x))``, position-wise (Vaswani et al. 2017, section 3.3; GELU as in BERT).

    Args:
        embed_dim: E.
        ffn_dim: Size of the hidden layer; None = 4 E.
        dropout: Dropout probability of the hidden layer.
        activation: f, a name in ACTIVATIONS.
        gated: ``W2 dropout(f(W1 x) * V x)`` (Shazeer 2020, section 2).
        bias: Whether the maps have biases.

    Raises:
        ValueError: An unknown activation.

    >>> FeedForward(8, 32, activation="gelu_tanh")(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int | None = None,
        *,
        dropout: float = 0.0,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; expected one of: {', '.join(ACTIVATIONS)}")
        ffn_dim = 4 * embed_dim if ffn_dim is None else ffn_dim
        self.fc1 = nn.Linear(embed_dim, ffn_dim, bias=bias)
        self.gate = nn.Linear(embed_dim, ffn_dim, bias=bias) if gated else None
        self.fc2 = nn.Linear(ffn_dim, embed_dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to (B, L, E)."""
        hidden = ACTIVATIONS[self.activation](self.fc1(x))  # (B, L, F)
        if self.gate is not None:
            hidden = hidden * self.gate(x)
        return self.fc2(self.dropout(hidden))
