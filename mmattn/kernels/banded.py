"""Softmax attention of blocks of queries, each over the range of keys around it, without copies of keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2E = math.log2(math.e)
SCORES = 1 << 18  # scores at once: a megabyte of float32, which stays in a core's cache


class Band(NamedTuple):
    """Consecutive blocks of queries; each attends to `width` keys, which begin `block` later for each next block."""

    start: int  # the first query
    rows: int  # queries in a block
    blocks: int  # number of blocks
    low: int  # the first key of the first block
    width: int  # keys per block
    column: int  # column of the first of them in the table of scores


def bands(length: int, block: int, left: int, right: int) -> Iterator[Band]:
    """Splits a sequence into blocks: single ones near an end, which have fewer keys, many at a time elsewhere."""
    width, start = left + block + right, 0
    many = max(1, SCORES // (block * width))
    while start < length:
        low, high = start - left, start + block + right
        if low < 0 or high > length:
            rows = min(block, length - start)
            first, last = max(low, 0), min(start + rows + right, length)
            yield Band(start, rows, 1, first, last - first, first - low)
            start += rows
        else:
            count = min(many, (length - high) // block + 1)
            yield Band(start, block, count, low, width, 0)
            start += count * block


class BandedAttention(torch.autograd.Function):
    """``softmax(scale q k^T + table) v`` where query i attends to the keys i - left .. i + right.

    Scores are computed for as many blocks as fit the CPU's cache; backward recomputes them from their log-sum-exp (Dao
    et al. 2022, section 3.1), so that memory is that of inputs and outputs. Overlapping keys are read in place through
    `unfold`; their gradients are accumulated block by block. Exponentials have base 2: on the CPU torch's `exp2` takes
    a quarter of the time of its `exp`.

    Args of apply:
        q: (B, h, S, d).
        k: (B, h_kv, S, d).
        v: (B, h_kv, S, d_v).
        table: (h|1, block, left + block + right), added to the scores of each block, in base 2: a bias times log2(e),
            minus infinity outside the window.
        key_bias: (B, S), zero or minus infinity, or None.
        pairs: (B|1, h|1, S, S) bool, or None.
        left: keys before a query.

    Returns:
        (B, h, S, d_v), zero for a query without keys; (B, h, S), the log-sum-exp of the scores, a very negative number
        for such a query.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        key_bias: Tensor | None,
        pairs: Tensor | None,
        left: int,
    ) -> tuple[Tensor, Tensor]:
        B, h, S, _ = q.shape
        out = q.new_empty(B, S, h, v.shape[-1]).transpose(1, 2)  # (B, h, S, d_v), ordered for the output projection
        sums = q.new_empty(B, h, S)  # base 2
        lowest = torch.finfo(q.dtype).min
        for piece, scores, _, queries, keys in _pieces(q, k, table, key_bias, pairs, left):
            top = scores.amax(-1, keepdim=True).clamp_(min=lowest)  # (n, b, 1)
            scores.sub_(top).exp2_()
            total = scores.sum(-1, keepdim=True)
            total.masked_fill_(total == 0, 1.0)
            values = _windows(v, piece, *keys).transpose(1, 2)  # (n, w, d_v)
            torch.div(torch.bmm(scores, values), total, out=_rows(out, piece, *queries))
            torch.add(top, total.log2_(), out=_rows(sums.unsqueeze(-1), piece, *queries))
        ctx.save_for_backward(q, k, v, table, key_bias, pairs, out, sums)
        ctx.left = left
        return out, sums / LOG2E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, key_bias, pairs, out, sums = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[3] else None
        shift = (grad_out * out).sum(-1).sub_(grad_sums)  # (B, h, S)
        for piece, weights, other, queries, keys in _pieces(q, k, table, key_bias, pairs, ctx.left):
            q_rows = _rows(q, piece, *queries)  # (n, b, d)
            grad_rows = _rows(grad_out, piece, *queries)  # (n, b, d_v)
            weights.sub_(_rows(sums.unsqueeze(-1), piece, *queries)).exp2_()  # (n, b, w)
            _add_windows(grad_v, torch.bmm(weights.transpose(1, 2), grad_rows), piece, *keys)
            torch.bmm(grad_rows, _windows(v, piece, *keys), out=other)
            other.sub_(_rows(shift.unsqueeze(-1), piece, *queries)).mul_(weights)  # of the scores
            if grad_table is not None:
                head = queries[1] if table.shape[0] > 1 else 0
                grad_table[head, : piece.rows, piece.column : piece.column + piece.width].add_(
                    other.sum(0), alpha=1 / LOG2E
                )
            torch.mul(
                torch.bmm(other, _windows(k, piece, *keys).transpose(1, 2)), scale, out=_rows(grad_q, piece, *queries)
            )
            _add_windows(grad_k, torch.bmm(other.transpose(1, 2), q_rows).mul_(scale), piece, *keys)
        return grad_q, grad_k, grad_v, grad_table, None, None, None


