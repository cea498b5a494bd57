"""The difference of two softmax maps, which cancels common attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import allowed_keys, attend, dot_scores, masked_softmax
from ..masks import Mask
from .base import Kernel, KVCache

EPSILON = 1e-5  # under the root of the normalization


class Differential(Kernel):
    """``(1 - l0) norm((A1 - l A2) v)``, ``A1 = softmax(q1 k1^T / sqrt(d/2))``, A2 alike (Ye et al. 2024, section 2.1).

    The halves of each query and key are q1, q2 and k1, k2, so that d is the paper's 2d. ``l = exp(lambda_q1 lambda_k1)
    - exp(lambda_q2 lambda_k2) + l0`` is one number for all heads. The norm is the root mean square norm
    of each head's output, without a gain, which the output projection can absorb. The weights are ``A1 - l A2``: some
    may be negative, and `finish` normalizes their weighted sum.

    Args:
        lambda_init: l0; None = 0.8.
        layer: Alternatively, the depth l of the layer, from 0, with ``l0 = 0.8 - 0.6 exp(-0.3 l)``.

    Raises:
        ValueError: head_dim is odd, both options are given, or lambda_init is not within 0..1.
    """

    kind = "differential"
    supports = frozenset({"self", "causal", "cross", "bias", "cache"})

    def __init__(
        self, num_heads: int, head_dim: int, *, lambda_init: float | None = None, layer: int | None = None
    ) -> None:
        super().__init__(num_heads, head_dim)
        if head_dim % 2:
            raise ValueError(f"attention kind 'differential' halves each head: head_dim must be even, found {head_dim}")
        if lambda_init is not None and layer is not None:
            raise ValueError(f"give lambda_init or layer, not both: found {lambda_init} and {layer}")
        if layer is not None:
            lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.lambda_init = 0.8 if lambda_init is None else lambda_init
        if not 0 <= self.lambda_init < 1:
            raise ValueError(f"lambda_init must be within 0..1, 1 excluded, found {self.lambda_init}")
        half = head_dim // 2
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(0.1 * torch.randn(half)) for _ in range(4)
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        if cache is not None:
            k, v = cache.append(k, v)
        scale = (self.head_dim // 2) ** -0.5
        plus, minus = (attend(half, k, v, mask, scale=scale) for half in self._halves(q))  # (B, h, L, d_v)
        return self.finish(plus - self._lambda() * minus)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        scale, allowed = (self.head_dim // 2) ** -0.5, allowed_keys(q, k, mask)
        plus, minus = (masked_softmax(dot_scores(half, k, mask, scale), allowed) for half in self._halves(q))
        return plus - self._lambda() * minus

    def finish(self, out: Tensor) -> Tensor:
        return F.rms_norm(out, out.shape[-1:], eps=EPSILON) * (1 - self.lambda_init)

    def _halves(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns q1 and q2, each with zeros for the other: products with k are then those with its half.

        Halves of keys are equivalent, but half the size of values, and the fused path needs equal sizes.
        """
        half = self.head_dim // 2
        return F.pad(q[..., :half], (0, half)), F.pad(q[..., half:], (half, 0))  # (B, h, L, d) each

    def _lambda(self) -> Tensor:
        first, second = self.lambda_q1 @ self.lambda_k1, self.lambda_q2 @ self.lambda_k2
        return first.exp() - second.exp() + self.lambda_init
