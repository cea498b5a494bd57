"""Locality-sensitive hashing attention among tokens of the same bucket, sorted by bucket and split into chunks."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import dot_scores, masked_softmax, repeat_heads
from ..masks import Mask
from .base import Kernel, count_blocks
from .gather_attention import attend_gathered, bias_by_head

ROTATIONS = 64  # for a number of buckets that depends on the length: enough for 16,384 buckets
EPSILON = 1e-6  # floor of the norm of a key, as in the authors' code


class _Order(NamedTuple):
    """Tokens sorted by bucket, in each of R rounds, and split into n chunks of c; N = n c tokens including padding."""

    queries: Tensor  # (B, h, R, n, c) long: the token at each place
    keys: Tensor  # (B, h, R, n, w) long: the tokens of the chunk and of adjacent chunks
    rank: Tensor  # (B, h, R, N) long: the place of each token
    query_places: Tensor  # (B, h, R, n, r, c): comparable with key_places; of r rounds, its own first
    key_places: Tensor  # (B, h, R, n, r, w)
    reach: tuple[int, int]  # lowest and highest query place minus key place of visible keys
    real: Tensor  # (B, N) bool


class LSH(Kernel):
    """``softmax(q_i q_j / |q_j|)`` over the tokens j of the same bucket (Kitaev et al. 2020, section 2).

    ``bucket(q) = argmax [q R; -q R]``, R random, so that vectors of similar directions share a bucket. In each of
    `num_hashes` rounds the tokens are sorted by bucket and position, and a token attends to those of its bucket at most
    `chunk` places before it or, bidirectional, after it. The rounds are combined in one softmax, in which a key of N
    rounds counts once, by ``- log N`` on its score (appendix A). A token attends to itself only if there are no others.

    With `across_buckets`, a token attends to all tokens in the same and the adjacent chunk of the sorted order instead,
    counted once per round, as in the authors' released models. Later tokens then affect which earlier ones share a
    chunk, so under a causal mask the content of future tokens is hidden, but their presence can affect the output.

    Padding belongs to no bucket: padding tokens neither attend nor are attended to.

    Args:
        num_hashes: Number of rounds.
        num_buckets: Number of buckets, even; None = about two per chunk of real tokens, from a pair of hashes.
        chunk: Window in places on each side, and the size of a chunk.
        across_buckets: See above.
        seed: Seed of the random rotations.

    Raises:
        ValueError: A number is out of range.
    """

    kind = "lsh"
    supports = frozenset({"self", "causal", "bias"})
    shares_qk = True
    rotations: Tensor  # (1|2, h, R, d, F): the hashes of a pair, or the one

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        num_hashes: int = 2,
        num_buckets: int | None = None,
        chunk: int = 64,
        across_buckets: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(num_heads, head_dim)
        if num_hashes < 1 or chunk < 1:
            raise ValueError(f"num_hashes and chunk must be at least 1, found {num_hashes} and {chunk}")
        if num_buckets is not None and (num_buckets < 2 or num_buckets % 2):
            raise ValueError(
                f"num_buckets must be even: each random direction defines two buckets, found {num_buckets}"
            )
        self.num_hashes, self.num_buckets, self.chunk = num_hashes, num_buckets, chunk
        self.across_buckets = across_buckets
        hashes, size = (2, ROTATIONS) if num_buckets is None else (1, num_buckets // 2)
        rotations = torch.randn(
            hashes, num_heads, num_hashes, head_dim, size, generator=torch.Generator().manual_seed(seed), device="cpu"
        )
        self.register_buffer("rotations", rotations, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: None = None) -> Tensor:
        self.check(mask, cache)
        mask = Mask() if mask is None else mask
        B, h, S, d = q.shape
        order = self._sort(q, k, mask)
        _, _, R, n, c = order.queries.shape
        w = order.keys.shape[-1]
        q = F.pad(q, (0, 0, 0, n * c - S))  # (B, h, N, d)
        v = F.pad(repeat_heads(v, h), (0, 0, 0, n * c - S)).flatten(0, 2)  # (B h N, d_v)
        k = _keys(q).flatten(0, 2)  # (B h N, d)
        first = torch.arange(B * h, device=q.device).view(B, h, 1, 1, 1) * (n * c)
        queries = q.flatten(0, 2).index_select(0, (order.queries + first).flatten()).view(B, h, R, n, c, d)
        groups = [queries * d**-0.5, order.query_places, order.key_places]
        if mask.bias is not None:
            offsets = order.keys[..., None, :] - order.queries[..., :, None]  # (B, h, R, n, c, w)
            groups.append(bias_by_head(mask.bias, offsets, n * c))
        groups = [x.flatten(0, 3) for x in groups]  # (B h R n, ..)
        attend = partial(_attend_chunks, order.reach)
        picks = (order.keys + first).flatten(0, 3)  # (B h R n, w)
        out = attend_gathered(attend, picks, k, v, *groups, scores=c * w * order.key_places.shape[-2])
        # (B h R n, c, d_v + 1), back to the order of the sequence:
        stands = torch.arange(B * h * R, device=q.device).view(B, h, R, 1) * (n * c) + order.rank
        out = out.flatten(0, 1).index_select(0, stands.flatten()).unflatten(0, stands.shape)  # (B, h, R, N, d_v + 1)
        out = (out[..., -1:].softmax(2) * out[..., :-1]).sum(2)  # (B, h, N, d_v)
        return out.masked_fill(~order.real[:, None, :, None], 0.0)[:, :, :S].to(v.dtype)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        mask = Mask() if mask is None else mask
        S = q.shape[2]
        order = self._sort(q, k, mask)
        N = order.rank.shape[-1]
        met = _compare(order.query_places, order.key_places, order.reach)[0]  # (B, h, R, n, c, w)
        pairs = (order.queries[..., :, None] * N + order.keys[..., None, :]).flatten(2)  # (B, h, R n c w)
        counts = q.new_zeros(*q.shape[:2], N * N).scatter_add(-1, pairs, met.flatten(2).to(q.dtype))
        counts = counts.unflatten(-1, (N, N))[..., :S, :S] * order.real[:, None, :S, None]  # (B, h, S, S)
        if not self.across_buckets:
            counts = counts.clamp(max=1)
        itself = torch.eye(S, dtype=torch.bool, device=q.device)
        others = (counts > 0) & ~itself
        allowed = others | (itself & (counts > 0) & ~others.any(-1, keepdim=True))
        return masked_softmax(dot_scores(q, _keys(q), mask) + counts.clamp_min(1).log(), allowed)

    def check(self, mask: Mask | None, cache: object = None) -> None:
        super().check(mask, cache)
        if mask is not None and mask.attn_mask is not None:
            raise ValueError(
                "attention kind 'lsh' compares only tokens of one bucket: it supports key_mask, but not attn_mask"
            )

    def buckets(self, q: Tensor, count: Tensor) -> Tensor:
        """Returns the bucket of each token in each round.

        Args:
            q: (B, h, S, d).
            count: (B,) long, the number of real tokens of each sample, on which the number of buckets may depend.

        Returns:
            (B, h, R, S) long.
        """
        rotations, size = self.rotations.to(q.dtype), self.rotations.shape[-1]
        used = None
        if self.num_buckets is None:  # a pair of hashes with u rotations each has (2 u)^2 buckets, 2 per chunk
            steps = 2 * self.chunk * torch.arange(1, size + 1, device=q.device) ** 2
            used = (count[:, None] >= steps).sum(-1)[:, None, None, None, None]  # (B, 1, 1, 1, 1)
            if isinstance(q.shape[2], int):  # rotations that this length cannot use are skipped
                size = max(1, sum(2 * self.chunk * u * u <= q.shape[2] for u in range(1, size + 1)))
        turned = torch.einsum("bhsd,xhrdf->xbhrsf", q.detach(), rotations[..., :size])
        length = turned.abs()
        if used is not None:
            length = length.masked_fill(torch.arange(size, device=q.device) >= used, -1.0)
        axis = length.argmax(-1, keepdim=True)  # (1|2, B, h, R, S, 1)
        total = self.rotations.shape[-1]
        bucket = (axis + total * (turned.gather(-1, axis) < 0)).squeeze(-1)  # the argmax of [q R; -q R]
        if used is None:
            return bucket[0]
        return (bucket[0] * (2 * total) + bucket[1]).masked_fill(used[..., 0] == 0, 0)

    def _sort(self, q: Tensor, k: Tensor, mask: Mask) -> _Order:
        if q.shape != k.shape:
            raise ValueError(
                f"attention kind 'lsh' shares queries and keys: k must be q, found shapes {tuple(k.shape)} and "
                f"{tuple(q.shape)}"
            )
        B, h, S, _ = q.shape
        R, chunk = self.num_hashes, self.chunk
        c = min(chunk, S) if isinstance(S, int) else chunk
        n = count_blocks(S, c)
        token = torch.arange(n * c, device=q.device)
        real = (token < S).expand(B, -1) if mask.key_mask is None else F.pad(mask.key_mask, (0, n * c - S))  # (B, N)
        count = real.sum(-1)  # (B,)
        bucket = self.buckets(F.pad(q, (0, 0, 0, n * c - S)), count)  # (B, h, R, N)
        last = (2 * self.rotations.shape[-1]) ** self.rotations.shape[0]
        seat = bucket.masked_fill(~real[:, None, None], last) * (n * c) + token
        order = seat.argsort(-1)  # (B, h, R, N), padding last
        rank = torch.zeros_like(order).scatter(-1, order, token.expand_as(order))
        queries = order.unflatten(-1, (n, c))

        sides = torch.arange(-1, 1 if mask.is_causal else 2, device=q.device)
        if isinstance(n, int) and n == 1:
            sides = sides[1:2]  # a single chunk has no neighbors
        chunks = torch.arange(n, device=q.device)[:, None] + sides  # (n, 1..3)
        rounds = torch.arange(R, device=q.device)[:, None, None]
        filled = ((count + c - 1) // c)[:, None, None, None]  # (B, 1, 1, 1): chunks with real tokens
        inside = (chunks >= 0) & (chunks < n)
        if self.across_buckets:  # the first chunk of a round follows the last of the preceding round
            under, over = chunks < 0, (chunks == filled) & (sides == 1)
            rounds = (rounds + over.long() - under.long()) % R
            chunks = torch.where(under, filled - 1, torch.where(over, 0, chunks))
            inside = torch.ones_like(inside)
        beside = (rounds * n + chunks.clamp(0, n - 1)).expand(B, R, *inside.shape)  # (B, R, n, sides)
        beside = beside.flatten(1)[:, None, :, None].expand(-1, h, -1, c)
        keys = queries.flatten(2, 3).gather(2, beside).view(B, h, R, n, -1)  # (B, h, R, n, w)
        inside = inside.repeat_interleave(c, dim=-1)[:, None]  # (n, 1, w)

        if self.across_buckets:  # positions, with padding out of reach
            places = token.where(real, -n * c - 1 - token)[:, None, None, None].expand(B, h, R, 1, -1)
            reach = (0 if mask.is_causal else -n * c, n * c)
        else:  # buckets are separated by more than a chunk, so one difference decides visibility
            padding = -(chunk + 1) * (token + 1)
            places = (rank + bucket * (chunk + 1)).where(real[:, None, None], padding)  # (B, h, R, N)
            turn = (torch.arange(R, device=q.device)[:, None] + torch.arange(R, device=q.device)) % R
            places, reach = places[:, :, turn], (0 if mask.is_causal else -chunk, chunk)  # (B, h, R, r, N)
        places = places.int()  # half as wide as an index
        query_places, key_places = (_lookup(places, x) for x in (queries, keys))
        key_places = key_places.masked_fill(~inside, -(chunk + 1) * (n * c + 2))
        return _Order(queries, keys, rank, query_places, key_places, reach, real)


def _lookup(places: Tensor, tokens: Tensor) -> Tensor:
    """Returns the places (B, h, R, r, N) of tokens (B, h, R, n, m): (B, h, R, n, r, m)."""
    index = tokens.flatten(3)[:, :, :, None].expand(-1, -1, -1, places.shape[3], -1)
    return places.gather(-1, index).unflatten(-1, tokens.shape[3:]).transpose(3, 4)


def _compare(query_places: Tensor, key_places: Tensor, reach: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Compares places (.., r, c) and (.., r, w) in this round and the others.

    Returns:
        (.., c, w) each: whether a pair is visible in this round; whether it is one token; its number of rounds.
    """
    gap = query_places[..., :, None] - key_places[..., None, :]  # (.., r, c, w)
    near = (gap >= reach[0]) & (gap <= reach[1])
    return near[..., 0, :, :], gap[..., 0, :, :] == 0, near.sum(-3)


