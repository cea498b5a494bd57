"""The rows of the ground floor: dense, sliding_window, linear, monotonic, additive, sigmoid; blocks; fusion."""

import naive
import references_ground
import torch
from cases import (
    HEADS,
    E,
    Row,
    attention,
    call_cross,
    call_decoder,
    decode_cross,
    decode_decoder,
    kernel,
    naive_encoder,
    on_itself,
)
from naive import Allowed

from mmattn import (
    ALiBi,
    AttentionPooling,
    CoAttention,
    CrossModalAttention,
    Decoder,
    Encoder,
    Mask,
    MultiHeadAttention,
    MultimodalFusionBlock,
    T5Bias,
)


def call_placed(module, x, y, x_mask, y_mask, is_causal):
    return module(x, mask=Mask(x_mask, is_causal=is_causal), query_pos=y)


def naive_placed(module, x, y, x_mask, y_mask, is_causal):
    return naive.attention(module, x, None, Allowed(x_mask, None, is_causal), query_pos=y)


def decode_placed(module, x, y, mask, steps):
    cache = module.make_cache(x.shape[0])
    outs, start = [], 0
    for step in steps:
        end = start + step
        seen = None if mask is None else mask[:, :end]
        outs.append(module(x[:, start:end], mask=Mask(seen, is_causal=True), cache=cache, query_pos=y[:, start:end]))
        start = end
    return torch.cat(outs, dim=1)


ROWS = [
    kernel("kernel dense", "dense"),
    kernel("kernel sliding_window", "sliding_window", {"window": 2}, block=2, same_length=True, lengths=(11, 11)),
    kernel("kernel linear", "linear", chunk=2, same_length=True),
    kernel(
        "kernel monotonic, training",
        "monotonic",
        {"noise": 0.0},
        causal=(False,),
        training=True,
        decode=None,
        together=False,
    ),
    kernel("kernel monotonic", "monotonic", {"initial_offset": 0.0}, causal=(False,), together=False),
    kernel(
        "kernel monotonic, chunkwise, training",
        "monotonic",
        {"chunk": 3, "noise": 0.0},
        causal=(False,),
        training=True,
        decode=None,
        together=False,
    ),
    kernel(
        "kernel monotonic, chunkwise",
        "monotonic",
        {"chunk": 3, "initial_offset": 0.0},
        causal=(False,),
        together=False,
    ),
    kernel("kernel additive", "additive"),
    kernel("kernel sigmoid", "sigmoid", {"num_sigmoid_heads": 1}),
    on_itself("MultiHeadAttention", attention(), reference=references_ground.torch_attention),
    on_itself("MultiHeadAttention, grouped-query", attention(num_kv_heads=1, head_dim=6, v_head_dim=5, bias=False)),
    on_itself("MultiHeadAttention, rotary", attention(rotary=True)),
    on_itself(
        "MultiHeadAttention, T5 bias",
        lambda: MultiHeadAttention(E, HEADS, position_bias=T5Bias(HEADS, num_buckets=8, max_distance=6)),
        reference=references_ground.t5_bias,
    ),
    on_itself("MultiHeadAttention, ALiBi", lambda: MultiHeadAttention(E, HEADS, position_bias=ALiBi(HEADS))),
    on_itself("MultiHeadAttention, q/k layer norm", attention(qk_norm="layer", bias=["q", "v", "out"])),
    on_itself("MultiHeadAttention, q/k RMS norm, rotary", attention(qk_norm="rms", rotary=True, bias={"out"})),
    Row(
        "MultiHeadAttention, q/k positions",
        attention(),
        call_placed,
        naive_placed,
        decode_placed,
        causal=(False, True),
        attended="x",
        together=True,
        same_length=True,
    ),
    Row(
        "MultiHeadAttention, cross, q/k positions",
        attention(kv_dim=6),
        lambda module, x, y, x_mask, y_mask, is_causal: module(
            x, y, mask=Mask(y_mask), query_pos=0.5 * x.flip(2), key_pos=y.flip(2)
        ),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.attention(
            module, x, y, Allowed(y_mask), query_pos=0.5 * x.flip(2), key_pos=y.flip(2)
        ),
        widths=(E, 6),
    ),
    Row(
        "MultiHeadAttention, cross",
        attention(kv_dim=6),
        call_cross,
        lambda module, x, y, x_mask, y_mask, is_causal: naive.attention(module, x, y, Allowed(y_mask)),
        decode_cross,
        widths=(E, 6),
    ),
    on_itself("Encoder", lambda: Encoder(E, 2, HEADS, ffn_dim=12), naive=naive_encoder),
    on_itself(
        "Encoder, post-norm, T5 bias",
        lambda: Encoder(E, 2, HEADS, ffn_dim=12, norm_first=False, position_bias=T5Bias(HEADS)),
        naive=naive_encoder,
    ),
    Row(
        "Decoder",
        lambda: Decoder(E, 2, HEADS, ffn_dim=12, kv_dim=6, rotary=True),
        call_decoder,
        lambda module, x, y, x_mask, y_mask, is_causal: naive.decoder(
            module, x, y, Allowed(x_mask, None, is_causal), Allowed(y_mask)
        ),
        decode_decoder,
        causal=(True,),
        attended="xy",
        widths=(E, 6),
    ),
    Row(
        "CrossModalAttention",
        lambda: CrossModalAttention(E, HEADS, other_dim=6, cross_attention={"kind": "additive"}),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x, y, a_mask=Mask(x_mask), b_mask=Mask(y_mask)),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.cross_modal(
            module, x, y, Allowed(x_mask), Allowed(y_mask)
        ),
        attended="xy",
        outputs=("x", "y"),
        widths=(E, 6),
    ),
    Row(
        "MultimodalFusionBlock",
        lambda: MultimodalFusionBlock(
            E, HEADS, ffn_dim=12, kv_dim=6, cross_attention={"kind": "sigmoid", "num_sigmoid_heads": 1}
        ),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x, y, Mask(x_mask), Mask(y_mask)),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.fusion_block(
            module, x, y, Allowed(x_mask), Allowed(y_mask)
        ),
        attended="xy",
        widths=(E, 6),
    ),
    Row(
        "CoAttention",
        lambda: CoAttention(E, 1, HEADS, ffn_dim=12),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x, y, a_mask=Mask(x_mask), b_mask=Mask(y_mask)),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.co_attention(
            module, x, y, Allowed(x_mask), Allowed(y_mask)
        ),
        attended="xy",
        outputs=("x", "y"),
    ),
    Row(
        "AttentionPooling",
        lambda: AttentionPooling(E, HEADS, num_queries=2, kv_dim=6),
        lambda module, x, y, x_mask, y_mask, is_causal: module(y, Mask(y_mask)),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.pooling(module, y, Allowed(y_mask)),
        outputs=("",),
        widths=(E, 6),
    ),
]
