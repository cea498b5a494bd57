"""What an encoder returns, and one vector for a whole sequence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..feedforward import ACTIVATIONS


class Encoded(NamedTuple):
    """What an encoder returns."""

    states: Tensor  # (B, L, E), of the last layer, after the last norm; values at padding are undefined
    pooled: Tensor  # (B, E), one vector for the whole


class Pooler(nn.Module):
    """``f(W x)`` of one vector a sample, as BERT has it over its first token (Devlin et al. 2019, section 3.1).

    Args:
        embed_dim: E.
        out_dim: Of the result, E where None.
        activation: f, a name in ``mmattn.feedforward.ACTIVATIONS``.

    Raises:
        ValueError: An unknown activation.
    """

    def __init__(self, embed_dim: int, out_dim: int | None = None, *, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; there are: {', '.join(ACTIVATIONS)}")
        self.dense = nn.Linear(embed_dim, embed_dim if out_dim is None else out_dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) to (B, out_dim)."""
        return ACTIVATIONS[self.activation](self.dense(x))


def mean_pooling(states: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """The mean over real tokens; zeros where there are none.

    Args:
        states: (B, L, E).
        key_mask: (B, L) bool, True = a real token.

    Returns:
        (B, E).

    >>> import torch
    >>> mean_pooling(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).shape
    torch.Size([2, 8])
    """
    if key_mask is None:
        return states.mean(1)
    counts = key_mask.sum(1, keepdim=True).clamp_min(1)  # (B, 1)
    return states.masked_fill(~key_mask.unsqueeze(-1), 0.0).sum(1) / counts


def sentence_embedding(states: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """The mean over real tokens, scaled to length 1, so that a dot product is the cosine.

    Reimers & Gurevych 2019, section 3 (mean pooling); what sentence-transformers' MiniLM expects.

    Args:
        states: (B, L, E).
        key_mask: (B, L) bool, True = a real token.

    Returns:
        (B, E).
    """
    return nn.functional.normalize(mean_pooling(states, key_mask), dim=-1)
