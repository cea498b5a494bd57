"""Attention with the relative positions of Transformer-XL, and a memory of earlier segments."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .masks import Mask
from .positions import sinusoidal_1d


class RelativeAttention(MultiHeadAttention):
    """Causal self-attention whose scores depend on content and distance (Dai et al. 2019, section 3.3).

    ``score_ij = ((q_i + u) k_j + (q_i + v) W_R r_(i - j)) / sqrt(d)`` with learned u and v of each head, and r the
    sinusoids of the distance.

    Args:
        embed_dim: E.
        num_heads: h.
        head_dim: d; None = E / h.
        bias: See `MultiHeadAttention`.

    >>> RelativeAttention(32, 4)(torch.randn(2, 5, 32), mask=Mask(is_causal=True)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, head_dim: int | None = None, bias: bool | Collection[str] = False
    ) -> None:
        super().__init__(embed_dim, num_heads, head_dim=head_dim, bias=bias, needs=("causal", "bias", "query_pos"))
        self.relative_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=False)  # W_R
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))  # u
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))  # v

    def forward(  # type: ignore[override]
        self, query: Tensor, *, mask: Mask | None = None, cache: Any = None, memory: Tensor | None = None
    ) -> Tensor:
        """Attends within query, to what is in the cache and to a memory before it.

        Args:
            query: (B, L, E).
            mask: Mask over all keys; a causal one.
            cache: Result of `make_cache`, updated in place.
            memory: (B, M, E), states before the query's.

        Returns:
            (B, L, E).

        Raises:
            ValueError: The mask is not causal, or has parts that are not supported.
        """
        if mask is None or not mask.is_causal or mask.bias is not None:
            raise ValueError("relative positions: expected a causal mask without a bias")
        if memory is not None and mask.attn_mask is not None:
            raise ValueError("relative positions: expected no attn_mask with a memory, whose keys it does not have")
        source = query if memory is None else torch.cat([memory, query], dim=1)  # (B, M + L, E)
        q = self._heads(self.q_proj(query), self.num_heads)  # (B, h, L, d)
        assert self.k_proj is not None
        k, v = (self._heads(project(source), self.num_heads) for project in (self.k_proj, self.v_proj))
        past = 0 if cache is None else cache.length
        S = source.shape[1] + past
        if mask.key_mask is not None and memory is not None:
            mask = Mask(nn.functional.pad(mask.key_mask, (memory.shape[1], 0), value=True), None, True)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        distances = torch.arange(S - 1, -1, -1, device=query.device)
        table = self.relative_proj(sinusoidal_1d(distances.to(wide), self.embed_dim).to(query.dtype))  # (S, h d)
        table = table.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (h, S, d), of distances S - 1 .. 0
        scores = (q + self.distance_bias) @ table.mT * self.head_dim**-0.5  # (B, h, L, S)
        out = self.kernel(q + self.content_bias, k, v, mask.with_bias(PairBias(_shift(scores))), cache)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class PairBias:
    """A bias of the scores that differs between the texts of a batch, in the place of a mask's position bias."""

    def __init__(self, values: Tensor) -> None:
        self.values = values  # (B, h, L, S)

    def dense(self, L: int, S: int) -> Tensor:
        """Returns the bias (B, h, L, S)."""
        return self.values

    def offsets(self, offsets: Tensor) -> Tensor:
        """Raises a ValueError: the bias is no function of offsets."""
        raise ValueError("a bias of content and position has no value for an offset alone")


def _shift(scores: Tensor) -> Tensor:
    """Moves scores of distances S - 1 .. 0 to the keys at these distances, the last query at the last key.

    Args:
        scores: (B, h, L, S).

    Returns:
        (B, h, L, S); what is at keys after a query has no meaning.
    """
    L, S = scores.shape[-2:]
    keys, queries = torch.arange(S, device=scores.device), torch.arange(L, device=scores.device)
    index = (keys + (L - 1 - queries)[:, None]).clamp_max(S - 1)  # (L, S)
    return scores.gather(-1, index.expand_as(scores))
