"""How a row of the core's checks is made: a kernel or module, how to call it, its naive form, how it decodes.

The rows themselves stand in rows_*.py; rows.py puts them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import naive
import torch
from naive import Allowed
from torch import nn

from mmattn import Mask, MultiHeadAttention, build_kernel

E, HEADS, HEAD_DIM, V_HEAD_DIM = 8, 2, 4, 3
Length = int | tuple[int, ...]


@dataclass
class Row:
    """A kernel or module, called on x (B, L, .) and y (B, S, .), each with a key mask, None or True = a real token.

    call and naive take (module, x, y, x_mask, y_mask, is_causal); decode takes (module, x, y, mask, steps) and feeds x
    in pieces of those sizes. What a module does not use it ignores: an encoder never looks at y. Where one of lengths
    is a tuple, x or y is a grid, (B, H, W, .) with a mask (B, H, W): a map, frames of patches, sentences of words.
    """

    name: str
    build: Callable[[], nn.Module]
    call: Callable[..., Any]
    naive: Callable[..., Any]
    decode: Callable[..., torch.Tensor] | None = None
    causal: tuple[bool, ...] = (False,)  # the values that is_causal may take
    attended: str = "y"  # which of x and y are attended to, and so can be padded; "" = neither
    outputs: tuple[str, ...] = ("x",)  # whose rows each output follows; "" = neither
    together: bool = False  # y goes with x, token by token: the keys and values of a self-attention
    same_length: bool = False
    lengths: tuple[Length, Length] = (5, 7)  # L and S, all different: export takes equal ones for the same
    widths: tuple[int, int] = (E, E)
    training: bool = False
    reference: Callable[[], float] | None = None  # the largest difference to an outside library, float64

    def module(self) -> nn.Module:
        """Seeded, random, float64; biases and norms too, or what adds nothing could be left out unseen."""
        torch.manual_seed(0)
        module = self.build().double().train(self.training)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def inputs(self, batch: int = 2, lengths: tuple[Length, Length] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeded random x and y; a plain number n makes a grid of n rows, n + 1 columns."""
        L, S = lengths or self.lengths
        generator = torch.Generator().manual_seed(1)

        def draw(length: Length, own: Length, width: int) -> torch.Tensor:
            if isinstance(length, int):
                length = tuple(length + i for i in range(len(own))) if isinstance(own, tuple) else (length,)
            return torch.randn(batch, *length, width, generator=generator, dtype=torch.float64)

        return draw(L, self.lengths[0], self.widths[0]), draw(
            L if self.same_length else S, self.lengths[1], self.widths[1]
        )


# Kernels alone: x holds the queries, y one head of keys and values that the query heads share.


def split(x, y):
    q = x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)  # (B, h, L, d)
    k, v = y.unsqueeze(1).split([HEAD_DIM, V_HEAD_DIM], dim=-1)  # (B, 1, S, d), (B, 1, S, d_v)
    return q, k, v


def call_kernel(module, x, y, x_mask, y_mask, is_causal):
    return module(*split(x, y), Mask(y_mask, is_causal=is_causal)).transpose(1, 2).flatten(2)


def naive_kernel(weights, module, x, y, x_mask, y_mask, is_causal):
    allowed = Allowed(y_mask, None, is_causal, getattr(module, "window", None))
    return naive.kernel(module, *split(x, y), allowed, weights).transpose(1, 2).flatten(2)


def decode_kernel(module, x, y, mask, steps):
    cross = "causal" not in module.supports
    cache = module.make_cache(*split(x[:, :0], y[:, :0])[1:], cross=cross)
    outs, start = [], 0
    for step in steps:
        end = start + step
        keys = y if cross else y[:, start:end]
        seen = None if mask is None else mask if cross else mask[:, :end]
        out = module(*split(x[:, start:end], keys), Mask(seen, is_causal=not cross), cache)
        outs.append(out.transpose(1, 2).flatten(2))
        start = end
    return torch.cat(outs, dim=1)


def kernel(name: str, kind: str, options: dict[str, Any] | None = None, *, weights: Any = None, **keywords: Any) -> Row:
    """A kernel's row; weights is its naive form where naive.py has none: see `naive.kernel`."""
    sizes = {name: keywords.pop(name) for name in ("block", "chunk") if name in keywords}  # small, to have several

    def build():
        module = build_kernel(kind, options, num_heads=HEADS, head_dim=HEAD_DIM)
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
        return module

    widths = (HEADS * HEAD_DIM, HEAD_DIM + V_HEAD_DIM)
    keywords = {"decode": decode_kernel, "causal": (False, True), "together": True} | keywords
    return Row(name, build, call_kernel, partial(naive_kernel, weights), widths=widths, **keywords)


# Modules on x alone.


def call_self(module, x, y, x_mask, y_mask, is_causal):
    return module(x, mask=Mask(x_mask, is_causal=is_causal))


def naive_attention(module, x, y, x_mask, y_mask, is_causal):
    return naive.attention(module, x, None, Allowed(x_mask, None, is_causal))


def naive_encoder(module, x, y, x_mask, y_mask, is_causal):
    return naive.encoder(module, x, Allowed(x_mask, None, is_causal))


def decode_self(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0])
    outs, start = [], 0
    for step in steps:
        end = start + step
        seen = None if mask is None else mask[:, :end]
        outs.append(module(x[:, start:end], mask=Mask(seen, is_causal=True), cache=cache))
        start = end
    return torch.cat(outs, dim=1)


def on_itself(name: str, build: Callable[[], nn.Module], **keywords: Any) -> Row:
    given = {"naive": naive_attention, "decode": decode_self, "causal": (False, True), "attended": "x"} | keywords
    return Row(name, build, call_self, **given)


# Modules on x and y.


def call_cross(module, x, y, x_mask, y_mask, is_causal):
    return module(x, y, mask=Mask(y_mask))


def decode_cross(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0], cross=True)
    pieces = x.split(list(steps), dim=1)
    return torch.cat([module(piece, y, mask=Mask(mask), cache=cache) for piece in pieces], dim=1)


def call_decoder(module, x, y, x_mask, y_mask, is_causal):
    return module(x, y, Mask(x_mask, is_causal=is_causal), Mask(y_mask))


def decode_decoder(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0])
    outs, start = [], 0
    for step in steps:
        end = start + step
        seen = None if mask is None else mask[:, :end]
        outs.append(module(x[:, start:end], y, Mask(seen, is_causal=True), Mask(mask), cache))
        start = end
    return torch.cat(outs, dim=1)


def attention(**keywords: Any) -> Callable[[], nn.Module]:
    return lambda: MultiHeadAttention(E, keywords.pop("num_heads", HEADS), **keywords)
