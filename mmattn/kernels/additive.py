"""Scores by a small network instead of a product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import add_bias, allowed_keys, masked_softmax, repeat_heads
from ..masks import Mask
from .base import ExplicitKernel


class Additive(ExplicitKernel):
    """``softmax_j(u^T tanh(q_i + k_j + b))`` per head (Bahdanau et al. 2015, section A.1.2).

    The projections before the heads are the paper's two matrices. Memory grows with L S d.

    Args:
        dropout: of attention weights while training.
    """

    kind = "additive"

    def __init__(self, num_heads: int, head_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim)
        self.dropout = dropout
        self.score = nn.Parameter(torch.randn(num_heads, head_dim) * head_dim**-0.5)  # u
        self.shift = nn.Parameter(torch.zeros(num_heads, head_dim))  # b

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        queries = q + self.shift[:, None, :]  # (B, h, L, d)
        hidden = (queries[:, :, :, None, :] + repeat_heads(k, q.shape[1])[:, :, None, :, :]).tanh()  # (B, h, L, S, d)
        scores = (hidden @ self.score[:, None, :, None]).squeeze(-1)  # (B, h, L, S)
        return masked_softmax(add_bias(scores, mask), allowed_keys(q, k, mask))
