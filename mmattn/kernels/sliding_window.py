"""Softmax over a sliding window and a few global tokens, linear in length, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, attend, dot_scores, masked_softmax, repeat_heads
from ..masks import Bias, Mask, key_offsets
from .banded import LOG2E, BandedAttention
from .base import Kernel, KVCache, count_blocks

BLOCK = 64  # queries per block: fewer make products slow, more compute scores beyond the window


@dataclass
class WindowCache(KVCache):
    """A cache of the last `window` keys and values, of bounded size."""

    seen: Tensor  # (B,) long: tokens so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]

    def slide(self, k: Tensor, v: Tensor, window: int, mask: Mask) -> tuple[Tensor, Tensor, Mask]:
        """Appends keys and values; returns those that the new queries may attend to with their mask; keeps `window`."""
        self.seen = self.seen + k.shape[2]
        k, v = self.append(k, v)
        S = k.shape[2]
        kept = S - min(S, window)  # the first key in a later query's window
        self.keys, self.values = k[:, :, kept:], v[:, :, kept:]
        key_mask = None if mask.key_mask is None else mask.key_mask[:, mask.key_mask.shape[1] - S :]
        return k, v, Mask(key_mask, None, mask.is_causal, mask.bias)


class SlidingWindow(Kernel):
    """Each query attends to the keys at most `window` to its left and right (Beltagy et al. 2020, section 3.1).

    The tokens of the mask's ``global_mask``, which may differ between samples, attend to all and are attended to by
    all, within a causal mask if there is one. Queries are split into blocks, each over the range of keys around it, so
    that time and memory grow with L (2 window + block), and with L G for at most G global tokens per sample.

    Args:
        window: Tokens on each side; under a causal mask the left side and the token itself remain.
    """

    kind = "sliding_window"
    supports = frozenset({"self", "causal", "bias", "cache", "global"})

    def __init__(self, num_heads: int, head_dim: int, *, window: int = 64) -> None:
        super().__init__(num_heads, head_dim)
        if window < 1:
            raise ValueError(f"window must be at least 1 token, found {window}")
        self.window = window
        self.block = BLOCK

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: WindowCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        mask = Mask() if mask is None else mask
        L = q.shape[2]
        if cache is not None:
            self.check_causal(mask.is_causal, L)
            for name in ("attn_mask", "global_mask"):
                if getattr(mask, name) is not None:
                    raise ValueError(f"attention kind 'sliding_window' takes no {name} beside a cache")
            k, v, mask = cache.slide(k, v, self.window, mask)
            if isinstance(L, int) and L == 1:  # all cached keys are in the window
                return attend(q, k, v, mask)
            q = F.pad(q, (0, 0, k.shape[2] - L, 0))  # at most `window` dummy queries for the cached keys
        S = k.shape[2]
        self.check_square(q.shape[2], S)
        short = max(2 * self.window + self.block, 4 * self.block)  # up to this length, all scores at once are faster
        if isinstance(S, int) and short >= S:
            return attend(q, k, v, self._dense_mask(S, mask, q.device))[:, :, S - L :]
        if mask.global_mask is None:
            return self._windows(q, k, v, mask)[0][:, :, S - L :]
        return self._with_globals(q, k, v, mask, mask.global_mask)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        mask = Mask() if mask is None else mask
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, self._dense_mask(k.shape[2], mask, q.device)))

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> WindowCache:
        if cross:
            self.require({"cross"})
        return WindowCache(keys, values, keys.new_zeros(keys.shape[0], dtype=torch.long))

    def _band(self, offsets: Tensor, is_causal: bool) -> Tensor:
        return (offsets >= -self.window) & (offsets <= (0 if is_causal else self.window))

    def _dense_mask(self, S: int, mask: Mask, device: torch.device) -> Mask:
        allowed = self._band(key_offsets(S, S, device), mask.is_causal)  # (S, S)
        if mask.global_mask is not None:
            anywhere = mask.global_mask[:, None, :, None] | mask.global_mask[:, None, None, :]  # (B, 1, S, S)
            past = Mask(is_causal=mask.is_causal).dense(S, S, device)
            allowed = allowed | (anywhere if past is None else anywhere & past)
        return Mask(mask.key_mask, allowed if mask.attn_mask is None else allowed & mask.attn_mask, False, mask.bias)

    def _with_globals(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, global_mask: Tensor) -> Tensor:
        """Attends in windows without the global keys, merged with these in one softmax; then from global queries.

        In that softmax a window is one more key, whose score is its log-sum-exp and whose value is its output.
        """
        S, h = q.shape[2], q.shape[1]
        near = ~global_mask if mask.key_mask is None else mask.key_mask & ~global_mask
        out, sums = self._windows(q, k, v, Mask(near, mask.attn_mask, mask.is_causal, mask.bias), with_sums=True)
        real, places = _first_true(global_mask)  # (B, G) both
        tokens = torch.arange(S, device=q.device)
        rows = places[:, None, :, None]  # (B, 1, G, 1)

        allowed = real[:, None, None, :]  # (B, 1, 1, G)
        if mask.key_mask is not None:
            allowed = allowed & mask.key_mask.gather(1, places)[:, None, None, :]
        if mask.attn_mask is not None:
            allowed = allowed & _take(mask.attn_mask, places[:, None, None, :], S)
        if mask.is_causal:
            allowed = allowed & (places[:, None, None, :] <= tokens[:, None])  # (B, 1|h, S, G)
        keys, values = (repeat_heads(x, h).gather(2, rows.expand(-1, h, -1, x.shape[3])) for x in (k, v))
        scores = _scores(q, keys, mask.bias, places[:, None, :] - tokens[:, None])  # (B, h, S, G)
        allowed = F.pad(allowed.expand(*allowed.shape[:2], S, -1), (1, 0), value=True)  # (B, 1|h, S, 1 + G)
        scores = torch.cat([sums.unsqueeze(-1), scores.to(sums.dtype)], dim=-1)
        weights = masked_softmax(scores, allowed).to(v.dtype)  # (B, h, S, 1 + G)
        out = torch.addcmul(weights[..., 1:] @ values, weights[..., :1], out.to(v.dtype))  # (B, h, S, d_v)

        index = rows.expand(-1, h, -1, out.shape[3])
        found = self._attend_everywhere(q, k, v, mask, places)  # (B, h, G, d_v)
        return out.scatter(2, index, torch.where(real[:, None, :, None], found, out.gather(2, index)))

    def _attend_everywhere(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, places: Tensor) -> Tensor:
        """Returns the outputs of the queries at places (B, G) without a window: (B, h, G, d_v)."""
        S, h = q.shape[2], q.shape[1]
        tokens = torch.arange(S, device=q.device)
        rows = places[:, None, :, None]  # (B, 1, G, 1)
        allowed = (tokens <= rows) if mask.is_causal else torch.ones_like(rows, dtype=torch.bool)
        if mask.key_mask is not None:
            allowed = allowed & mask.key_mask[:, None, None, :]
        if mask.attn_mask is not None:
            allowed = allowed & _take(mask.attn_mask, rows, S)  # (B, 1|h, G, 1|S)
        picked = q.gather(2, rows.expand(-1, h, -1, q.shape[3]))  # (B, h, G, d)
        scores = _scores(picked, repeat_heads(k, h), mask.bias, tokens - places[..., None])  # (B, h, G, S)
        return masked_softmax(scores, allowed) @ repeat_heads(v, h)

    def _windows(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, with_sums: bool = False) -> tuple[Tensor, Tensor]:
        """Returns outputs (B, h, S, d_v), and the log-sum-exp of the scores (B, h, S) if requested."""
        if not _in_place(q):
            return self._side_by_side(q, k, v, mask, with_sums)
        table = self._table(self.block, self.window, 0 if mask.is_causal else self.window, mask, q)
        key_bias = None
        if mask.key_mask is not None:
            key_bias = torch.zeros_like(mask.key_mask, dtype=q.dtype).masked_fill_(~mask.key_mask, float("-inf"))
        pairs = mask.attn_mask
        if pairs is not None:
            pairs = pairs.expand(*([1, 1] if pairs.dim() == 2 else pairs.shape[:2]), q.shape[2], q.shape[2])
        return BandedAttention.apply(q, k, v, table, key_bias, pairs, self.window)

    def _table(self, block: int, left: int, right: int, mask: Mask, like: Tensor) -> Tensor:
        """Returns the additive mask (base 2) of a block's queries over the keys around it: (h|1, block, width)."""
        inner = torch.arange(block, device=like.device)
        offsets = torch.arange(-left, block + right, device=like.device) - inner[:, None]  # (block, width)
        bias = torch.zeros_like(offsets)[None] if mask.bias is None else mask.bias.offsets(offsets) * LOG2E
        return bias.to(like.dtype).masked_fill(~self._band(offsets, mask.is_causal), float("-inf"))

    def _side_by_side(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, with_sums: bool) -> tuple[Tensor, Tensor]:
        """Computes `_windows` in a few large operations on copies of each block's keys, for export and GPUs."""
        B, h, S, _ = q.shape
        b = max(self.window, self.block)
        n = count_blocks(S, b)
        spare = n * b - S
        q = _blocks(F.pad(q, (0, 0, 0, spare)), b).flatten(0, 1)  # (B n, h, b, d)
        k, v = (_blocks(F.pad(x, (0, 0, b, b + spare)), b) for x in (k, v))  # (B, n + 2, h_kv, b, d)
        k, v = (_beside(x).flatten(0, 1) for x in (k, v))  # (B n, h_kv, 3 b, d)

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
        if not with_sums:
            out = attend(q, k, v, Mask(None, allowed, False, bias))  # (B n, h, b, d_v)
            return _joined(out, B)[:, :, :S], out.new_empty(0)
        wide = torch.promote_types(q.dtype, torch.float32)  # half precision is too coarse for a log-sum-exp
        scores = dot_scores(q, k, Mask(bias=bias)).to(wide).masked_fill(~allowed, torch.finfo(wide).min)
        sums = _joined(scores.logsumexp(-1, keepdim=True), B)[:, :, :S, 0]  # (B, h, S)
        out = masked_softmax(scores, allowed).to(v.dtype) @ repeat_heads(v, h)
        return _joined(out, B)[:, :, :S], sums