Head = tuple[int, int]  # sample and head


def _pieces(
    q: Tensor, k: Tensor, table: Tensor, key_bias: Tensor | None, pairs: Tensor | None, left: int
) -> Iterator[tuple[Band, Tensor, Tensor, Head, Head]]:
    """Yields the masked scores (n, b, w) in base 2 of each stretch, sample and head, and a buffer of their shape."""
    B, h, S, d = q.shape
    block = table.shape[1]
    right = table.shape[2] - block - left
    space = q.new_empty(2, max(SCORES, table[0].numel()))
    for sample in range(B):
        for head in range(h):
            queries, keys = (sample, head), (sample, head // (h // k.shape[1]))
            for piece in bands(S, block, left, right):
                size = (piece.blocks, piece.rows, piece.width)
                scores, other = (part[: math.prod(size)].view(size) for part in space)
                added = table[head if table.shape[0] > 1 else 0, : piece.rows, piece.column :][:, : piece.width]
                torch.baddbmm(
                    added, _rows(q, piece, *queries), _windows(k, piece, *keys), alpha=LOG2E * d**-0.5, out=scores
                )
                if key_bias is not None:
                    scores.add_(_windows(key_bias[:, None, :, None], piece, sample, 0))
                if pairs is not None:
                    scores.masked_fill_(~_diagonal(pairs, piece, *queries), float("-inf"))
                yield piece, scores, other, queries, keys


def _rows(x: Tensor, piece: Band, sample: int, head: int) -> Tensor:
    """Returns a view (n, b, d) of a stretch's queries in (B, h, S, d)."""
    return x[sample, head, piece.start : piece.start + piece.blocks * piece.rows].unflatten(0, (piece.blocks, -1))


def _windows(x: Tensor, piece: Band, sample: int, head: int) -> Tensor:
    """Returns a view (n, d, w) of the keys of each block of a stretch in (B, h, S, d)."""
    end = piece.low + (piece.blocks - 1) * piece.rows + piece.width
    return x[sample, head, piece.low : end].unfold(0, piece.width, piece.rows)


def _add_windows(x: Tensor, windows: Tensor, piece: Band, sample: int, head: int) -> None:
    """Adds (n, w, d) to the positions of its keys in (B, h, S, d): the parts of one round do not overlap."""
    for first in range(0, piece.width, piece.rows):
        part = windows[:, first : first + piece.rows]  # (n, b, d)
        low = piece.low + first
        there = x[sample, head, low : low + (piece.blocks - 1) * piece.rows + part.shape[1]]
        there.unfold(0, part.shape[1], piece.rows).transpose(1, 2).add_(part)


def _diagonal(pairs: Tensor, piece: Band, sample: int, head: int) -> Tensor:
    """Returns a view (n, b, w) of the pair mask in the blocks of a stretch."""
    B, h = pairs.shape[:2]
    square = pairs[sample if B > 1 else 0, head if h > 1 else 0]  # (S, S)
    down, across = square.stride()
    offset = square.storage_offset() + piece.start * down + piece.low * across
    size = (piece.blocks, piece.rows, piece.width)
    return square.as_strided(size, (piece.rows * (down + across), down, across), offset)
