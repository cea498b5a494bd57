"""Rows of the core's checks: a kernel or module, how to call it, its naive implementation, how it decodes.

The rows are defined in rows_*.py; rows.py collects them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import naive
import torch
from naive import Allowed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn import Mask, MultiHeadAttention, build_kernel

E, HEADS, HEAD_DIM, V_HEAD_DIM = 8, 2, 4, 3
SQUARE: dict[str, Any] = {"same_length": True, "lengths": (11, 11)}  # as many keys as queries, and more than one window
Length = int | tuple[int, ...]


@dataclass
class Row:
    """A kernel or module, called on x (B, L, .) and y (B, S, .), each with a key mask, None or True = a real token.

    call and naive take (module, x, y, x_mask, y_mask, is_causal); decode takes (module, x, y, mask, steps) and feeds x
    in chunks of those sizes. A module ignores inputs that it does not need: an encoder ignores y. If one of lengths
    is a tuple, x or y is a grid, (B, H, W, .) with a mask (B, H, W): a map, frames of patches, sentences of words.
    """

    name: str
    build: Callable[[], nn.Module]
    call: Callable[..., Any]
    naive: Callable[..., Any]
    decode: Callable[..., torch.Tensor] | None = None
    causal: tuple[bool, ...] = (False,)  # the possible values of is_causal
    attended: str = "y"  # which of x and y are attended to and can be padded; "" = neither
    outputs: tuple[str, ...] = ("x",)  # the input whose rows each output has; "" = neither
    together: bool = False  # y has one token per token of x: the keys and values of a self-attention
    same_length: bool = False
    lengths: tuple[Length, Length] = (5, 7)  # L and S, all different: export treats equal ones as the same dimension
    widths: tuple[int, int] = (E, E)
    training: bool = False
    reference: Callable[[], float] | None = None  # the largest difference from an external library, float64

    def module(self) -> nn.Module:
        """Seeded random float64 parameters; biases and norms too, since zeros would hide missing terms."""
        torch.manual_seed(0)
        module = self.build().double().train(self.training)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def inputs(self, batch: int = 2, lengths: tuple[Length, Length] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeded random x and y; an integer n gives a grid of n rows and n + 1 columns."""
        L, S = lengths or self.lengths
        generator = torch.Generator().manual_seed(1)

        def draw(length: Length, own: Length, width: int) -> torch.Tensor:
            if isinstance(length, int):
                length = tuple(length + i for i in range(len(own))) if isinstance(own, tuple) else (length,)
            return torch.randn(batch, *length, width, generator=generator, dtype=torch.float64)

        return draw(L, self.lengths[0], self.widths[0]), draw(
            L if self.same_length else S, self.lengths[1], self.widths[1]
        )


def decoded(steps, mask, call):
    """The concatenated outputs of call(slice of the new tokens, mask over all so far) for chunks of these sizes."""
    outs, start = [], 0
    for step in steps:
        new, start = slice(start, start + step), start + step
        outs.append(call(new, None if mask is None else mask[:, :start]))
    return torch.cat(outs, dim=1)


# Kernels by name, without a row.


def make(kind, heads=2, dim=4, noise=0.0, **options):
    """A seeded kernel in float64 and evaluation mode; noise is added to its parameters."""
    torch.manual_seed(0)
    module = build_kernel(kind, options, num_heads=heads, head_dim=dim).double().eval()
    with torch.no_grad():
        for parameter in module.parameters() if noise else ():
            parameter.add_(noise * torch.randn_like(parameter))
    return module


def draw(B, h, L, S, d=4, h_kv=None, d_v=3):
    """Random queries, keys and values."""
    shapes = ((h, L, d), (h_kv or h, S, d), (h_kv or h, S, d_v))
    return tuple(torch.randn(B, *shape, dtype=torch.float64) for shape in shapes)


def empty(B, h_kv=2, d=4, d_v=3, dtype=torch.float64):
    """Empty keys and values, the initial state of a cache."""
    return tuple(torch.zeros(B, h_kv, 0, size, dtype=dtype) for size in (d, d_v))


