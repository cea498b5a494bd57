"""Cross-entropy over a large vocabulary by parts of the rows, so that the logits are never whole in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .onednn import linear

FEW = 2**22  # logits, below which all at once take no more time and little memory
CHUNK = 2**22  # logits at a time: 16 MB of float32
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
    than CHUNK logits exist at a time and none are computed twice (Hsu et al. 2024, section 3.2).

    Args:
        states: (..., E).
        weight: (V, E), of the output projection.
        targets: (...) long.
        bias: (V,) or None.
        ignore_index: Target that does not count.
        label_smoothing: Probability that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).
        chunk: Rows at a time; None = as many as give CHUNK logits, or all if these are few.

    Returns:
        A scalar, float32 at least; zero if no target counts.

    >>> states, weight = torch.randn(2, 5, 8), torch.randn(100, 8)
    >>> chunked_cross_entropy(states, weight, torch.randint(100, (2, 5)), chunk=3).shape
    torch.Size([])
    """
    states, targets = states.reshape(-1, states.shape[-1]), targets.reshape(-1)  # (N, E), (N,)
    vocabulary = weight.shape[0]
    count = (targets != ignore_index).sum().clamp_min(1)
    if chunk is None:
        if len(states) * vocabulary <= FEW or not torch.is_grad_enabled():
            rows = max(1, CHUNK // vocabulary)
            parts = [
                _plain(*part, weight, bias, ignore_index, label_smoothing) for part in _split(states, targets, rows)
            ]
            return torch.stack(parts).sum() / count
        chunk = max(1, CHUNK // vocabulary)
    if torch.is_autocast_enabled(states.device.type):
        kind = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
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
        wide = torch.promote_types(states.dtype, torch.float32)
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        total = states.new_zeros((), dtype=wide)
        vocabulary = weight.shape[0]
        with torch.autocast(states.device.type, enabled=False), torch.no_grad():
            for first in range(0, len(states), chunk):
                rows, part = slice(first, first + chunk), states[first : first + chunk]
                own = targets[rows]
                counts = own != ignored
                index = own.masked_fill(~counts, 0)[:, None]
                logits = linear(part, weight, bias).to(wide)  # (n, V)
                peak = logits.amax(-1, keepdim=True)
                right = logits.gather(1, index)
                mean = logits.mean(-1, keepdim=True) if smoothing else right
                share = logits.sub_(peak).exp_()  # in place of the logits
                sums = share.sum(-1, keepdim=True)
                loss = sums.log() + peak - (1 - smoothing) * right - smoothing * mean
                total += loss[:, 0].masked_fill(~counts, 0.0).sum()
                if of_states is None and of_weight is None:
                    continue
                scale = counts[:, None].to(wide)  # (n, 1)
                share.mul_(scale / sums)  # the gradient of the sum: that of the mean vanishes in float16
                share.scatter_add_(1, index, (smoothing - 1) * scale)
                if smoothing:
                    share.sub_(smoothing / vocabulary * scale)
                share = share.to(weight.dtype)
                if of_states is not None:
                    of_states[rows] = linear(share, weight.T) if share.dtype == torch.float32 else share @ weight
                if of_weight is not None:
                    own_weight = linear(share.T, part.T) if share.dtype == torch.float32 else share.T @ part
                    of_weight += own_weight
                if of_bias is not None:
                    of_bias += share.sum(0)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.count = count
        ctx.kinds = (states.dtype, weight.dtype)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        each = grad / ctx.count
        found = [
            None if part is None else (part * each).to(ctx.kinds[n > 0]) for n, part in enumerate(ctx.saved_tensors)
        ]
        return (*found, None, None, None, None, None)
