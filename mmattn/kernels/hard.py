"""Hard attention to the best key, or to the k best."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, dot_scores, masked_softmax
from ..masks import Mask
from .base import ExplicitKernel


class Hard(ExplicitKernel):
    """Each query attends to the `top_k` keys with the highest scores ``q k^T / sqrt(d) + bias`` alone.

    With ``top_k = 1`` the best key has weight 1 and the gradient is that of the softmax over all keys: forward
    ``one_hot(argmax)``, backward ``d softmax`` (the straight-through estimator, Bengio et al. 2013, section 4). With
    ``top_k > 1`` the weights are the softmax over the k best, with its exact gradient (Gupta et al. 2021, section 2),
    which suffices to rank them. Ties are resolved in favor of the earlier key.

    Args:
        top_k: Number of keys per query; all keys if there are fewer.
        dropout: Dropout of attention weights in training.
    """

    kind = "hard"

    def __init__(self, num_heads: int, head_dim: int, *, top_k: int = 1, dropout: float = 0.0) -> None:
        super().__init__(num_heads, head_dim)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1 key, found {top_k}")
        self.top_k, self.dropout = top_k, dropout

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        scores, allowed = dot_scores(q, k, mask), allowed_keys(q, k, mask)
        best = self._best(scores, allowed)  # (B, h, L, S)
        if self.top_k > 1:
            return masked_softmax(scores, best)
        if not scores.requires_grad:
            return best.to(scores.dtype)
        soft = masked_softmax(scores, allowed)
        return best.to(soft.dtype) + (soft - soft.detach())  # in this order the added term is exactly zero

    def _best(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """Returns the selected keys: bool, like scores (B, h, L, S), at most top_k per row."""
        lowest = torch.finfo(scores.dtype).min
        scores = scores.detach()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, lowest)
        # topk does not define which of equal scores it returns, but the k-th score. Padded to k keys for any S.
        last = F.pad(scores, (0, self.top_k - 1), value=lowest).topk(self.top_k, dim=-1).values[..., -1:]
        above, equal = scores > last, scores == last
        best = above | (equal & (equal.cumsum(-1) <= self.top_k - above.sum(-1, keepdim=True)))
        return best if allowed is None else best & allowed
