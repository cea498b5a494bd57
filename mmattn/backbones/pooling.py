"""The output of encoders, and pooling of a sequence to one vector."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..feedforward import ACTIVATIONS


class Encoded(NamedTuple):
    """The output of an encoder."""

    states: Tensor  # (B, L, E), of the last layer, after the last norm; values at padding are undefined
    pooled: Tensor  # (B, E), one vector per sequence


class Pooler(nn.Module):
    """``f(W x)`` of one vector per sample, as in BERT for the first token (Devlin et al. 2019, section 3.1).

    Args:
        embed_dim: E.
        out_dim: Size of the result; None = E.
        activation: f, a name in ``mmattn.feedforward.ACTIVATIONS``.

    Raises:
        ValueError: An unknown activation.
    """

    def __init__(self, embed_dim: int, out_dim: int | None = None, *, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; expected one of: {', '.join(ACTIVATIONS)}")
        self.dense = nn.Linear(embed_dim, embed_dim if out_dim is None else out_dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) to (B, out_dim)."""
        return ACTIVATIONS[self.activation](self.dense(x))


def mean_pooling(states: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Returns the mean over real tokens, zeros if there are none.

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
    """Returns the mean over real tokens, normalized to length 1, so that dot products are cosine similarities.

    Reimers & Gurevych 2019, section 3 (mean pooling), as in sentence-transformers' MiniLM.

    Args:
        states: (B, L, E).
        key_mask: (B, L) bool, True = a real token.

    Returns:
        (B, E).
    """
    return nn.functional.normalize(mean_pooling(states, key_mask), dim=-1)
