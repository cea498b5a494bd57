"""Sigmoid attention: independent weights per key, whose sum can count matching keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import allowed_keys, dot_scores, masked_softmax
from ..masks import Mask
from .base import ExplicitKernel


class Sigmoid(ExplicitKernel):
    """``sigmoid(q k^T / sqrt(d) + b)`` in some heads, softmax in the others (Ramapuram et al. 2024, section 3).

    Args:
        num_sigmoid_heads: Number of sigmoid heads, the first ones; None = all.
        initial_bias: Initial value of the learned b of each sigmoid head; with minus the logarithm of the usual number
            of keys, weights sum to about one at initialization.
        dropout: Dropout of attention weights in training.

    Raises:
        ValueError: num_sigmoid_heads is not within 1..num_heads.
    """

    kind = "sigmoid"

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        num_sigmoid_heads: int | None = None,
        initial_bias: float = -4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_heads, head_dim)
        count = num_heads if num_sigmoid_heads is None else num_sigmoid_heads
        if not 1 <= count <= num_heads:
            raise ValueError(f"num_sigmoid_heads must be within 1..{num_heads} (the number of heads), found {count}")
        self.num_sigmoid_heads = count
        self.dropout = dropout
        self.bias = nn.Parameter(torch.full((count,), float(initial_bias)))

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        count = self.num_sigmoid_heads
        scores, allowed = dot_scores(q, k, mask), allowed_keys(q, k, mask)
        counting = (scores[:, :count] + self.bias[:, None, None]).sigmoid()  # (B, count, L, S)
        if allowed is None:
            others = scores[:, count:].softmax(-1)
        else:
            per_head = allowed.dim() == 4 and allowed.shape[1] > 1
            counting = counting.masked_fill(~(allowed[:, :count] if per_head else allowed), 0.0)
            others = masked_softmax(scores[:, count:], allowed[:, count:] if per_head else allowed)
        return torch.cat([counting, others], dim=1)
