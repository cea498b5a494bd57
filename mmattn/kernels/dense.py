"""Softmax over all keys: the fused path."""

from __future__ import annotations

from torch import Tensor

from ..functional import allowed_keys, attend, dot_scores, masked_softmax
from ..masks import Mask
from .base import Kernel, KVCache


class Dense(Kernel):
    """``softmax(q k^T / sqrt(d) + bias) v`` (Vaswani et al. 2017, section 3.2.1).

    Args:
        dropout: Dropout of attention weights in training; above 0 disables the fused path, at about half the speed.
    """

    kind = "dense"
    supports = frozenset({"self", "causal", "cross", "bias", "cache"})

    def __init__(self, num_heads: int, head_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim)
        self.dropout = dropout

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        if cache is not None:
            k, v = cache.append(k, v)
        return attend(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, mask))
