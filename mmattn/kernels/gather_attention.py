"""Attention of groups of queries over gathered keys, a few groups at a time, with the memory of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..masks import Bias

SCORES = 1 << 20  # scores at once: the keys gathered for them stay in a core's cache

Attend = Callable[..., Tensor]


def attend_gathered(attend: Attend, index: Tensor, k: Tensor, v: Tensor, *rows: Tensor, scores: int) -> Tensor:
    """``attend(k[index], v[index], *rows)``, group by group.

    Copies of keys and values for all groups at once are many times as large as the inputs, and allocating that memory
    costs more than the arithmetic. Backward gathers and attends again (as in Chen et al. 2016, section 4).

    Args:
        attend: Takes the gathered keys (m, w, .., d) and values (m, w, .., d_v) of m groups, and m of each of rows.
        index: (N, w) long, the indices into k and v of each group.
        k: (M, .., d).
        v: (M, .., d_v).
        rows: (N, ..) each, other tensors of the groups; those of floating point get gradients.
        scores: Number of scores per group, which determines the number of groups at once.

    Returns:
        (N, ..), the results of attend.
    """
    if k.device.type != "cpu" or torch.compiler.is_compiling():  # launches cost more than memory; one graph for all
        return attend(_pick(k, index), _pick(v, index), *rows)
    return _GatherAttention.apply(attend, max(1, SCORES // scores), index, k, v, *rows)


def bias_by_head(bias: Bias, offsets: Tensor, limit: int) -> Tensor:
    """Returns a position bias at offsets that differ between heads, (B, h|1, ..) long: (B, h, ..).

    Looked up in a table of all offsets within limit on both sides, which is linear in length.
    """
    table = bias.offsets(torch.arange(1 - limit, limit, device=offsets.device))  # (h, 2 limit - 1)
    head = torch.arange(table.shape[0], device=offsets.device).view(1, -1, *[1] * (offsets.dim() - 2))
    places = offsets + (limit - 1) + head * table.shape[1]  # (B, h, ..)
    return table.flatten().index_select(0, places.flatten()).view(places.shape)


class _GatherAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attend: Attend, size: int, index: Tensor, k: Tensor, v: Tensor, *rows: Tensor) -> Tensor:
        device = k.device.type
        ctx.attend, ctx.size = attend, size
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(index, k, v, *rows)
        return torch.cat([attend(_pick(k, i), _pick(v, i), *row) for i, *row in _pieces(size, index, *rows)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, k, v, *rows = ctx.saved_tensors
        tables = torch.zeros_like(k), torch.zeros_like(v)
        found: list[list[Tensor]] = [[] for _ in rows]
        for i, above, *row in _pieces(ctx.size, index, grad, *rows):
            given = [x.detach() for x in (_pick(k, i), _pick(v, i), *row)]
            wanted = [x.requires_grad_() for x in given if x.is_floating_point()]
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                out = ctx.attend(*given)
            grads = iter(torch.autograd.grad(out, wanted, above))
            for table in tables:
                table.index_add_(0, i.flatten(), next(grads).flatten(0, 1))
            for parts, x in zip(found, row, strict=True):
                if x.is_floating_point():
                    parts.append(next(grads))
        return None, None, None, *tables, *(torch.cat(parts) if parts else None for parts in found)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def _pieces(size: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(size) for x in rows), strict=True)
