"""Cross-entropy over a large vocabulary by parts of the rows, so that the logits are never whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .onednn import linear

FEW = 2**22  # logits, below which all at once take no more time and little memory
CHUNK = 2**25  # bytes of logits at a time
ROWS = 16  # whose softmax stays in a CPU's cache
TOKENS = 1024  # of the vocabulary: products of another type are added to the weights' gradient so many at a time
IGNORED = -100


def chunked_cross_entropy(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """``cross_entropy(states W^T + b, targets)``, the mean over the targets that count.

    The gradients of states and weight are computed with the loss, one part of the rows after another, so that no more
    than CHUNK bytes of logits exist at a time and none are computed twice (Hsu et al. 2024, section 3.2).

    Args:
        states: (..., E).
        weight: (V, E), of the output projection.
        targets: (...) long.
        bias: (V,) or None.
        ignore_index: Target that does not count.
        label_smoothing: Probability that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).
        chunk: Rows at a time; None = as many as give CHUNK bytes of logits, or all if these are few.

    Returns:
        A scalar, float32 at least; zero if no target counts.

    >>> states, weight = torch.randn(2, 5, 8), torch.randn(100, 8)
    >>> chunked_cross_entropy(states, weight, torch.randint(100, (2, 5)), chunk=3).shape
    torch.Size([])
    """
    states, targets = states.reshape(-1, states.shape[-1]), targets.reshape(-1)  # (N, E), (N,)
    vocabulary = weight.shape[0]
    count = (targets != ignore_index).sum().clamp_min(1)
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    if chunk is None:
        chunk = max(1, CHUNK // (vocabulary * states.element_size()))
        if len(states) * vocabulary <= FEW or not torch.is_grad_enabled():
            parts = [
                _plain(*part, weight, bias, ignore_index, label_smoothing) for part in _split(states, targets, chunk)
            ]
            return torch.stack(parts).sum() / count
    total: Tensor = _Chunked.apply(states, weight, bias, targets, count, ignore_index, label_smoothing, chunk)
    return total


def _split(states: Tensor, targets: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    if torch.is_grad_enabled():
        return [(states, targets)]
    return list(zip(states.split(rows), targets.split(rows), strict=True))


def _plain(
    states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, ignored: int, smoothing: float
) -> Tensor:
    """The sum of the losses of all rows at once."""
    logits = linear(states, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=ignored, label_smoothing=smoothing, reduction="sum")


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        count: Tensor,
        ignored: int,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        options: dict[str, Any] = {"ignored": ignored, "smoothing": smoothing, "chunk": chunk}
        ctx.compute = partial(_sum, **options, needed=ctx.needs_input_grad)
        total, ctx.gradients = ctx.compute(states, weight, bias, targets)
        ctx.save_for_backward(states, weight, bias, targets, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, count = ctx.saved_tensors
        if ctx.gradients is None:  # a second time, with `retain_graph=True`
            ctx.gradients = ctx.compute(states, weight, bias, targets)[1]
        found, ctx.gradients = ctx.gradients, None  # not copied: one is as large as the weights
        scale = grad / count  # only here, since the gradient of the mean vanishes in float16
        parts = zip(found, (states, weight, bias), strict=True)
        return (*(None if part is None else part.mul_(scale).to(x.dtype) for part, x in parts), *[None] * 5)


def _sum(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    ignored: int,
    smoothing: float,
    chunk: int,
    needed: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The sum of the losses, and its gradients with respect to states, weight and bias, those that are needed."""
    kind, wide = states.dtype, torch.promote_types(states.dtype, torch.float32)
    of_states = torch.empty_like(states) if needed[0] else None
    of_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
    of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None
    total = states.new_zeros((), dtype=wide)
    few = ROWS if states.device.type == "cpu" else chunk
    with torch.autocast(states.device.type, enabled=False), torch.no_grad():
        weight, bias = weight.to(kind), None if bias is None else bias.to(kind)
        for first in range(0, len(states), chunk):
            rows = slice(first, first + chunk)
            part, logits = states[rows], linear(states[rows], weight, bias)  # (n, E), (n, V)
            for own, labels in zip(logits.split(few), targets[rows].split(few), strict=True):
                total += _to_gradient(own, labels, ignored, smoothing, wide)
            if of_states is not None:
                torch.mm(logits, weight, out=of_states[rows])
            if of_weight is not None:
                _add_product(of_weight, logits.T, part)
            if of_bias is not None:
                of_bias += logits.sum(0, dtype=wide)
    return total, (of_states, of_weight, of_bias)


def _to_gradient(logits: Tensor, targets: Tensor, ignored: int, smoothing: float, wide: torch.dtype) -> Tensor:
    """The sum of the losses of logits (n, V), which become its gradient, in place."""
    counts = targets != ignored
    index, scale = targets.masked_fill(~counts, 0)[:, None], counts[:, None].to(wide)
    right, peak = logits.gather(1, index).to(wide), logits.amax(-1, keepdim=True).to(wide)
    mean = logits.mean(-1, keepdim=True, dtype=wide) if smoothing else right
    share = torch.softmax(logits, -1, dtype=wide)
    normalizer = peak - share.amax(-1, keepdim=True).log()  # the largest share is at least 1 / V
    loss = normalizer - (1 - smoothing) * right - smoothing * mean
    share.scatter_add_(1, index, torch.full_like(right, smoothing - 1))
    if smoothing:
        share -= smoothing / logits.shape[1]
    if not counts.all():
        share *= scale
    logits.copy_(share)
    return (loss * scale).sum()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``, of (V, n) and (n, E)."""
    if total.dtype == b.dtype:
        total.addmm_(a, b)
        return
    for own, part in zip(total.split(TOKENS), a.split(TOKENS), strict=True):
        own += part @ b
