"""The rows of the attention modules that are not kernels: channel, spatial, deformable, temporal, hierarchical, BiDAF.

Maps are drawn channels last and passed channels first.
"""

from functools import partial

import naive_modules as naive
import references_modules as references
import torch
from cases import HEADS, E, Row

from mmattn import (
    CBAM,
    AttentionGate,
    BiDAF,
    ChannelAttention,
    ContextPooling,
    DeformableAttention,
    DividedSpaceTimeLayer,
    EfficientChannelAttention,
    Encoder,
    HierarchicalAttention,
    MapPooling,
    PositionAttention,
    SpatialAttention,
    SqueezeExcitation,
    TemporalPooling,
    flatten_maps,
)


def on_map(build, loop, reference=None):
    """A module from a map to a map: a partial of its class, which gives the row its name."""

    def call(module, x, y, x_mask, y_mask, is_causal):
        return module(x.movedim(-1, 1), x_mask).movedim(1, -1)

    def naive(module, x, y, x_mask, y_mask, is_causal):
        return loop(module, x, x_mask)

    return Row(build.func.__name__, build, call, naive, attended="x", lengths=((5, 4), 7), reference=reference)


def reads(name, build, loop, **keywords):
    """A module of y only, whose output has y's rows or, with outputs ("",), none."""
    return Row(
        name,
        build,
        lambda module, x, y, x_mask, y_mask, is_causal: module(y, y_mask),
        lambda module, x, y, x_mask, y_mask, is_causal: loop(module, y, y_mask),
        **({"outputs": ("",)} | keywords),
    )


def levels_of(y):
    """Two maps of different sizes from one, and the size of a step of the first in the second."""
    return [y, y[:, ::2, ::3]], ((1, 1), (2, 3))


def references_of(x, levels, steps):
    """x's last channels as points in cells of the first map, or boxes, in 0..1 of each map: (B, L, levels, 2|4)."""
    places = []
    for level, (down, right) in zip(levels, steps, strict=True):
        sizes = (level.shape[2] * right, level.shape[1] * down) * 2
        places.append(
            torch.stack([(n + 2) / size for n, size in zip(x[:, :, E:].unbind(-1), sizes, strict=False)], dim=-1)
        )
    return torch.stack(places, dim=2)


def call_deformable(module, x, y, x_mask, y_mask, is_causal):
    levels, steps = levels_of(y)
    reference = references_of(x, levels, steps)
    value, shapes = flatten_maps([level.movedim(-1, 1) for level in levels])
    mask = None if y_mask is None else torch.cat([level.flatten(1) for level in levels_of(y_mask)[0]], dim=1)
    return module(x[:, :, :E], value, shapes, reference, mask)


def naive_deformable(module, x, y, x_mask, y_mask, is_causal):
    levels, steps = levels_of(y)
    masks = None if y_mask is None else levels_of(y_mask)[0]
    return naive.deformable(module, x[:, :, :E], levels, references_of(x, levels, steps), masks)


def deformable(name, boxes, **keywords):
    return Row(
        name,
        lambda: DeformableAttention(E, HEADS, num_levels=2, num_points=3, kv_dim=6),
        call_deformable,
        naive_deformable,
        lengths=(3, (5, 7)),
        widths=(E + (4 if boxes else 2), 6),
        **keywords,
    )


def space_time(name, attention=None, **keywords):
    return Row(
        name,
        lambda: DividedSpaceTimeLayer(E, HEADS, ffn_dim=12, attention=attention, temporal_attention=attention),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x, y, x_mask),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.divided_space_time(module, x, y, x_mask),
        attended="x",
        outputs=("x", "y"),
        lengths=((4, 3), 2),
        **keywords,
    )


ROWS = [
    on_map(partial(SqueezeExcitation, E, reduction=2), naive.squeeze_excitation, references.squeeze_excitation),
    on_map(partial(EfficientChannelAttention, E), naive.efficient_channel, references.efficient_channel),
    on_map(partial(ChannelAttention, E, reduction=2), naive.channel_attention),
    on_map(partial(SpatialAttention, 3), naive.spatial_attention),
    on_map(partial(CBAM, E, reduction=2), naive.cbam, references.cbam),
    Row(
        "AttentionGate",
        lambda: AttentionGate(E, 6, hidden_dim=5),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x.movedim(-1, 1), y.movedim(-1, 1)).movedim(1, -1),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.attention_gate(module, x, y),
        attended="",
        lengths=((7, 6), (4, 3)),
        widths=(E, 6),
    ),
    on_map(partial(PositionAttention, E, reduction=2), naive.position_attention, references.position_attention),
    Row(
        "MapPooling",
        lambda: MapPooling(E, HEADS, num_queries=2, in_channels=4),
        lambda module, x, y, x_mask, y_mask, is_causal: module(y.movedim(-1, 1), y_mask, x[:, :1]),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.map_pooling(module, y, y_mask, x[:, :1]),
        outputs=("",),
        lengths=(5, (4, 3)),
        widths=(E, 4),
        reference=references.map_pooling,
    ),
    deformable("DeformableAttention", boxes=False, reference=partial(references.deformable, 2)),
    deformable("DeformableAttention, boxes", boxes=True, reference=partial(references.deformable, 4)),
    reads("TemporalPooling", lambda: TemporalPooling(E, HEADS, num_queries=2), naive.temporal_pooling),
    space_time("DividedSpaceTimeLayer", reference=references.space_time),
    space_time("DividedSpaceTimeLayer, additive", {"kind": "additive"}),
    reads(
        "ContextPooling",
        lambda: ContextPooling(E, hidden_dim=5),
        lambda module, y, mask: torch.stack(
            [
                naive.context_pooling(module, [y[b, j] for j in range(y.shape[1]) if naive.real(mask, b, j)], y[b, 0])
                for b in range(len(y))
            ]
        ),
    ),
    reads(
        "HierarchicalAttention",
        lambda: HierarchicalAttention(4, 6),
        partial(naive.hierarchical, encode=naive.both_ways),
        lengths=(5, (4, 3)),
        widths=(E, 4),
    ),
    reads(
        "HierarchicalAttention, transformers",
        lambda: HierarchicalAttention(
            E, word_encoder=Encoder(E, 1, HEADS, ffn_dim=6), sentence_encoder=Encoder(E, 1, HEADS, ffn_dim=6)
        ),
        partial(naive.hierarchical, encode=naive.transformer),
        lengths=(5, (4, 3)),
    ),
    Row(
        "BiDAF",
        lambda: BiDAF(E),
        lambda module, x, y, x_mask, y_mask, is_causal: module(x, y, a_key_mask=x_mask, b_key_mask=y_mask),
        lambda module, x, y, x_mask, y_mask, is_causal: naive.bidaf(module, x, y, x_mask, y_mask),
        attended="xy",
    ),
]
