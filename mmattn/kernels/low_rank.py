"""Softmax over a fixed number of summaries of the keys, linear in length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import allowed_keys, attend, dot_scores, masked_softmax, repeat_heads
from ..masks import Mask
from .base import Kernel

SHARES = ("none", "heads", "keys_values")


class LowRank(Kernel):
    """``softmax(q (E k)^T / sqrt(d)) F v`` with learned E and F (Wang et al. 2020, section 4).

    E and F (projected_length, S) make few summaries of the keys and values. A key's column is its position: shorter
    inputs use the first columns; padding is zeroed before the sums. As each summary mixes all positions, this kernel is
    never causal and supports neither a bias nor a mask over pairs.

    With ``rank`` r, the queries and keys of each head are also projected from d to r dimensions, which makes the rank
    of scores a separate option (Bhojanapalli et al. 2020, section 3), alone with ``projected_length=None``.

    Args:
        projected_length: Number of summaries; None = the keys themselves.
        rank: r; None = d.
        share: Sharing of E and F: "none"; "heads" = by all heads of this attention; "keys_values" = by all heads, and F
            is E.
        max_len: Maximum of S, the number of columns of E and F.

    Raises:
        ValueError: Sizes below 1, an unknown share, or neither projected_length nor rank.
    """

    kind = "low_rank"
    supports = frozenset({"self", "cross", "cache"})

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        projected_length: int | None = 64,
        rank: int | None = None,
        share: str = "heads",
        max_len: int = 1024,
    ) -> None:
        super().__init__(num_heads, head_dim)
        for name, size in (("projected_length", projected_length), ("rank", rank), ("max_len", max_len)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        if share not in SHARES:
            raise ValueError(f"share must be one of {', '.join(SHARES)}, found {share!r}")
        if projected_length is None and rank is None:
            raise ValueError("attention kind 'low_rank' needs projected_length, rank or both")
        self.projected_length, self.max_len = projected_length, max_len
        self.rank = head_dim if rank is None else rank
        self.key_length = self.value_length = self.query_rank = self.key_rank = None
        if projected_length is not None:
            shape = (num_heads if share == "none" else 1, projected_length, max_len)
            self.key_length = nn.Parameter(torch.randn(shape) * projected_length**-0.5)  # E
            if share == "keys_values":
                self.value_length = self.key_length
            else:
                self.value_length = nn.Parameter(torch.randn(shape) * projected_length**-0.5)  # F
        if rank is not None:
            self.query_rank = nn.Parameter(torch.randn(num_heads, head_dim, rank) * head_dim**-0.5)
            self.key_rank = nn.Parameter(torch.randn(num_heads, head_dim, rank) * head_dim**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: Any = None) -> Tensor:
        self.check(mask, cache)
        if self.value_length is not None:
            v = self._shorten(v, self.value_length, mask)
        q, k = self._compared(q, k, mask)
        return attend(q, k, repeat_heads(v, k.shape[1]), None if self.value_length is not None else mask)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        scores = dot_scores(*self._compared(q, k, mask))
        if self.value_length is None:
            return masked_softmax(scores, allowed_keys(q, k, mask))
        weights = scores.softmax(-1) @ self.value_length[:, :, : k.shape[2]]  # (B, h, L, S): the output is linear in v
        if mask is None or mask.key_mask is None:
            return weights
        return weights.masked_fill(~mask.key_mask[:, None, None, :], 0.0)

    def check(self, mask: Mask | None, cache: object = None) -> None:
        super().check(mask, cache)
        if cache is not None:
            raise ValueError("attention kind 'low_rank' decodes cross-attention only, without a state of its own")
        if self.projected_length is not None and mask is not None and mask.attn_mask is not None:
            raise ValueError(
                "attention kind 'low_rank' attends to summaries of all keys: it takes a key_mask, not an attn_mask"
            )

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> None:
        if not cross:
            raise ValueError("attention kind 'low_rank' decodes cross-attention only: its summaries mix all positions")

    def _compared(self, q: Tensor, k: Tensor, mask: Mask | None) -> tuple[Tensor, Tensor]:
        """Returns the factors of the scores: (B, h, L, r) and (B, h_kv|h, projected_length|S, r)."""
        if self.key_length is not None:
            k = self._shorten(k, self.key_length, mask)
        if self.query_rank is None or self.key_rank is None:
            return q, k
        return q @ self.query_rank, repeat_heads(k, self.num_heads) @ self.key_rank

    def _shorten(self, x: Tensor, matrix: Tensor, mask: Mask | None) -> Tensor:
        """Maps (B, h_kv, S, d) to summaries (B, h_kv|h, projected_length, d); zeros if every key is padding."""
        S = x.shape[2]
        if self.max_len < S:
            raise ValueError(f"attention kind 'low_rank' was made for max_len={self.max_len} keys, found {S}")
        if mask is not None and mask.key_mask is not None:
            x = x.masked_fill(~mask.key_mask[:, None, :, None], 0.0)
        matrix = matrix[:, :, :S]
        if matrix.shape[0] > 1:
            return matrix @ repeat_heads(x, self.num_heads)
        x = x.transpose(1, 2)  # (B, S, h_kv, d): the memory order of projections, so one product computes all heads
        return (matrix @ x.flatten(2)).unflatten(-1, x.shape[2:]).transpose(1, 2)
