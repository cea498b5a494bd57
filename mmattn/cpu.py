"""CPU optimizations of the core. Each function returns the same result as the plain code next to its call.

Decoding steps that read keys and values sequentially, one product for queries, keys and values, batch norms folded into
convolutions, and growable buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import Mask
from .onednn import MANY, convolution, is_plain, linear

FEW = 8  # queries
CHUNK = 2**19  # numbers: intermediate results stay in the CPU's cache


@functools.cache
def computes_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; others convert number by number, many times slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attend_step(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor | None:
    """`mmattn.functional.attend` for a decoding step: few queries, whose time is that of reading keys and values.

    The fused path reads memory head by head and row by row; sequential reads take a third less time.

    Args:
        q: (B, h, L, d).
        k: (B, h, S, d), contiguous by head, as a memory's keys, or by token, as a cache's.
        v: (B, h, S, d_v), likewise.
        mask: Attention mask.
        scale: Scale of the scores; None = 1 / sqrt(d).
        dropout_p: Dropout probability of attention weights.

    Returns:
        (B, h, L, d_v), or None if this path is not faster or not applicable.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or dropout_p:
        return None
    (B, h, L, d), S = q.shape, k.shape[2]
    scale = d**-0.5 if scale is None else scale
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64) or L > FEW or k.shape[1] != h or not S:
        return None
    if mask is not None and (mask.bias is not None or mask.global_mask is not None):
        return None
    by_head = k.is_contiguous() and v.is_contiguous()
    if not by_head and (L > 1 or (mask is not None and mask.attn_mask is not None)):
        return None
    added, empty = (None, False) if mask is None else mask.added(L, S, q.dtype, q.device)
    if empty:  # a query that may attend to nothing gets zeros, which an additive mask cannot express
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


def project_together(
    attention: Any, query: Tensor, key: Tensor | None, query_pos: Tensor | None, cache: Any
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Computes the projections of a self-attention as one product.

    Args:
        attention: A `mmattn.MultiHeadAttention`; the other arguments are those of its `forward`.
        query: (B, L, E).
        key: The key of cross-attention.
        query_pos: (B|1, L, E).
        cache: The decoding state.

    Returns:
        (B, L, h d), (B, L, h_kv d) and (B, L, h_kv d_v), or None if three products are as fast.

    Raises:
        ValueError: The projections are fused, and the call is not plain self-attention.
    """
    alone = key is None and query_pos is None
    maps = (attention.q_proj, attention.k_proj, attention.v_proj)
    if attention.qkv_proj is not None:
        if not alone:
            raise ValueError("the projections are fused: for attention within one sequence, without query_pos")
        together = attention.qkv_proj(query)
    elif (
        not alone
        or query.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not all(map(_is_plain, maps))
        or cache is not None  # it would store all three to use two
        or query.numel() < attention.embed_dim**2  # too few tokens to amortize stacking the weights
    ):
        return None
    else:
        together = linear(query, *_stack(maps))
    sizes = (attention.head_dim, attention.head_dim, attention.v_head_dim)
    heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
    return together.split([n * size for n, size in zip(heads, sizes, strict=True)], dim=-1)


def fuse_projections(attention: Any, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Fuses the query, key and value projections of an attention that is used as self-attention only.

    Projections that are not plain stay as they are: a low-rank update is not part of the weight.

    Args:
        attention: A `mmattn.MultiHeadAttention`.
        make: Maps weight (out, in) and bias (out,) or None to the fused map.
    """
    maps = (attention.q_proj, attention.k_proj, attention.v_proj)
    if not attention.only_self or attention.qkv_proj is not None or not all(map(_is_plain, maps)):
        return
    attention.qkv_proj = make(*_stack(maps))
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, nn.Identity())


