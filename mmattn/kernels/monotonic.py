"""Monotonic attention: soft in training, one key or chunk per query in decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import allowed_keys, dot_scores, masked_softmax, repeat_heads
from ..masks import Mask, same_size
from .base import Cache, Kernel

EXPORT_ROUNDS = 16  # doublings for export, where the length is unknown: enough for 65,536 positions
SCAN = 64  # keys that decoding scans at a time


@dataclass
class MonotonicCache(Cache):
    """The position of each head; S, past the last key, once a query has stopped nowhere."""

    position: Tensor  # (B, h) long
    seen: Tensor  # (B,) long: queries so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class Monotonic(Kernel):
    """Each query scans right from the last stop and stops at key j with probability p_ij (Raffel et al. 2017).

    ``p_ij = sigmoid(g q_i k_j / sqrt(d) + r)``, g and r learned per head. Training uses the expected alignment of
    section 2.3, ``a_ij = p_ij sum over k <= j of a_(i-1)k (1 - p_ik) .. (1 - p_i(j-1))``, evaluation the first key with
    p_ij > 1/2. A query that scans past the end gets zeros, and so do all later ones.

    With a chunk of w keys (Chiu and Raffel 2018, section 2.3) a query that stops at key j attends to keys j - w + 1 ..
    j by a softmax over separate energies, ``u_ij = (W q_i) k_j / sqrt(d)``; training uses the expectation. A mere gain
    like g would not suffice for u: p is highest at the stop, so preceding keys could never have larger weights.

    With a cache a step scans from the head's position, `SCAN` keys at a time: decoding is linear in L + S.

    Args:
        chunk: w, the number of keys per query; 1 = the key at which it stops.
        noise: Standard deviation of the noise on the scores in training, which drives p towards 0 and 1 (section 2.5).
        initial_offset: Initial value of r; the lower, the further an untrained head scans.
    """

    kind = "monotonic"
    supports = frozenset({"cross", "cache"})

    def __init__(
        self, num_heads: int, head_dim: int, *, chunk: int = 1, noise: float = 1.0, initial_offset: float = -1.0
    ) -> None:
        super().__init__(num_heads, head_dim)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 key, found {chunk}")
        self.chunk, self.noise = chunk, noise
        self.gain = nn.Parameter(torch.ones(num_heads))  # g
        self.offset = nn.Parameter(torch.full((num_heads,), float(initial_offset)))  # r
        if chunk > 1:
            self.chunk_query = nn.Parameter(torch.eye(head_dim).repeat(num_heads, 1, 1))  # W

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: MonotonicCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        if cache is None:
            return self.weights(q, k, mask) @ repeat_heads(v, q.shape[1])
        if self.training:
            raise ValueError("attention kind 'monotonic' decodes with a cache only in evaluation: call model.eval()")
        allowed = allowed_keys(q, k, mask)
        if torch.compiler.is_compiling():  # a graph has no early exit
            stops = _stops(self._energy(q, k, allowed) > 0, cache.position)  # (B, h, L)
        else:
            stops = self._scan(q, k, allowed, cache.position)
        cache.position, cache.seen = stops[:, :, -1], cache.seen + q.shape[2]
        return self._read(stops, q, k, v, allowed)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        allowed = allowed_keys(q, k, mask)
        energy = self._energy(q, k, allowed)  # (B, h, L, S)
        if not self.training:
            alignment = _one_hot(_stops(energy > 0), k.shape[2], q.dtype)
        else:
            if self.noise:
                energy = energy + self.noise * torch.randn_like(energy)
            alignment = expected_alignment(energy.sigmoid())
        if self.chunk == 1:
            return alignment
        return over_chunks(alignment, dot_scores(q @ self.chunk_query, k), allowed, self.chunk)

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> MonotonicCache:
        if not cross:
            raise ValueError("attention kind 'monotonic' decodes cross-attention only: make_cache(cross=True)")
        B = keys.shape[0]
        position, seen = (keys.new_zeros(*shape, dtype=torch.long) for shape in ((B, self.num_heads), (B,)))
        return MonotonicCache(position, seen)

    def _energy(self, q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
        scores = dot_scores(q, k) * self.gain[:, None, None] + self.offset[:, None, None]  # (B, h, L, S)
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))  # p = 0

    def _scan(self, q: Tensor, k: Tensor, allowed: Tensor | None, position: Tensor) -> Tensor:
        """Returns the stop of each query, (B, h, L), scanning no key before position (B, h) and few after the stop."""
        S = k.shape[2]
        stops = []
        for i in range(q.shape[2]):
            searching = position < S
            while bool(searching.any()):
                index = position[..., None] + torch.arange(SCAN, device=k.device)  # (B, h, SCAN)
                inside, index = index < S, index.clamp(max=S - 1)
                energy = self._energy(q[:, :, i : i + 1], take_rows(k, index), None)[:, :, 0]  # (B, h, SCAN)
                stop = (energy > 0) & inside & _pairs(allowed, index[:, :, None], i)[:, :, 0]
                found = stop.any(-1)
                step = torch.where(found, stop.long().argmax(-1), SCAN)  # to the first stop
                position = torch.where(searching, position + step, position).clamp(max=S)
                searching = searching & ~found & (position < S)
            stops.append(position)
        return torch.stack(stops, dim=2)

    def _read(self, stops: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """Returns the outputs of queries with these stops: (B, h, L, d_v)."""
        S, w = k.shape[2], self.chunk
        index = stops[..., None] + torch.arange(1 - w, 1, device=k.device)  # (B, h, L, w)
        real = (index >= 0) & (stops < S)[..., None]
        index = index.clamp(0, S - 1)
        values = take_rows(v, index)  # (B, h, L, w, d_v)
        if w == 1:
            return values.squeeze(3).masked_fill(~real, 0.0)
        queries = q @ self.chunk_query * self.head_dim**-0.5
        energy = (queries[:, :, :, None] @ take_rows(k, index).transpose(-2, -1)).squeeze(3)  # (B, h, L, w)
        weights = masked_softmax(energy, real & _pairs(allowed, index))
        return (weights[:, :, :, None] @ values).squeeze(3)


def expected_alignment(p: Tensor) -> Tensor:
    """Returns the probability that query i stops at key j, for stopping probabilities p.

    The published closed form divides by a product of (1 - p), which underflows. Here the sum over k is a first-order
    recurrence in j, ``r_j = (1 - p_(j-1)) r_(j-1) + a_(i-1)j``, computed by doubling: only products of probabilities
    and sums of positive numbers, which is numerically stable. One step per query, with log S doublings.

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


