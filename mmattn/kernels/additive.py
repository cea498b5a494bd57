"""Additive attention: scores by a small network instead of a product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional import add_bias, allowed_keys, masked_softmax, repeat_heads
from ..masks import Mask
from .base import ExplicitKernel

PIECE = 2**26  # numbers: larger hidden layers are computed in pieces, and recomputed for the gradient


class Additive(ExplicitKernel):
    """``softmax_j(u^T tanh(q_i + k_j + b))`` per head (Bahdanau et al. 2015, section A.1.2).

    The projections before the heads are the paper's two matrices. Time grows with L S d, memory with L S: a hidden
    layer of more than `PIECE` numbers is split along the queries.

    Args:
        dropout: Dropout of attention weights in training.
    """

    kind = "additive"

    def __init__(self, num_heads: int, head_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim)
        self.dropout = dropout
        self.score = nn.Parameter(torch.randn(num_heads, head_dim) * head_dim**-0.5)  # u
        self.shift = nn.Parameter(torch.zeros(num_heads, head_dim))  # b

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        queries, keys = q + self.shift[:, None, :], repeat_heads(k, q.shape[1])  # (B, h, L, d), (B, h, S, d)
        scores = self._scores(queries, keys)  # (B, h, L, S)
        return masked_softmax(add_bias(scores, mask), allowed_keys(q, k, mask))

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        L, width = queries.shape[2], keys.numel()  # width: numbers per query, over heads and samples
        if torch.compiler.is_exporting() or L * width <= PIECE:
            return self._piece(queries, keys)
        pieces = queries.split(max(1, PIECE // width), dim=2)
        made = [checkpoint(self._piece, p, keys, use_reentrant=False, preserve_rng_state=False) for p in pieces]
        return torch.cat(made, dim=2)

    def _piece(self, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = (queries[:, :, :, None, :] + keys[:, :, None, :, :]).tanh()  # (B, h, L, S, d)
        return (hidden @ self.score[:, None, :, None]).squeeze(-1)  # (B, h, L, S)