def _attend_chunks(
    reach: tuple[int, int],
    k: Tensor,
    v: Tensor,
    q: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Attends within each of m chunks.

    Args:
        reach: See _Order, as for the places.
        k: (m, w, d).
        v: (m, w, d_v).
        q: (m, c, d), scaled.
        query_places: (m, r, c) long.
        key_places: (m, r, w) long.
        bias: (m, c, w) or None.

    Returns:
        (m, c, d_v + 1): the weighted sums, and the log-sum-exp over the keys, by which rounds are combined.
    """
    met, itself, often = _compare(query_places, key_places, reach)  # (m, c, w)
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if query_places.shape[1] > 1:
        scores = scores - often.clamp_min(1).to(scores.dtype).log()
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(itself, lowest / 4).masked_fill(~met, lowest)
    # Not exp(scores - total): among the lowest numbers a log-sum-exp equals its largest term.
    total = scores.logsumexp(-1, keepdim=True)  # (m, c, 1)
    return torch.cat([scores.softmax(-1).masked_fill(~met, 0.0) @ v, total], dim=-1)


def _keys(q: Tensor) -> Tensor:
    """Returns the keys of queries (B, h, S, d), normalized to sqrt(d), which the scale of the scores cancels."""
    return q * ((q * q).mean(-1, keepdim=True) + EPSILON).rsqrt()