def convolve(x: Tensor, branches: Sequence[Any], activation: str | None) -> Tensor | None:
    """Computes ``f(sum of norm(conv x))`` in evaluation, for large maps as one convolution with norms as its scales.

    Args:
        x: (B, C_in, H, W).
        branches: `mmattn.backbones.resnet.ConvNorm`s without their activations; smaller kernels of the same stride are
            added to the center of the first one's.
        activation: f, a name in ACTIVATIONS; None = identity.

    Returns:
        (B, C_out, H', W'), or None in training, with gradients, elsewhere than on CPUs, or if this path is not faster
        or a part was replaced.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return None
    if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return None
    conv = branches[0].conv
    cells = x.numel() // x.shape[1] // conv.stride[0] ** 2  # of the result
    if cells * conv.weight.numel() < MANY or cells < conv.weight[0].numel():  # scaling the weights costs more
        return None
    for branch in branches:
        if branch.conv.weight.dtype != x.dtype or any(map(_is_hooked, (branch, branch.conv, branch.norm))):
            return None
    folded = [one for branch in branches if (one := branch.fold()) is not None]
    if len(folded) < len(branches):
        return None
    (weight, bias), *others = folded
    for small, shift in others:
        edge = (weight.shape[2] - small.shape[2]) // 2
        weight, bias = weight + F.pad(small, [edge] * 4), bias + shift
    return convolution(x, weight, bias, conv, activation)


def _is_plain(module: Any) -> bool:
    """Whether a module is a plain linear map, i.e. not replaced, parametrized or hooked."""
    return is_plain(module) and not _is_hooked(module)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _stack(maps: Iterable[Any]) -> tuple[Tensor, Tensor | None]:
    """Concatenates the weights and biases of linear maps."""
    maps = list(maps)
    weight = torch.cat([m.weight for m in maps])
    if all(m.bias is None for m in maps):
        return weight, None
    return weight, torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in maps])


class GrowableBuffer:
    """A buffer for a tensor (B, h, S, d) that grows in place and is reordered into a second buffer.

    Allocating a tensor at each step would cost more than the computation, as the system clears its pages. If gradients
    may need earlier values, new tensors are allocated nevertheless.
    """

    def __init__(self) -> None:
        self.part: Tensor | None = None  # the tensor last returned: the first S of here
        self.here = self.spare = torch.empty(0, 0, 0, 0)  # (B, room, h, d), B at least

    def append(self, part: Tensor, new: Tensor) -> Tensor:
        """Concatenates part (B, h, S, d) and new (B, h, L, d) to (B, h, S + L, d)."""
        S = part.shape[2]
        if not torch.is_inference_mode_enabled():
            return torch.cat([part, new], dim=2) if S else new
        B, h, L, d = new.shape
        if part is not self.part or self.here.shape[1] < S + L:
            self.here = new.new_empty(B, max(32, 2 * (S + L)), h, d)
            self.here[:, :S] = part.transpose(1, 2)
        self.here[:, S : S + L] = new.transpose(1, 2)
        self.part = self.here[:, : S + L].transpose(1, 2)  # (B, h, S + L, d)
        return self.part

    def select(self, part: Tensor, index: Tensor) -> Tensor:
        """Selects the rows of part (B, h, S, d) given by index (N,): (N, h, S, d)."""
        if part is not self.part or not torch.is_inference_mode_enabled():
            return select_rows(part, index)
        if is_in_order(index, len(part)):
            return part
        (N, S), shape = (len(index), part.shape[2]), self.here.shape
        if self.spare.shape[0] < N or self.spare.shape[1] != shape[1] or self.spare.dtype != self.here.dtype:
            self.spare = self.here.new_empty(N, *shape[1:])
        target = self.spare[:N]
        torch.index_select(self.here[:, :S], 0, index, out=target[:, :S])
        self.here, self.spare = target, self.here
        self.part = self.here[:, :S].transpose(1, 2)  # (N, h, S, d)
        return self.part


def select_rows(x: Tensor, index: Tensor) -> Tensor:
    """Selects the rows of x (B, ...) given by index (N,); returns x itself if these are all rows, in order."""
    return x if is_in_order(index, len(x)) else x.index_select(0, index)


def is_in_order(index: Tensor, rows: int) -> bool:
    """Whether index (N,) lists all rows, in order."""
    return len(index) == rows and torch.equal(index, torch.arange(rows, device=index.device))
