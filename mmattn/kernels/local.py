"""Softmax over a window around one position of the source per query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import allowed_keys, attend, dot_scores, masked_softmax, repeat_heads
from ..masks import Mask
from .base import Cache, Kernel, KVCache
from .monotonic import take_rows

WORTH = 32  # gathering keys per query is faster for sources of at least this many windows


@dataclass
class LocalCache(Cache):
    """The number of queries so far, i.e. the aligned position of the next one."""

    seen: Tensor  # (B,) long

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class Local(Kernel):
    """Attends to the keys at most `window` from an aligned position p_t (Luong et al. 2015, section 3.2).

    With ``predict`` (local-p), ``p_t = S sigmoid(v^T tanh(W q_t))``, W and v learned per head, and the weights are
    ``softmax_s(q_t k_s / sqrt(d)) exp(-(s - p_t)^2 / (2 sigma^2))``, sigma = window / 2: the softmax runs over the
    window, and the Gaussian, through which p_t is learned, is not normalized again. S and s (from 0) count only the
    keys that the query may attend to: padding at any position has no effect, and under a causal mask S ends at the
    query. The cost is that of the windows, unless a mask over pairs or a bias is given.

    Without (local-m), ``p_t = t`` and the weights are the softmax alone. Queries and keys are assumed to advance at the
    same rate: in cross-attention keys past L + window are never attended to, and a query past S + window gets zeros.
    Under a causal mask the last query is at the last key.

    Args:
        window: D, keys on each side of the aligned position.
        predict: Whether each query predicts its position; otherwise it is the query's own.
        dropout: Dropout of attention weights in training.
    """

    kind = "local"
    supports = frozenset({"self", "causal", "cross", "bias", "cache"})

    def __init__(
        self, num_heads: int, head_dim: int, *, window: int = 10, predict: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(num_heads, head_dim)
        if window < 1:
            raise ValueError(f"window must be at least 1 token, found {window}")
        self.window, self.predict, self.dropout = window, predict, dropout
        if predict:
            self.project = nn.Parameter(torch.randn(num_heads, head_dim, head_dim) * head_dim**-0.5)  # W
            self.place = nn.Parameter(torch.randn(num_heads, head_dim) * head_dim**-0.5)  # v

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | LocalCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        start: int | Tensor | None = None
        if isinstance(cache, KVCache):
            k, v = cache.append(k, v)
            start = k.shape[2] - q.shape[2]
        elif cache is not None:
            start = cache.seen[:, None, None, None]
            cache.seen = cache.seen + q.shape[2]
        if not self.predict:
            return attend(q, k, v, self._aligned(q, k, mask, start), dropout_p=self.dropout if self.training else 0.0)
        plain = mask is None or (mask.attn_mask is None and mask.bias is None)
        S, enough = k.shape[2], WORTH * (2 * self.window + 1)
        if plain and isinstance(S, int) and enough < S and not torch.compiler.is_compiling():
            weights, index = self._gathered(q, k, Mask() if mask is None else mask)  # (B, h, L, w) both
            weights = nn.functional.dropout(weights, self.dropout, self.training)
            return (weights[:, :, :, None] @ take_rows(v, index)).squeeze(3)  # (B, h, L, d_v)
        weights = nn.functional.dropout(self._predicted(q, k, mask), self.dropout, self.training)
        return weights @ repeat_heads(v, q.shape[1])

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        if self.predict:
            return self._predicted(q, k, mask)
        mask = self._aligned(q, k, mask)
        return masked_softmax(dot_scores(q, k, mask), allowed_keys(q, k, mask))

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> KVCache | LocalCache | None:
        if cross and not self.predict:
            return LocalCache(keys.new_zeros(keys.shape[0], dtype=torch.long))
        return super().make_cache(keys, values, cross=cross)

    def _aligned(self, q: Tensor, k: Tensor, mask: Mask | None, start: int | Tensor | None = None) -> Mask:
        """Returns the mask with local-m's window; start is the first query's position, (B, 1, 1, 1) if a tensor."""
        mask = Mask() if mask is None else mask
        L, S = q.shape[2], k.shape[2]
        if start is None:
            start = S - L if mask.is_causal else 0
        queries = torch.arange(L, device=q.device)[:, None] + start  # (L, 1) or (B, 1, L, 1)
        near = (torch.arange(S, device=q.device) - queries).abs() <= self.window  # (L, S) or (B, 1, L, S)
        return Mask(mask.key_mask, near if mask.attn_mask is None else near & mask.attn_mask, mask.is_causal, mask.bias)

    def _predicted(self, q: Tensor, k: Tensor, mask: Mask | None) -> Tensor:
        allowed = allowed_keys(q, k, mask)
        if allowed is None:
            allowed = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
        seen = allowed.cumsum(-1)  # (1|B, 1|h, 1|L, S)
        distance = (seen - 1) - self._position(q, seen[..., -1:])  # (B, h, L, S)
        return self._weigh(dot_scores(q, k, mask), allowed, distance)

    def _gathered(self, q: Tensor, k: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Returns the weights of the keys in the window, and their indices: (B, h, L, w) both."""
        L, S, width = q.shape[2], k.shape[2], 2 * self.window + 1
        real = k.new_ones(1, S, dtype=torch.bool) if mask.key_mask is None else mask.key_mask
        ends = torch.arange(S - L, S, device=q.device) if mask.is_causal else torch.full((1,), S - 1, device=q.device)
        seen = nn.functional.pad(real.cumsum(1), (1, 0))[:, (ends + 1).clamp_min(0)]  # (1|B, 1|L)
        total = seen[:, None, :, None]  # (1|B, 1, 1|L, 1)
        position = self._position(q, total)  # (B, h, L, 1)
        places = (position.detach() - self.window).ceil().long() + torch.arange(width, device=q.device)  # (B, h, L, w)
        order = real.int().argsort(dim=1, descending=True, stable=True)  # (1|B, S): the real keys first
        index = order.expand(q.shape[0], S).gather(1, places.clamp(0, S - 1).flatten(1)).view_as(places)
        scores = ((q * self.head_dim**-0.5)[:, :, :, None] @ take_rows(k, index).transpose(-2, -1)).squeeze(3)
        return self._weigh(scores, (places >= 0) & (places < total), places - position), index

    def _position(self, q: Tensor, total: Tensor) -> Tensor:
        """Returns p_t, (B, h, L, 1), for S = total, in float32 at least: half precision cannot count past 256."""
        logit = (q @ self.project).tanh() @ self.place[:, :, None]  # (B, h, L, 1)
        return total * logit.to(torch.promote_types(q.dtype, torch.float32)).sigmoid()

    def _weigh(self, scores: Tensor, allowed: Tensor, distance: Tensor) -> Tensor:
        """Returns the softmax within the window times the Gaussian; distance is s - p_t."""
        weights = masked_softmax(scores, allowed & (distance.abs() <= self.window))
        return weights * (-2 * (distance / self.window).square()).exp().to(weights.dtype)  # sigma = window / 2
