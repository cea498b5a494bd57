"""Softmax over cosine similarities: scores do not grow with the norms of vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import allowed_keys, attend, dot_scores, masked_softmax
from ..masks import Mask
from .base import Kernel, KVCache


class Cosine(Kernel):
    """``softmax(s cos(q, k) + bias) v``, s learned for each head (Liu et al. 2022, section 3.3; Henry et al. 2020).

    Args:
        initial_scale: Initial value of s; 10 in the second paper.
        max_scale: Upper bound of s; 100 in the second paper.
        dropout: Dropout of attention weights in training; above 0 disables the fused path, at about half the speed.

    Raises:
        ValueError: The scales are not 0 < initial_scale <= max_scale.
    """

    kind = "cosine"
    supports = frozenset({"self", "causal", "cross", "bias", "cache"})

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        initial_scale: float = 10.0,
        max_scale: float = 100.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_heads, head_dim)
        if not 0 < initial_scale <= max_scale:
            raise ValueError(
                f"scales must be 0 < initial_scale <= max_scale, found initial_scale={initial_scale} and "
                f"max_scale={max_scale}"
            )
        self.max_scale, self.dropout = max_scale, dropout
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(initial_scale)))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        q, k = self._scaled(q), _unit(k)
        if cache is not None:
            k, v = cache.append(k, v)  # cached with norm 1, so that no step normalizes them again
        return attend(q, k, v, mask, scale=1.0, dropout_p=self.dropout if self.training else 0.0)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        scores = dot_scores(self._scaled(q), _unit(k), mask, scale=1.0)
        return masked_softmax(scores, allowed_keys(q, k, mask))

    def _scaled(self, q: Tensor) -> Tensor:
        scale = self.log_scale.clamp_max(math.log(self.max_scale)).exp()  # (h,)
        return _unit(q) * scale.to(q.dtype)[:, None, None]


def _unit(x: Tensor) -> Tensor:
    """Normalizes x; for zero vectors the floor must not underflow in x's type, nor its reciprocal overflow."""
    return F.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny ** 0.5)).to(x.dtype)