@dataclass(frozen=True)
class _BlockBias:
    """A position bias at the offsets of one block, which are equal for all blocks."""

    values: Tensor  # (h, b, 3 b)

    def dense(self, L: int, S: int) -> Tensor:
        return self.values

    def offsets(self, offsets: Tensor) -> Tensor:
        raise NotImplementedError


def _in_place(q: Tensor) -> bool:
    """Whether blocks of keys can be read in place: on the CPU, in full precision, and not in a graph."""
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def _blocks(x: Tensor, block: int) -> Tensor:
    """Splits (B, h, n b, d) into (B, n, h, b, d); a view if x comes from a projection (B, n b, h d)."""
    return x.transpose(1, 2).unflatten(1, (-1, block)).transpose(2, 3)


def _joined(x: Tensor, batch: int) -> Tensor:
    """Joins blocks (B n, h, b, d) to (B, h, n b, d)."""
    return x.unflatten(0, (batch, -1)).transpose(2, 3).flatten(1, 2).transpose(1, 2)


def _beside(x: Tensor) -> Tensor:
    """Concatenates each of the inner blocks of (B, n + 2, h, b, d) with its neighbors: (B, n, h, 3 b, d)."""
    return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=3)


def _first_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns whether each sample of (B, S) has a g-th True, (B, G), and its index, (B, G) long, G the maximum."""
    S = mask.shape[1]
    most = cast(int, mask.sum(1).max().clamp(min=1).item())  # int() would need a concrete number during export
    torch._check(most <= S)
    order = torch.arange(S, 0, -1, device=mask.device)
    order, places = torch.where(mask, order, -order).topk(most, dim=1)  # no two are equal
    return order > 0, places


def _take(pairs: Tensor, index: Tensor, size: int) -> Tensor:
    """Gathers columns of an attn_mask by (B, 1, 1, G) to (B, 1|h, S, G), or rows by (B, 1, G, 1) to (B, 1|h, G, S)."""
    heads = 1 if pairs.dim() == 2 else pairs.shape[1]
    pairs = pairs.expand(index.shape[0], heads, size, size)
    dim = 3 if index.shape[2] == 1 else 2
    return pairs.gather(dim, index.expand(-1, heads, size if dim == 3 else -1, -1 if dim == 3 else size))


def _scores(q: Tensor, k: Tensor, bias: Bias | None, offsets: Tensor) -> Tensor:
    """Returns scaled dot products plus a bias at offsets (B, L, S) that differ between samples: (B, h, L, S)."""
    scores = dot_scores(q, k)
    return scores if bias is None else scores + bias.offsets(offsets).transpose(0, 1).to(scores.dtype)