def over_chunks(alignment: Tensor, energy: Tensor, allowed: Tensor | None, chunk: int) -> Tensor:
    """Returns the weights of keys if a query that stops at key j attends to the `chunk` keys up to j by a softmax.

    ``b_ij = sum over k = j .. j + w - 1 of a_ik exp(u_ij) / sum over l = k - w + 1 .. k of exp(u_il)`` (Chiu and Raffel
    2018, section 2.4). The published moving sums subtract the row's largest energy, so that a chunk far below it
    divides zero by zero; here each chunk has a separate softmax.

    Args:
        alignment: (B, h, L, S), the probability that query i stops at key j.
        energy: (B, h, L, S), u.
        allowed: Bool, broadcastable to energy, or None.
        chunk: w.

    Returns:
        (B, h, L, S); each row sums to what the alignment's does.
    """
    S, before = energy.shape[-1], chunk - 1
    if allowed is None:
        allowed = torch.ones(1, 1, 1, S, dtype=torch.bool, device=energy.device)
    energy, allowed = (F.pad(x, (before, 0)).unfold(-1, chunk, 1) for x in (energy, allowed))  # (B, h, L, S, w)
    shares = masked_softmax(energy, allowed) * alignment[..., None]  # of keys k - w + 1 .. k, for each stop k
    return torch.stack([F.pad(shares[..., before - i], (0, i))[..., i:] for i in range(chunk)]).sum(0)


def _stops(stop: Tensor, start: Tensor | None = None) -> Tensor:
    """Returns the stop of each query: the first True at or after the stop of the preceding query.

    Each query is a function from a position to its stop; a cumulative composition by doubling replaces the loop over
    queries.

    Args:
        stop: (B, h, L, S) bool.
        start: (B, h), the beginning of the scan; None = 0.

    Returns:
        (B, h, L) long, S without a stop.
    """
    L, S = stop.shape[-2:]
    stop = F.pad(stop, (0, 1), value=True)  # (B, h, L, S + 1): all stop past the last key
    places = torch.where(stop, torch.arange(S + 1, device=stop.device), S).sort(-1).values  # the stops, then S
    passed = stop.long().cumsum(-1) - stop.long()  # stops before each place: the index of the next one
    jump = places.gather(-1, passed)  # (B, h, L, S + 1): the next stop from each position
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


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Gathers rows of x (B, h_kv, S, d) at index (B, h, ...): (B, h, ..., d)."""
    B, h = index.shape[:2]
    ones = [1] * (index.dim() - 2)
    heads = torch.arange(h, device=x.device) // (h // x.shape[1])  # grouped-query: each head's keys
    return x[torch.arange(B, device=x.device).view(-1, 1, *ones), heads.view(-1, *ones), index]


def _pairs(allowed: Tensor | None, index: Tensor, first: int = 0) -> Tensor:
    """Whether the queries from first on may attend to the keys at index (B, h, L, n): bool, broadcastable to it."""
    if allowed is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=index.device)
    L, S = index.shape[2], allowed.shape[-1]
    if allowed.dim() == 2:
        allowed = allowed[None, None]
    if not same_size(allowed.shape[2], 1):
        allowed = allowed[:, :, first : first + L]
    return allowed.expand(*index.shape[:3], S).gather(-1, index)
