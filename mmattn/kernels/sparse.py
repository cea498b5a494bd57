"""Block-sparse attention to window, global and random blocks, linear in length."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, attend, dot_scores, masked_softmax, repeat_heads
from ..masks import Mask, same_size
from .base import Kernel, KVCache, count_blocks
from .gather_attention import attend_gathered, bias_by_head

PRIME = 2**31 - 1  # x -> x^5 is a bijection modulo it, and no intermediate product exceeds 64 bits
START = 1_234_567_891  # not 0 or 1, the fixed points of the fifth power


class Sparse(Kernel):
    """Softmax over window, global and random blocks of keys (Zaheer et al. 2020, section 2 and appendix D).

    Block i of the queries attends to the blocks i - 1, i and i + 1, the first and the last `num_global`, and
    `num_random` others; the blocks at the ends attend to all. The last block is that of a sample's last real token, so
    padding has no effect. The random ones are hashed from (seed, head, i): one from each of `num_random` equal parts of
    the blocks that are neither near nor global.

    Under a causal mask, attention must not depend on the length: there are no global blocks at the end, and the random
    blocks are drawn from those before i - 1.

    Args:
        block: Tokens per block.
        num_global: Blocks at each end that attend to all and are attended to by all.
        num_random: Random blocks of keys for each block of queries.
        seed: Seed of the random blocks, which are equal in every process for the same number of blocks.

    Raises:
        ValueError: block is below 1, or a number of blocks below 0.
    """

    kind = "sparse"
    supports = frozenset({"self", "causal", "bias", "cache"})

    def __init__(
        self, num_heads: int, head_dim: int, *, block: int = 64, num_global: int = 1, num_random: int = 3, seed: int = 0
    ) -> None:
        super().__init__(num_heads, head_dim)
        if block < 1:
            raise ValueError(f"block must be at least 1 token, found {block}")
        if num_global < 0 or num_random < 0:
            raise ValueError(
                f"num_global and num_random must be at least 0 blocks, found {num_global} and {num_random}"
            )
        self.block, self.num_global, self.num_random, self.seed = block, num_global, num_random, seed

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        mask = Mask() if mask is None else mask
        L = q.shape[2]
        if cache is not None:
            self.check_causal(mask.is_causal, L)
            k, v = cache.append(k, v)
            mask = replace(mask, is_causal=True)
        else:
            self.check_square(L, k.shape[2])
        S = k.shape[2]
        width = (3 + 2 * self.num_global + self.num_random) * self.block  # keys per query
        short = isinstance(S, int) and 2 * width >= S  # gathering blocks would cost more than it saves
        if short or mask.attn_mask is not None or not same_size(L, S):
            return attend(q, k, v, self._pattern(L, S, mask, q.device))
        return self._blocked(q, k, v, mask)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        mask = Mask() if mask is None else mask
        pattern = self._pattern(q.shape[2], k.shape[2], mask, q.device)
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, pattern))

    def plan(self, rows: Tensor, count: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
        """Returns the blocks of keys that each non-global block of queries attends to.

        Args:
            rows: (m,) long, blocks of queries.
            count: (B, 1, 1, 1) long, the number of blocks of each sample; B may be 1.
            is_causal: See the class.

        Returns:
            (B, h, m, 3 + 2 num_global + num_random), blocks of keys, and bool, whether each is valid: none is repeated.
        """
        g, r = self.num_global, self.num_random
        i = rows[:, None]  # (m, 1)
        heads = torch.arange(self.num_heads, device=rows.device)[:, None, None]
        draws, ends = torch.arange(r, device=rows.device), torch.arange(g, device=rows.device)

        near = i + torch.arange(-1, 2, device=rows.device)  # (m, 3)
        last = count - g + ends  # (B, 1, 1, g)
        before = (torch.minimum(i - 1, count - g) - g).clamp_min(0)  # (B, 1, m, 1): number of candidates
        resume = (i + 2).clamp_min(g)
        after = (count - g - resume).clamp_min(0)
        near_seen, last_seen = (near >= 0) & (near < count), (last >= g) & ((last - i).abs() > 1)
        if is_causal:
            before, after = (i - 1 - g).clamp_min(0).expand_as(before), torch.zeros_like(after)
            near_seen, last_seen = (near >= 0) & (near <= i), torch.zeros_like(last_seen)
        total = before + after
        low, high = total * draws // max(r, 1), total * (draws + 1) // max(r, 1)  # (B, 1, m, r)
        drawn = low + _hash(self.seed, heads, i, draws) % (high - low).clamp_min(1)  # (B, h, m, r)
        drawn = torch.where(drawn < before, drawn + g, drawn - before + resume)

        shape = drawn.shape[:3]
        first_seen = (ends < i - 1) & (ends < count)
        index = torch.cat([x.expand(*shape, -1) for x in (near, ends, last, drawn)], dim=-1)
        seen = torch.cat([x.expand(*shape, -1) for x in (near_seen, first_seen, last_seen, high > low)], dim=-1)
        return index.masked_fill(~seen, 0), seen

    def _count(self, S: int, mask: Mask, device: torch.device) -> Tensor:
        """Returns the number of blocks of a sample, up to its last real token: (B|1, 1, 1, 1) long."""
        end = torch.arange(1, S + 1, device=device)
        ends = end[None, -1:] if mask.key_mask is None else end.masked_fill(~mask.key_mask, 0).amax(-1, keepdim=True)
        return ((ends + self.block - 1) // self.block)[:, :, None, None]

    def _pattern(self, L: int, S: int, mask: Mask, device: torch.device) -> Mask:
        """Returns the pattern as a mask over pairs of tokens, which is faster for short texts and single queries."""
        count = self._count(S, mask, device)
        rows = (torch.arange(L, device=device) + (S - L)) // self.block  # (L,)
        index, seen = self.plan(rows, count, mask.is_causal)
        n = count_blocks(S, self.block)
        pairs = seen.new_zeros(*index.shape[:3], n + 1).scatter(-1, index.masked_fill(~seen, n), True)[..., :n]
        if not mask.is_causal:
            pairs = pairs | self._is_global(rows[:, None], count)  # (B, h, L, n)
        pairs = pairs.repeat_interleave(self.block, dim=-1)[..., :S]  # (B, h, L, S)
        return replace(mask, attn_mask=pairs if mask.attn_mask is None else pairs & mask.attn_mask)

    def _is_global(self, rows: Tensor, count: Tensor) -> Tensor:
        return ((rows < self.num_global) | (rows >= count - self.num_global)) & (rows < count)

    def _blocked(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        (B, h, S), h_kv = q.shape[:3], k.shape[1]
        b, n = self.block, count_blocks(S, self.block)
        count = self._count(S, mask, q.device)
        index, seen = self.plan(torch.arange(n, device=q.device), count, mask.is_causal)  # (B|1, h, n, w)
        q, k, v = (F.pad(x, (0, 0, 0, n * b - S)) for x in (q, k, v))
        queries, keys, values = (x.unflatten(2, (n, b)).flatten(0, 2) for x in (q, k, v))  # (B h|h_kv n, b, .)

        rows = torch.arange(n * b, device=q.device).view(1, 1, n, b)  # positions of queries, and of keys:
        columns = rows[0, 0, index]  # (B|1, h, n, w, b)
        seen = seen[..., None] & (columns < S)
        if mask.key_mask is not None:
            sample = torch.arange(B, device=q.device)[:, None, None, None, None]
            seen = seen & mask.key_mask[sample, columns.clamp(max=S - 1)]
        columns = columns.masked_fill(~seen, n * b).flatten(-2)  # (B|1, h, n, w b), invalid blocks past the end
        until = rows if mask.is_causal else torch.full_like(rows[..., :1], n * b - 1)  # (1, 1, n, b|1)

        head = torch.arange(h, device=q.device) // (h // h_kv)  # query head i reads key head i // (h / h_kv)
        first = (torch.arange(B, device=q.device)[:, None] * h_kv + head)[:, :, None, None] * n  # (B, h, 1, 1)
        groups = [columns, until]
        if mask.bias is not None:
            offsets = rows[0, 0, index].flatten(-2)[..., None, :] - rows[..., None]  # (B|1, h, n, b, w b)
            groups.append(bias_by_head(mask.bias, offsets, n * b))
        groups = [x.expand(B, h, *x.shape[2:]).flatten(0, 2) for x in groups]  # (B h n, ..)
        picks = (index + first).flatten(0, 2)  # (B h n, w)
        out = attend_gathered(_attend_blocks, picks, keys, values, queries, *groups, scores=b * b * picks.shape[1])
        out = out.unflatten(0, (B, h, n))  # (B, h, n, b, d_v)
        if not mask.is_causal and self.num_global:
            out = self._with_global(out, q, k[:, :, :S], v[:, :, :S], mask, count)
        return out.flatten(2, 3)[:, :, :S]

    def _with_global(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Mask, count: Tensor) -> Tensor:
        """Replaces the outputs of the global blocks of queries, in out (B, h, n, b, d_v), by attention to all keys."""
        B, n, b, g, S = *out.shape[:1], *out.shape[2:4], self.num_global, k.shape[2]
        ends = torch.arange(g, device=q.device).expand(count.shape[0], g)
        rows = torch.cat([ends, (count[:, :, 0, 0] - g + ends).clamp_min(0)], dim=-1)  # (B|1, 2 g)
        places = (rows[..., None] * b + torch.arange(b, device=q.device)).flatten(1)  # (B|1, 2 g b)
        sample = torch.arange(B, device=q.device)[:, None]
        queries = q.transpose(1, 2)[sample, places].transpose(1, 2)  # (B, h, 2 g b, d)
        key_mask = None if mask.key_mask is None else mask.key_mask[:, None, None, :]
        bias = None
        if mask.bias is not None:
            offsets = torch.arange(S, device=q.device) - places[:, None, :, None]  # (B|1, 1, 2 g b, S)
            bias = bias_by_head(mask.bias, offsets, n * b)
        seen = _attend(queries, k, v, key_mask, bias)  # (B, h, 2 g b, d_v)
        both = torch.cat([out, seen.unflatten(2, (2 * g, b))], dim=2)  # (B, h, n + 2 g, b, d_v)
        i = torch.arange(n, device=q.device)
        place = torch.where(i < g, i, 2 * g - count + i)  # index among the global blocks
        source = torch.where(self._is_global(i, count), n + place, i)[:, 0, 0]  # (B|1, n)
        return both.transpose(1, 2)[sample, source].transpose(1, 2)  # (B, h, n, b, d_v)


def _attend_blocks(
    k: Tensor, v: Tensor, q: Tensor, columns: Tensor, until: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attends within each of m groups.

    Args:
        k: (m, w, b, d).
        v: (m, w, b, d_v).
        q: (m, b, d).
        columns: (m, w b) long, the positions of the keys.
        until: (m, b|1) long, the last position that a query attends to.
        bias: (m, b, w b) or None.

    Returns:
        (m, b, d_v).
    """
    allowed = columns[:, None, :] <= until[:, :, None]  # (m, b|1, w b)
    bias = None if bias is None else bias[:, None]
    return _attend(q[:, None], k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None], allowed[:, None], bias)[:, 0]


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    """Computes attention; a bias (B|1, h, L, S) that differs between samples disables the fused path."""
    if bias is None:
        return attend(q, k, v, None if allowed is None else Mask(None, allowed))
    scores = (q * q.shape[-1] ** -0.5) @ repeat_heads(k, q.shape[1]).transpose(-2, -1) + bias.to(q.dtype)
    return masked_softmax(scores, allowed) @ repeat_heads(v, q.shape[1])


def _hash(seed: int, *values: Tensor) -> Tensor:
    """Hashes integers to a number below PRIME, ``x -> (x + value)^5`` in turn, by exportable arithmetic alone."""
    x = torch.full_like(values[0], pow(START + seed, 5, PRIME))
    for value in values:
        x = (x + value) % PRIME
        square = x * x % PRIME
        x = square * square % PRIME * x % PRIME
    return x
