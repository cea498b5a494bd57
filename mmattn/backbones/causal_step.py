"""A decoding step of a causal transformer as one function over its layers, for one new token of each text on a CPU.

Such a step reads each weight once, at the speed of memory. What Python does between two products, module by module,
adds a third to its time in int8 (GPT-2's shape, one text and one thread). Results differ from those of the modules by
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import MultiHeadAttention
from ..blocks import Residual
from ..cpu import attend_step
from ..feedforward import ACTIVATIONS, FeedForward
from ..generate import CachedState
from ..kernels import KVCache
from ..kernels.dense import Dense
from ..linears import Int8Linear, PackedLinear
from ..masks import Mask
from ..positions import Rotary

Map = Callable[[Tensor], Tensor]
PACKED = (Int8Linear, PackedLinear, nn.Identity)  # of inference alone, whatever their mode
SMALL = 2**18  # numbers of keys, below which the call of torch's fused attention costs less than that of several steps


class FlatLayer(NamedTuple):
    """A layer as functions."""

    norm: Map
    projections: tuple[Map, ...]  # queries, keys and values, together or apart
    heads: tuple[int, int, int]  # h, h_kv and d
    head_norms: tuple[Map, Map] | None  # of queries and keys
    out: Map
    ffn_norm: Map
    up: Map
    gate: Map | None
    activation: Map
    down: Map


class FlatStack:
    """The layers of a causal transformer as functions; made by `flatten`.

    Args:
        layers: The layers.
        rotary: Rotary positions of all layers, if any.
        norm: The norm at the end, if any.
    """

    def __init__(self, layers: Sequence[FlatLayer], rotary: Rotary | None, norm: Map | None) -> None:
        self.layers, self.rotary, self.norm = layers, rotary, norm

    def step(self, x: Tensor, state: CachedState) -> Tensor:
        """Maps the embeddings (B, 1, E) of new tokens to their states (B, 1, E), and adds them to the caches."""
        B, mask, turn = len(x), None, None
        if state.prompt_mask is not None:
            mask = state.mask(1)
        if self.rotary is not None:
            turn = self.rotary.turn(x, state.length)
        x = x[:, 0]  # (B, E)
        for layer, cache in zip(self.layers, state.caches, strict=True):
            q, k, v = _project(layer, layer.norm(x), turn)  # (B, h, 1, d), (B, h_kv, 1, d) twice
            k, v = cache.append(k, v)
            x = x + layer.out(_attend(q, k, v, mask).reshape(B, -1))
            y = layer.ffn_norm(x)
            hidden = layer.activation(layer.up(y))
            x = x + layer.down(hidden if layer.gate is None else hidden * layer.gate(y))
        return (x if self.norm is None else self.norm(x))[:, None]


def flatten(stack: Any, caches: Iterable[Any]) -> FlatStack | None:
    """Returns a stack as functions; None if a part has another kind than those here, is trained or has hooks.

    Args:
        stack: An `Encoder` of layers with `attention`, `ffn` and the residual connection of each.
        caches: The decoding state of each layer.
    """
    layers, norm = list(stack.layers), stack.norm
    if not layers or any(type(cache) is not KVCache for cache in caches):
        return None
    if any(_is_replaced(module) or (module.training and type(module) not in PACKED) for module in stack.modules()):
        return None
    rotary, found = layers[0].attention.rotary, []
    for layer in layers:
        attention, ffn, residuals = layer.attention, layer.ffn, (layer.attention_residual, layer.ffn_residual)
        kinds = (type(attention), type(getattr(attention, "kernel", None)), type(ffn), *map(type, residuals))
        if kinds != (MultiHeadAttention, Dense, FeedForward, Residual, Residual) or attention.rotary is not rotary:
            return None
        if attention.position_bias is not None or attention.v_head_dim != attention.head_dim:
            return None
        if any(type(one.scale) is not nn.Identity or not one.norm_first for one in residuals):
            return None
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        together = attention.qkv_proj
        head_norms = attention.q_norm, attention.k_norm
        if (head_norms[0] is None) != (head_norms[1] is None):
            return None
        found.append(
            FlatLayer(
                norm=_function(residuals[0].norm),
                projections=tuple(map(_function, maps if together is None else (together,))),
                heads=(attention.num_heads, attention.num_kv_heads, attention.head_dim),
                head_norms=None if head_norms[0] is None else (_function(head_norms[0]), _function(head_norms[1])),
                out=_function(attention.out_proj),
                ffn_norm=_function(residuals[1].norm),
                up=_function(ffn.fc1),
                gate=None if ffn.gate is None else _function(ffn.gate),
                activation=ACTIVATIONS[ffn.activation],
                down=_function(ffn.fc2),
            )
        )
    return FlatStack(found, rotary, None if type(norm) is nn.Identity else _function(norm))


def can_flatten(ids: Tensor) -> bool:
    """Whether a step of these ids (B, L) may be that of `FlatStack`."""
    return (
        ids.shape[1] == 1
        and ids.device.type == "cpu"
        and torch.is_inference_mode_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def _project(layer: FlatLayer, x: Tensor, turn: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, h, 1, d), keys and values (B, h_kv, 1, d) of inputs (B, E), rotated."""
    h, h_kv, d = layer.heads
    if len(layer.projections) == 1:
        every = layer.projections[0](x).view(-1, h + 2 * h_kv, 1, d)
        if layer.head_norms is None:
            both, v = every.split((h + h_kv, h_kv), 1)
            q, k = (both if turn is None else turn(both)).split((h, h_kv), 1)
            return q, k, v
        q, k, v = every.split((h, h_kv, h_kv), 1)
    else:
        q, k, v = (one(x).view(-1, heads, 1, d) for one, heads in zip(layer.projections, (h, h_kv, h_kv), strict=True))
    if layer.head_norms is not None:
        q, k = layer.head_norms[0](q), layer.head_norms[1](k)
    return (q, k, v) if turn is None else (turn(q), turn(k), v)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Attention of one query each, q (B, h, 1, d), k and v (B, h_kv, S, d); every text has a key, the token itself."""
    if k.numel() >= SMALL and (found := attend_step(q, k, v, mask)) is not None:
        return found
    allowed = None if mask is None or mask.key_mask is None else mask.key_mask[:, None, None]  # (B, 1, 1, S)
    return F.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=q.shape[1] != k.shape[1])


def _function(module: nn.Module) -> Map:
    """A module as a function, without what `nn.Module.__call__` does besides; a norm without Python's checks, too."""
    if type(module) is nn.LayerNorm:
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    return module.forward


def _is_replaced(module: nn.Module) -> bool:
    """Whether a module does something besides its own function: hooks, or another one in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
