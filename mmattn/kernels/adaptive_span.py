"""Softmax over a span that each head learns, with a penalty on its length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import add_bias, allowed_keys, attend, dot_scores, masked_softmax
from ..masks import Mask, key_offsets, same_size
from .banded import LOG2E, BandedAttention
from .base import Kernel
from .sliding_window import BLOCK, WindowCache, _in_place


class AdaptiveSpan(Kernel):
    """``m_z(x) exp(s) / sum of m_z(x) exp(s)`` at distance x, z learned per head (Sukhbaatar et al. 2019, section 2.2).

    ``m_z(x) = min(max((ramp + z - x) / ramp, 0), 1)`` decreases from 1 at z to 0 at z + ramp, and each head
    learns z in 0..max_span. `aux_loss` penalizes long spans: ``penalty * mean over heads of z``. The paper is causal;
    without a causal mask x is the distance to either side. A query always attends to its own token.
    Computed in blocks (see `sliding_window`), time and memory grow with L times the longest span.

    Args:
        max_span: Maximum span of a head, in tokens on each side.
        ramp: Tokens over which the mask decreases to zero.
        initial_span: Initial value of z, in tokens, without the ramp.
        penalty: Lambda, per token of mean span; the paper's models use 2e-6 and less.
        dropout: Dropout of attention weights in training.
    """

    kind = "adaptive_span"
    supports = frozenset({"self", "causal", "bias", "cache"})

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        max_span: int = 1024,
        ramp: int = 32,
        initial_span: float = 0.0,
        penalty: float = 2e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_heads, head_dim)
        if max_span < 1 or ramp < 1:
            raise ValueError(f"max_span and ramp must be at least 1 token, found {max_span} and {ramp}")
        if not 0 <= initial_span <= max_span:
            raise ValueError(f"initial_span must be within 0..{max_span} (max_span), found {initial_span}")
        self.max_span, self.ramp, self.penalty, self.dropout = max_span, ramp, penalty, dropout
        self.fraction = nn.Parameter(torch.full((num_heads,), initial_span / max_span))  # z / max_span

    @property
    def spans(self) -> Tensor:
        """Returns z of each head, in tokens: (h,)."""
        return _Clamp.apply(self.fraction) * self.max_span

    def aux_loss(self) -> Tensor | None:
        """Returns the penalty on long spans, or None if its weight is zero; `aux_losses` collects it."""
        return self.penalty * self.spans.mean() if self.penalty else None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: WindowCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        mask = Mask() if mask is None else mask
        if cache is not None:
            if mask.attn_mask is not None:
                raise ValueError("attention kind 'adaptive_span' takes no attn_mask beside a cache")
            k, v, mask = cache.slide(k, v, self.max_span, mask)
        dropout = self.dropout if self.training else 0.0
        if not dropout and cache is None and same_size(q.shape[2], k.shape[2]) and _in_place(q):
            reach = min(self.max_span, math.ceil(float(self.spans.detach().max())) + self.ramp)
            if k.shape[2] > 2 * reach + BLOCK:
                return self._in_blocks(q, k, v, mask, reach)
        return attend(q, k, v, self._spanned(q, k, mask), dropout_p=dropout)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        mask = self._spanned(q, k, Mask() if mask is None else mask)
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, mask))

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> WindowCache:
        if cross:
            self.require({"cross"})
        return WindowCache(keys, values, keys.new_zeros(keys.shape[0], dtype=torch.long))

    def _span(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log m at offsets (...), for ``m exp(s) = exp(s + log m)``, and whether m > 0: (h, ...) both."""
        distance = offsets.abs()
        spans = self.spans.view(-1, *[1] * offsets.dim())
        soft = ((self.ramp + spans - distance) / self.ramp).clamp(0, 1)  # (h, ...): m
        return soft.clamp_min(torch.finfo(soft.dtype).tiny).log(), (soft > 0) & (distance <= self.max_span)

    def _spanned(self, q: Tensor, k: Tensor, mask: Mask) -> Mask:
        """Combines the mask with the span."""
        bias, inside = self._span(key_offsets(q.shape[2], k.shape[2], q.device))  # (h, L, S)
        pairs = inside[None] if mask.attn_mask is None else inside[None] & mask.attn_mask
        return Mask(mask.key_mask, pairs, mask.is_causal, _SpanBias(add_bias(bias[None], mask)[0]))

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, reach: int) -> Tensor:
        """Attends in blocks of queries over the keys within reach; keys beyond every span are not computed."""
        S, right = k.shape[2], 0 if mask.is_causal else reach
        places = torch.arange(-reach, BLOCK + right, device=q.device)  # of the keys, from a block's first query
        offsets = places - torch.arange(BLOCK, device=q.device)[:, None]  # (BLOCK, reach + BLOCK + right)
        table, inside = self._span(offsets)  # (h, BLOCK, reach + BLOCK + right)
        if mask.bias is not None:
            table = table + mask.bias.offsets(offsets)
        table = (table * LOG2E).to(q.dtype).masked_fill(~(inside & (offsets <= right)), float("-inf"))
        key_bias = pairs = None
        if mask.key_mask is not None:
            key_bias = torch.zeros_like(mask.key_mask, dtype=q.dtype).masked_fill_(~mask.key_mask, float("-inf"))
        if mask.attn_mask is not None:
            pairs = mask.attn_mask.expand(*([1, 1] if mask.attn_mask.dim() == 2 else mask.attn_mask.shape[:2]), S, S)
        return BandedAttention.apply(q, k, v, table, key_bias, pairs, reach)[0]


@dataclass(frozen=True)
class _SpanBias:
    """The logarithm of the span's mask plus the position bias, as a bias for fixed lengths."""

    values: Tensor  # (h, L, S)

    def dense(self, L: int, S: int) -> Tensor:
        return self.values

    def offsets(self, offsets: Tensor) -> Tensor:
        raise NotImplementedError


class _Clamp(torch.autograd.Function):
    """Clamps to 0..1 with the gradient of a projected step: at a bound only gradients that lead inside are passed.

    The parameter may exceed a bound by a step; with clamp's gradient, zero there, it could never return.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        outward = ((x <= 0) & (gradient > 0)) | ((x >= 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0)
