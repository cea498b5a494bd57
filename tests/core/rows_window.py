"""The rows of sliding windows with global tokens, and of windows against transformers' Longformer."""

from dataclasses import replace
from unittest.mock import patch

import naive
import torch
import torch.nn.functional as F
from cases import HEADS, SQUARE, E, Row, kernel, on_itself, split
from naive import Allowed
from torch import nn

from mmattn import ALiBi, Mask, MultiHeadAttention, T5Bias


def global_tokens(x):
    """The global tokens of x (B, L, .), determined by their values: different in each sample, batch-independent."""
    return x[..., 0].detach() > 0.8  # (B, L)


def call_kernel(module, x, y, x_mask, y_mask, is_causal):
    mask = Mask(y_mask, is_causal=is_causal, global_mask=global_tokens(x))
    return module(*split(x, y), mask).transpose(1, 2).flatten(2)


def naive_kernel(module, x, y, x_mask, y_mask, is_causal):
    allowed = Allowed(y_mask, None, is_causal, module.window, None, global_tokens(x))
    return naive.kernel(module, *split(x, y), allowed).transpose(1, 2).flatten(2)


def call_self(module, x, y, x_mask, y_mask, is_causal):
    return module(x, mask=Mask(x_mask, is_causal=is_causal, global_mask=global_tokens(x)))


def naive_self(module, x, y, x_mask, y_mask, is_causal):
    return naive.attention(module, x, None, Allowed(x_mask, None, is_causal, global_mask=global_tokens(x)))


def attention(bias=None, **keywords) -> MultiHeadAttention:
    """A window of two tokens in blocks of two."""
    bias = None if bias is None else bias(HEADS)
    window = {"kind": "sliding_window", "options": {"window": 2}}
    module = MultiHeadAttention(E, HEADS, position_bias=bias, **window, **keywords)
    module.kernel.block = 2
    return module


def with_globals(name: str, **keywords) -> Row:
    row = on_itself(name, lambda: attention(**keywords), naive=naive_self, decode=None, lengths=(11, 7))
    return replace(row, call=call_self)


def longformer_difference() -> float:
    """Windows with padding, then also with global tokens, whose projections equal those of the others."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    B, L, window = 3, 48, 4
    config = LongformerConfig(hidden_size=E, num_attention_heads=HEADS, attention_window=[2 * window])
    theirs = LongformerSelfAttention(config, 0).double().eval()
    ours = MultiHeadAttention(E, HEADS, kind="sliding_window", options={"window": window}).double()
    ours.kernel.block = 4
    for name in ("query", "key", "value"):
        projection = getattr(theirs, name)
        nn.init.normal_(projection.weight)
        nn.init.normal_(projection.bias)
        getattr(theirs, name + "_global").load_state_dict(projection.state_dict())
        getattr(ours, name[0] + "_proj").load_state_dict(projection.state_dict())
    nn.init.eye_(ours.out_proj.weight)  # theirs has none

    x = torch.randn(B, L, E, dtype=torch.float64)
    key_mask = torch.arange(L) < torch.tensor([[L], [L - 15], [20]])
    some = torch.zeros(B, L, dtype=torch.bool)
    some[0, [0, 7, 30]] = some[1, 11] = some[2, [0, 19]] = True

    def theirs_on(global_mask):
        attention_mask = global_mask.double() - (~key_mask).double()  # 0 local, positive global, negative masked
        return theirs(x, attention_mask, ~key_mask, global_mask, bool(global_mask.any()))[0]

    worst = 0.0
    # Theirs always computes the softmax in single precision, which would exceed a tolerance of 1e-8.
    with torch.no_grad(), patch.object(F, "softmax", lambda scores, dim, dtype=None: scores.softmax(dim)):
        for global_mask in (torch.zeros_like(some), some):
            found = ours(x, mask=Mask(key_mask, global_mask=global_mask if global_mask.any() else None))
            worst = max(worst, float((found - theirs_on(global_mask))[key_mask].abs().max()))  # theirs zeroes padding
    return worst


ROWS = [
    replace(
        kernel("kernel sliding_window, global tokens", "sliding_window", {"window": 2}, block=2, decode=None, **SQUARE),
        call=call_kernel,
        naive=naive_kernel,
        reference=longformer_difference,
    ),
    on_itself("MultiHeadAttention, sliding_window", lambda: attention(num_kv_heads=1, rotary=True), lengths=(11, 7)),
    with_globals("MultiHeadAttention, sliding_window, T5 bias, global tokens", bias=T5Bias),
    with_globals("MultiHeadAttention, sliding_window, ALiBi, global tokens", bias=ALiBi),
]
