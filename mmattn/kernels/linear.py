"""Attention by a product of feature maps: linear in length, with a recurrent decoding state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, repeat_heads
from ..masks import Mask
from .base import Cache, Kernel, count_blocks

FLOOR = 1e-6  # under the normaliser, as in the authors' code: rows without keys give 0 / FLOOR = 0


@dataclass
class LinearCache(Cache):
    """The sum over all past tokens: it does not grow."""

    state: Tensor  # (B, h, d, d_v + 1): sum of phi(k) [v, 1]^T
    seen: Tensor  # (B,) long: tokens so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class Linear(Kernel):
    """``phi(q) sum_j phi(k_j) v_j^T / phi(q) sum_j phi(k_j)``, ``phi = elu + 1``.

    Katharopoulos et al. 2020, section 3.2.

    The causal form runs over chunks: inside a chunk as a small masked product, across chunks by a cumulative sum.
    A mask over pairs (attn_mask) cannot be honoured and raises.
    """

    kind = "linear"
    supports = frozenset({"self", "causal", "cross", "cache"})
    chunk = 64  # queries that see each other directly in the causal form; earlier keys come through the running state

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: LinearCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        h, L = q.shape[1], q.shape[2]
        q, k = F.elu(q) + 1, self._keys(k, mask, cache is not None)
        k, v = repeat_heads(k, h), repeat_heads(v, h)
        v = F.pad(v, (0, 1), value=1.0)  # a column of ones: its sum is the normaliser
        state = None
        if cache is not None:
            if not (mask is not None and mask.is_causal) and not (isinstance(L, int) and L == 1):
                raise ValueError("attention kind 'linear' decodes with a cache causally; set is_causal in the mask")
            state = cache.state
            cache.state = state + k.transpose(-2, -1) @ v
            cache.seen = cache.seen + L
        if cache is not None or (mask is not None and mask.is_causal):
            out = _causal(q, k, v, state, self.chunk)
        else:
            out = q @ (k.transpose(-2, -1) @ v)
        return out[..., :-1] / out[..., -1:].clamp_min(FLOOR)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        scores = (F.elu(q) + 1) @ repeat_heads(F.elu(k) + 1, q.shape[1]).transpose(-2, -1)  # (B, h, L, S)
        allowed = allowed_keys(q, k, mask)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, 0.0)
        return scores / scores.sum(-1, keepdim=True).clamp_min(FLOOR)

    def check(self, mask: Mask | None, cache: object = None) -> None:
        super().check(mask, cache)
        if mask is not None and mask.attn_mask is not None:
            raise ValueError(
                "attention kind 'linear' never forms query-key pairs: it takes a key_mask, not an attn_mask"
            )

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> LinearCache | None:
        if cross:
            return None
        B, d_v = values.shape[0], values.shape[3]
        state = values.new_zeros(B, self.num_heads, self.head_dim, d_v + 1)
        return LinearCache(state, values.new_zeros(B, dtype=torch.long))

    def _keys(self, k: Tensor, mask: Mask | None, cached: bool) -> Tensor:
        k = F.elu(k) + 1  # (B, h_kv, S, d)
        if mask is None or mask.key_mask is None:
            return k
        key_mask = mask.key_mask
        if cached:  # the mask is over all keys, of which only the newest are here
            key_mask = key_mask[:, key_mask.shape[1] - k.shape[2] :]
        return k.masked_fill(~key_mask[:, None, :, None], 0.0)


def _causal(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, chunk: int) -> Tensor:
    """``q_i (state + sum over j <= i of k_j v_j^T)``, bottom-right aligned: (B, h, L, d_v)."""
    L, S = q.shape[2], k.shape[2]
    if isinstance(L, int) and L == 1:
        total = k.transpose(-2, -1) @ v
        return q @ (total if state is None else total + state)
    if S > L:  # keys before the first query: queries for them are made up and dropped
        q = F.pad(q, (0, 0, S - L, 0))
    elif L > S:  # queries before the first key see nothing
        k, v = F.pad(k, (0, 0, L - S, 0)), F.pad(v, (0, 0, L - S, 0))
    length = q.shape[2]
    n = count_blocks(length, chunk)
    q, k, v = (F.pad(x, (0, 0, 0, n * chunk - length)).unflatten(2, (n, chunk)) for x in (q, k, v))  # (B, h, n, c, .)
    inside = (q @ k.transpose(-2, -1)).tril() @ v  # (B, h, n, c, d_v)
    sums = k.transpose(-2, -1) @ v  # (B, h, n, d, d_v)
    # Shifted, not subtracted: a large sum taken off again would leave its rounding error in the past.
    before = F.pad(sums, (0, 0, 0, 0, 1, 0))[:, :, :-1].cumsum(2)
    if state is not None:
        before = before + state[:, :, None]
    out = (inside + q @ before).flatten(2, 3)  # (B, h, n c, d_v)
    return out[:, :, length - L : length]
