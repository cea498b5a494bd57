"""The rows of the basic kernels (dense, sliding_window, linear, monotonic, additive, sigmoid), blocks and fusion."""

from dataclasses import replace

import naive
import references_ground
from cases import (
    HEADS,
    SQUARE,
    E,
    attention,
    decode_cross,
    decode_decoder,
    decoded,
    kernel,
    naive_encoder,
    on_both,
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

    def call(new, seen):
        return module(x[:, new], mask=Mask(seen, is_causal=True), cache=cache, query_pos=y[:, new])

    return decoded(steps, mask, call)


ALONE = {"causal": (False,), "together": False}
TRAINING = {"training": True, "decode": None}
PLACED = {"together": True, "same_length": True}
ROWS = [
    kernel("kernel dense", "dense"),
    kernel("kernel sliding_window", "sliding_window", {"window": 2}, block=2, **SQUARE),
    kernel("kernel linear", "linear", chunk=2, same_length=True),
    kernel("kernel monotonic, training", "monotonic", {"noise": 0.0}, **ALONE, **TRAINING),
    kernel("kernel monotonic", "monotonic", {"initial_offset": 0.0}, **ALONE),
    kernel("kernel monotonic, chunkwise, training", "monotonic", {"chunk": 3, "noise": 0.0}, **ALONE, **TRAINING),
    kernel("kernel monotonic, chunkwise", "monotonic", {"chunk": 3, "initial_offset": 0.0}, **ALONE),
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
    replace(
        on_itself("MultiHeadAttention, q/k positions", attention(), naive=naive_placed, decode=decode_placed, **PLACED),
        call=call_placed,
    ),
    on_both(
        "MultiHeadAttention, cross, q/k positions",
        attention(kv_dim=6),
        lambda module, x, y, a, b: module(x, y, mask=b, query_pos=0.5 * x.flip(2), key_pos=y.flip(2)),
        lambda module, x, y, a, b: naive.attention(module, x, y, b, query_pos=0.5 * x.flip(2), key_pos=y.flip(2)),
        attended="y",
        widths=(E, 6),
    ),
    on_both(
        "MultiHeadAttention, cross",
        attention(kv_dim=6),
        lambda module, x, y, a, b: module(x, y, mask=b),
        lambda module, x, y, a, b: naive.attention(module, x, y, b),
        attended="y",
        decode=decode_cross,
        widths=(E, 6),
    ),
    on_itself("Encoder", lambda: Encoder(E, 2, HEADS, ffn_dim=12), naive=naive_encoder),
    on_itself(
        "Encoder, post-norm, T5 bias",
        lambda: Encoder(E, 2, HEADS, ffn_dim=12, norm_first=False, position_bias=T5Bias(HEADS)),
        naive=naive_encoder,
    ),
    on_both(
        "Decoder",
        lambda: Decoder(E, 2, HEADS, ffn_dim=12, kv_dim=6, rotary=True),
        lambda module, *given: module(*given),
        naive.decoder,
        decode=decode_decoder,
        causal=(True,),
        widths=(E, 6),
    ),
    on_both(
        "CrossModalAttention",
        lambda: CrossModalAttention(E, HEADS, other_dim=6, cross_attention={"kind": "additive"}),
        lambda module, x, y, a, b: module(x, y, a_mask=a, b_mask=b),
        naive.cross_modal,
        outputs=("x", "y"),
        widths=(E, 6),
    ),
    on_both(
        "MultimodalFusionBlock",
        lambda: MultimodalFusionBlock(
            E, HEADS, ffn_dim=12, kv_dim=6, cross_attention={"kind": "sigmoid", "num_sigmoid_heads": 1}
        ),
        lambda module, *given: module(*given),
        naive.decoder_layer,
        widths=(E, 6),
    ),
    on_both(
        "CoAttention",
        lambda: CoAttention(E, 1, HEADS, ffn_dim=12),
        lambda module, x, y, a, b: module(x, y, a_mask=a, b_mask=b),
        naive.co_attention,
        outputs=("x", "y"),
    ),
    on_both(
        "AttentionPooling",
        lambda: AttentionPooling(E, HEADS, num_queries=2, kv_dim=6),
        lambda module, x, y, a, b: module(y, b),
        lambda module, x, y, a, b: naive.pooling(module, y, b),
        attended="y",
        outputs=("",),
        widths=(E, 6),
    ),
]
