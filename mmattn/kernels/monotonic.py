"""Attention that only moves forward over its source: soft in training, one key at a time in decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import allowed_keys, dot_scores, repeat_heads
from ..masks import Mask
from .base import Cache, Kernel

EXPORT_ROUNDS = 16  # doublings while exporting, where the length is unknown: enough for 65,536 positions


@dataclass
class MonotonicCache(Cache):
    """Where each head has arrived; S, past the last key, once a query found nothing and the head has run out."""

    position: Tensor  # (B, h) long
    seen: Tensor  # (B,) long: queries so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class Monotonic(Kernel):
    """From where the last query stopped, move right and stop at each key with probability p_ij (Raffel et al. 2017).

    ``p_ij = sigmoid(g q_i k_j / sqrt(d) + r)``, g and r learned per head. Training uses the expected alignment of
    section 2.3, ``a_ij = p_ij sum over k <= j of a_(i-1)k (1 - p_ik) .. (1 - p_i(j-1))``, evaluation the first key with
    p_ij > 1/2. A query whose scan runs off the end gets zeros, and so do all after it.

    Args:
        noise: standard deviation of the noise on the scores in training, which drives p towards 0 and 1 (section 2.5).
        initial_offset: where r starts; the lower, the further an untrained head scans.
    """

    kind = "monotonic"
    supports = frozenset({"cross", "cache"})

    def __init__(self, num_heads: int, head_dim: int, *, noise: float = 1.0, initial_offset: float = -1.0) -> None:
        super().__init__(num_heads, head_dim)
        self.noise = noise
        self.gain = nn.Parameter(torch.ones(num_heads))  # g
        self.offset = nn.Parameter(torch.full((num_heads,), float(initial_offset)))  # r

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: MonotonicCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        if cache is None:
            return self.weights(q, k, mask) @ repeat_heads(v, q.shape[1])
        if self.training:
            raise ValueError("attention kind 'monotonic' decodes with a cache only in evaluation: call model.eval()")
        stops = _stops(self._energy(q, k, mask) > 0, cache.position)  # (B, h, L)
        cache.position, cache.seen = stops[:, :, -1], cache.seen + q.shape[2]
        return _one_hot(stops, k.shape[2], q.dtype) @ repeat_heads(v, q.shape[1])

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        energy = self._energy(q, k, mask)  # (B, h, L, S)
        if not self.training:
            return _one_hot(_stops(energy > 0), k.shape[2], q.dtype)
        if self.noise:
            energy = energy + self.noise * torch.randn_like(energy)
        return expected_alignment(energy.sigmoid())

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> MonotonicCache:
        if not cross:
            raise ValueError("attention kind 'monotonic' decodes cross-attention only: make_cache(cross=True)")
        B = keys.shape[0]
        position, seen = (keys.new_zeros(*shape, dtype=torch.long) for shape in ((B, self.num_heads), (B,)))
        return MonotonicCache(position, seen)

    def _energy(self, q: Tensor, k: Tensor, mask: Mask | None) -> Tensor:
        scores = dot_scores(q, k) * self.gain[:, None, None] + self.offset[:, None, None]  # (B, h, L, S)
        allowed = allowed_keys(q, k, mask)
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))  # p = 0: passed over


def expected_alignment(p: Tensor) -> Tensor:
    """The probability that query i stops at key j, for stopping probabilities p.

    The published closed form divides by a product of (1 - p), which underflows. Here the sum over k is a first-order
    recurrence in j, ``r_j = (1 - p_(j-1)) r_(j-1) + a_(i-1)j``, run by doubling: only products of probabilities and
    sums of positive numbers, so nothing can blow up. One step a query, log S inside.

    Args:
        p: (B, h, L, S).

    Returns:
        (B, h, L, S); rows sum to at most 1.
    """
    S = p.shape[-1]
    factor = F.pad(1 - p, (1, 0))[..., :S]  # (B, h, L, S): carried from j - 1 to j
    factors, step = [], 1
    while step < S:
        factors.append((step, factor.unbind(2)))
        factor = factor * F.pad(factor, (step, 0))[..., :S]
        step *= 2
    last = F.one_hot(torch.zeros((), dtype=torch.long, device=p.device), S).to(p.dtype)  # before the first query
    last = last.expand(*p.shape[:2], S)  # (B, h, S)
    rows = []
    for i, stop in enumerate(p.unbind(2)):
        reach = last
        for step, factor_i in factors:
            reach = reach + factor_i[i] * F.pad(reach, (step, 0))[..., :S]
        last = stop * reach
        rows.append(last)
    return torch.stack(rows, dim=2)


def _stops(stop: Tensor, start: Tensor | None = None) -> Tensor:
    """Where each query stops: the first True at or after the stop of the query before it.

    Each query is a function "from here, stop there"; functions compose, so a running composition by doubling replaces
    the loop over queries.

    Args:
        stop: (B, h, L, S) bool.
        start: (B, h) where the scan begins, 0 where None.

    Returns:
        (B, h, L) long, S where nothing was found.
    """
    L, S = stop.shape[-2:]
    stop = F.pad(stop, (0, 1), value=True)  # (B, h, L, S + 1): past the last key all stop
    places = torch.where(stop, torch.arange(S + 1, device=stop.device), S).sort(-1).values  # the stops, then S
    passed = stop.long().cumsum(-1) - stop.long()  # stops before each place: the index of the next one
    jump = places.gather(-1, passed)  # (B, h, L, S + 1): from each place the next stop
    query = torch.arange(L, device=stop.device)
    for step in _doublings(L):
        before = jump.index_select(2, (query - step).clamp_min(0))  # the composition up to query i - step
        jump = torch.where((query >= step)[:, None], jump.gather(-1, before), jump)
    if start is None:
        return jump[..., 0]
    return jump.gather(-1, start[:, :, None, None].expand(-1, -1, L, 1)).squeeze(-1)


def _doublings(length: int) -> list[int]:
    rounds = (length - 1).bit_length() if isinstance(length, int) else EXPORT_ROUNDS
    return [2**i for i in range(rounds)]


def _one_hot(stops: Tensor, S: int, dtype: torch.dtype) -> Tensor:
    return (stops.unsqueeze(-1) == torch.arange(S, device=stops.device)).to(dtype)  # (B, h, L, S)