def close(found, expected, atol=1e-12):
    """Asserts that two tensors, or sequences of them, are equal up to rounding."""
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def equals_its_map(kernel, q, k, v, mask, atol=1e-11):
    """Asserts that output and gradients equal those of the explicit map up to atol; returns the map."""
    learned = [*kernel.parameters(), *(mask.bias.parameters() if mask.bias else [])]
    inputs = [x.requires_grad_() for x in (q, k, v, *learned)]
    weights = kernel.weights(q, k, mask)
    expected = kernel.finish(weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1))
    found = kernel(q, k, v, mask)
    close(found, expected)
    grad = torch.randn_like(found)
    close(*(torch.autograd.grad(out, inputs, grad, materialize_grads=True) for out in (found, expected)), atol)
    return weights


def growth(kernel, lengths, mask):
    """The operations of forward and backward at each length, with mask(L)."""
    found = []
    for L in lengths:
        q, k, v = (torch.randn(1, 2, L, 8, requires_grad=True) for _ in range(3))
        with Operations() as operations:
            kernel(q, q if kernel.shares_qk else k, v, mask(L)).sum().backward()
        found.append(operations)
    return found


class Operations(TorchDispatchMode):
    """Counts operations and gathered rows, and records the largest result and the largest newly allocated one."""

    def __init__(self):
        super().__init__()
        self.count = self.rows = self.largest = self.made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += 1
        if function is torch.ops.aten.index.Tensor:
            self.rows += out.numel() // out.shape[-1]
        sizes = [t.numel() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        self.made = self.made if function.is_view else max(self.made, *sizes, 0)
        return out


# Bare kernels: x holds the queries, y one head of keys and values that the query heads share.


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

    def call(new, seen):
        given = (
            (*split(x[:, new], y), Mask(mask)) if cross else (*split(x[:, new], y[:, new]), Mask(seen, is_causal=True))
        )
        return module(*given, cache).transpose(1, 2).flatten(2)

    return decoded(steps, mask, call)


def kernel(name: str, kind: str, options: dict[str, Any] | None = None, *, weights: Any = None, **keywords: Any) -> Row:
    """The row of a kernel; weights is its naive implementation if naive.py has none: see `naive.kernel`."""
    sizes = {name: keywords.pop(name) for name in ("block", "chunk") if name in keywords}  # small, for several chunks

    def build():
        module = build_kernel(kind, options, num_heads=HEADS, head_dim=HEAD_DIM)
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
        return module

    widths = (HEADS * HEAD_DIM, HEAD_DIM + V_HEAD_DIM)
    keywords = {"decode": decode_kernel, "causal": (False, True), "together": True} | keywords
    return Row(name, build, call_kernel, partial(naive_kernel, weights), widths=widths, **keywords)


# Modules on x only.


def call_self(module, x, y, x_mask, y_mask, is_causal):
    return module(x, mask=Mask(x_mask, is_causal=is_causal))


def naive_attention(module, x, y, x_mask, y_mask, is_causal):
    return naive.attention(module, x, None, Allowed(x_mask, None, is_causal))


def naive_encoder(module, x, y, x_mask, y_mask, is_causal):
    return naive.encoder(module, x, Allowed(x_mask, None, is_causal))


def decode_self(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0])
    return decoded(steps, mask, lambda new, seen: module(x[:, new], mask=Mask(seen, is_causal=True), cache=cache))


def on_itself(name: str, build: Callable[[], nn.Module], **keywords: Any) -> Row:
    given = {"naive": naive_attention, "decode": decode_self, "causal": (False, True), "attended": "x"} | keywords
    return Row(name, build, call_self, **given)


# Modules on x and y.


def decode_cross(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0], cross=True)
    pieces = x.split(list(steps), dim=1)
    return torch.cat([module(piece, y, mask=Mask(mask), cache=cache) for piece in pieces], dim=1)


def decode_decoder(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0])
    return decoded(steps, mask, lambda new, seen: module(x[:, new], y, Mask(seen, is_causal=True), Mask(mask), cache))


def on_both(name, build, call, loop, **keywords) -> Row:
    """call and loop take (module, x, y, and the masks of both, as Mask or as Allowed)."""
    return Row(
        name,
        build,
        lambda module, x, y, x_mask, y_mask, is_causal: call(
            module, x, y, Mask(x_mask, is_causal=is_causal), Mask(y_mask)
        ),
        lambda module, x, y, x_mask, y_mask, is_causal: loop(
            module, x, y, Allowed(x_mask, None, is_causal), Allowed(y_mask)
        ),
        **({"attended": "xy"} | keywords),
    )


def attention(**keywords: Any) -> Callable[[], nn.Module]:
    return lambda: MultiHeadAttention(E, keywords.pop("num_heads", HEADS), **keywords)
