"""Functional attention: the fused path, and the explicit operations that kernels share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import attend_step
from .masks import Mask, same_size


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, *, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Fused softmax attention, ``softmax(scale * q k^T + bias) v`` (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: (B, h, L, d).
        k: (B, h_kv, S, d); h must be a multiple of h_kv (grouped-query: query head i reads head i // (h / h_kv)).
        v: (B, h_kv, S, d_v).
        mask: Attention mask; None = all to all.
        scale: Scale of the scores; None = 1 / sqrt(d).
        dropout_p: Dropout probability of attention weights; above 0 disables the fused path (about half the speed).

    Returns:
        (B, h, L, d_v); zeros for a query that may attend to nothing.

    >>> q, kv = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    >>> attend(q, kv, kv, Mask(is_causal=True)).shape
    torch.Size([2, 4, 5, 8])
    """
    if (found := attend_step(q, k, v, mask, scale, dropout_p)) is not None:
        return found
    L, S = q.shape[-2], k.shape[-2]
    allowed = bias = None
    is_causal = False
    if mask is not None:
        if mask.global_mask is not None:
            raise ValueError("attend does not support global tokens; a kernel with 'global' does")
        alone = mask.key_mask is None and mask.attn_mask is None and mask.bias is None
        is_causal = mask.is_causal and alone and same_size(L, S)  # SDPA's flag is top-left aligned: equal for L == S
        allowed = None if is_causal else mask.dense(L, S, q.device)
        if mask.bias is not None:
            bias = mask.bias.dense(L, S).to(q.dtype)
            bias = bias[None] if bias.dim() == 3 else bias  # (1|B, h, L, S)

    empty = None
    if allowed is not None and (bias is not None or not _sdpa_zeroes_empty_rows(q)):
        empty = ~allowed.any(-1, keepdim=True)  # (..., L|1, 1)
        allowed = allowed | empty
    attn_mask = allowed
    if bias is not None:
        attn_mask = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
    grouped = not same_size(q.shape[1], k.shape[1])
    d, d_v = q.shape[-1], v.shape[-1]
    if d != d_v and q.device.type == "cpu":  # fused CPU kernels need equal sizes; padding is cheap
        scale = d**-0.5 if scale is None else scale
        q, k, v = (F.pad(x, (0, max(d, d_v) - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=grouped)
    out = out[..., :d_v]  # (B, h, L, d_v)
    return out if empty is None else out.masked_fill(empty, 0.0)


def _sdpa_zeroes_empty_rows(q: Tensor) -> bool:
    """Whether SDPA returns zeros for empty rows: CPU kernels with a boolean mask do (tested); others may not."""
    return q.device.type == "cpu" and not torch.compiler.is_exporting()


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the allowed keys; a row without allowed keys is zero, and so is its gradient.

    The lowest finite number replaces minus infinity: a row of minus infinities would give NaN, in backward even if
    forward replaced it.

    Args:
        scores: (B, h, L, S).
        allowed: Bool, broadcastable to scores, or None.

    Returns:
        (B, h, L, S).
    """
    if allowed is None:
        return scores.softmax(-1)
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~allowed, 0.0)


def dot_scores(q: Tensor, k: Tensor, mask: Mask | None = None, scale: float | None = None) -> Tensor:
    """Returns scaled dot products with the mask's position bias, before masking: (B, h, L, S)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return add_bias((q * scale) @ repeat_heads(k, q.shape[1]).transpose(-2, -1), mask)


def add_bias(scores: Tensor, mask: Mask | None) -> Tensor:
    """Adds the mask's position bias, if any, to scores (B, h, L, S)."""
    if mask is None or mask.bias is None:
        return scores
    return scores + mask.bias.dense(scores.shape[-2], scores.shape[-1]).to(scores.dtype)


def allowed_keys(q: Tensor, k: Tensor, mask: Mask | None) -> Tensor | None:
    """Returns the dense boolean mask for these queries and keys, or None."""
    return None if mask is None else mask.dense(q.shape[-2], k.shape[-2], q.device)


def repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """Repeats the heads of grouped-query attention, (B, h_kv, S, d) to (B, num_heads, S, d), in SDPA's order.

    Raises:
        ValueError: num_heads is not a multiple of h_kv.
    """
    if x.shape[1] == num_heads:
        return x
    if num_heads % x.shape[1]:
        raise ValueError(f"{num_heads} query heads cannot share {x.shape[1]} key heads evenly")
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)
