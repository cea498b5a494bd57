"""Attention in a step of decoding on a CPU: few queries, whose time goes into reading keys and values.

The fused path jumps from head to head and from row to row; going through memory in order takes a third less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import Mask

FEW = 8  # queries
CHUNK = 2**19  # numbers: what is between the products stays in the processor's cache


def attend_step(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float) -> Tensor | None:
    """As `mmattn.functional.attend`, where this is the faster way; None where it is not, or cannot be.

    Args:
        q: (B, h, L, d).
        k: (B, h, S, d), laid out head by head, as a memory's keys are, or token by token, as a cache's are.
        v: (B, h, S, d_v), likewise.
        mask: who may attend to whom.
        scale: of the scores.

    Returns:
        (B, h, L, d_v), or None.
    """
    (B, h, L, d), S = q.shape, k.shape[2]
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64) or L > FEW or k.shape[1] != h or not S:
        return None
    if mask is not None and (mask.bias is not None or mask.global_mask is not None):
        return None
    by_head = k.is_contiguous() and v.is_contiguous()
    if not by_head and (L > 1 or (mask is not None and mask.attn_mask is not None)):
        return None
    added, empty = (None, False) if mask is None else mask.added(L, S, q.dtype, q.device)
    if empty:  # a query that may attend to nothing gets zeros, and no number to add says so
        return None
    if by_head:
        start = q.new_zeros(1) if added is None else added
        scores = torch.baddbmm(
            start.expand(B, h, L, S).reshape(B * h, L, S),
            q.reshape(B * h, L, d),
            k.view(B * h, S, d).mT,
            beta=0 if added is None else 1,
            alpha=scale,
        )  # (B h, L, S)
        return torch.bmm(scores.softmax(-1), v.view(B * h, S, -1)).view(B, h, L, -1)  # (B, h, L, d_v)
    q, k, v = (x.transpose(1, 2) for x in (q * scale, k, v))  # (B, 1, h, d), (B, S, h, d), (B, S, h, d_v)
    added = None if added is None else added.view(-1, S, 1)  # (B, S, 1)
    rows = max(1, CHUNK // (S * h * d))
    if rows >= B:
        return _by_token(q, k, v, added)
    masks = [None] * -(-B // rows) if added is None else added.expand(B, S, 1).split(rows)
    parts = zip(q.split(rows), k.split(rows), v.split(rows), masks, strict=True)
    return torch.cat([_by_token(*part) for part in parts])  # (B, h, 1, d_v)


def _by_token(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    scores = torch.linalg.vecdot(k, q)  # (B, S, h)
    if added is not None:
        scores = scores + added
    return (v * scores.softmax(1)[..., None]).sum(1)[:, :, None]  # (B, h, 1, d_v)
