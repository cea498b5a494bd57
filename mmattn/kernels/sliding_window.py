"""Softmax over the neighbours: linear in length, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, attend, dot_scores, masked_softmax
from ..masks import Mask, key_offsets, same_size
from .base import Kernel, KVCache, count_blocks

SMALLEST_BLOCK = 64  # queries a block; below, the products are too small to be fast


@dataclass
class WindowCache(KVCache):
    """The last `window` keys and values: it stops growing."""

    seen: Tensor  # (B,) long: tokens so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class SlidingWindow(Kernel):
    """Each query attends to the keys at most `window` to its left and right (Beltagy et al. 2020, section 3.1).

    ``L`` queries are cut into blocks of max(window, 64), each attending to its own block of keys and the two beside it,
    so that time and memory grow with L (3 block) and no loop runs over slices.

    Args:
        window: tokens on each side; a causal mask leaves the left side and the token itself.
    """

    kind = "sliding_window"
    supports = frozenset({"self", "causal", "bias", "cache"})

    def __init__(self, num_heads: int, head_dim: int, *, window: int = 64) -> None:
        super().__init__(num_heads, head_dim)
        if window < 1:
            raise ValueError(f"window must be at least 1 token, found {window}")
        self.window = window
        self.block = max(window, SMALLEST_BLOCK)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: WindowCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        mask = Mask() if mask is None else mask
        L = q.shape[2]
        if cache is not None:
            if not mask.is_causal and not (isinstance(L, int) and L == 1):
                raise ValueError(
                    "attention kind 'sliding_window' decodes with a cache causally; set is_causal in the mask"
                )
            if mask.attn_mask is not None:
                raise ValueError("attention kind 'sliding_window' takes no attn_mask beside a cache")
            k, v = cache.append(k, v)
            S = k.shape[2]
            kept = S - min(S, self.window)  # the first key that a later query can still see
            cache.keys, cache.values, cache.seen = k[:, :, kept:], v[:, :, kept:], cache.seen + L
            key_mask = None if mask.key_mask is None else mask.key_mask[:, mask.key_mask.shape[1] - S :]
            mask = Mask(key_mask, None, mask.is_causal, mask.bias)
            if isinstance(L, int) and L == 1:  # all that is cached is in the window
                return attend(q, k, v, mask)
            q = F.pad(q, (0, 0, S - L, 0))  # at most `window` made-up queries for the cached keys
        if not same_size(q.shape[2], k.shape[2]):
            raise ValueError(
                f"attention kind 'sliding_window' needs as many keys as queries, found {k.shape[2]} and {q.shape[2]}"
            )
        S = k.shape[2]
        if isinstance(S, int) and k.shape[2] <= 2 * self.block:  # the band in one piece costs less than three blocks
            return attend(q, k, v, self._band_mask(S, mask, q.device))[:, :, S - L :]
        return self._blocked(q, k, v, mask)[:, :, S - L : S]

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        mask = Mask() if mask is None else mask
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, self._band_mask(k.shape[2], mask, q.device)))

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> WindowCache:
        if cross:
            self.require({"cross"})
        return WindowCache(keys, values, keys.new_zeros(keys.shape[0], dtype=torch.long))

    def _band(self, offsets: Tensor, is_causal: bool) -> Tensor:
        return (offsets >= -self.window) & (offsets <= (0 if is_causal else self.window))

    def _band_mask(self, S: int, mask: Mask, device: torch.device) -> Mask:
        band = self._band(key_offsets(S, S, device), mask.is_causal)  # (S, S)
        return Mask(mask.key_mask, band if mask.attn_mask is None else band & mask.attn_mask, False, mask.bias)

    def _blocked(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        B, S, b = q.shape[0], q.shape[2], self.block
        n = count_blocks(S, b)
        spare = n * b - S
        q = _blocks(F.pad(q, (0, 0, 0, spare)), b)  # (B, n, h, b, d)
        k, v = (_beside(_blocks(F.pad(x, (0, 0, b, b + spare)), b)) for x in (k, v))  # (B, n, h_kv, 3 b, d)

        inner = torch.arange(b, device=q.device)
        near = torch.arange(-b, 2 * b, device=q.device)
        offsets = near[None, :] - inner[:, None]  # (b, 3 b)
        columns = torch.arange(n, device=q.device)[:, None] * b + near  # (n, 3 b): the key's position
        real = (columns >= 0) & (columns < S)
        allowed = self._band(offsets, mask.is_causal) & real[:, None, :]  # (n, b, 3 b)
        allowed = allowed[None, :, None]  # (1, n, 1, b, 3 b)
        columns = columns.clamp(0, S - 1)
        if mask.key_mask is not None:
            allowed = allowed & mask.key_mask[:, columns][:, :, None, None, :]
        if mask.attn_mask is not None:
            pairs = mask.attn_mask.expand(*mask.attn_mask.shape[:-2], S, S)
            rows = (torch.arange(n * b, device=q.device).view(n, b, 1)).clamp(max=S - 1)
            pairs = pairs[..., rows, columns[:, None, :]]  # (.., n, b, 3 b)
            allowed = allowed & (pairs.transpose(1, 2) if pairs.dim() == 5 else pairs[None, :, None])
        allowed = allowed.expand(B, n, *allowed.shape[2:]).flatten(0, 1)  # (B n, 1|h, b, 3 b)
        bias = None if mask.bias is None else _BlockBias(mask.bias.offsets(offsets))
        out = attend(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), Mask(None, allowed, False, bias)
        )  # (B n, h, b, d_v)
        return out.unflatten(0, (B, n)).transpose(2, 3).flatten(1, 2).transpose(1, 2)  # (B, h, n b, d_v)


@dataclass(frozen=True)
class _BlockBias:
    """A position bias at the offsets of one block, which are the same for all blocks."""

    values: Tensor  # (h, b, 3 b)

    def dense(self, L: int, S: int) -> Tensor:
        return self.values

    def offsets(self, offsets: Tensor) -> Tensor:
        raise NotImplementedError


def _blocks(x: Tensor, block: int) -> Tensor:
    """(B, h, n b, d) to (B, n, h, b, d); a view where x comes from a projection (B, n b, h d)."""
    return x.transpose(1, 2).unflatten(1, (-1, block)).transpose(2, 3)


def _beside(x: Tensor) -> Tensor:
    """Blocks (B, n + 2, h, b, d) to each block between its two neighbours: (B, n, h, 3 b, d)."""
    return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=3)
