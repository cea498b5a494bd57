"""TimeSformer in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename, require
from .vit import fold_prefix, pair, square

PROJECTIONS = tuple(f"{part}_proj.*" for part in "qkv")
LAYER: dict[str, str | tuple[str, ...]] = {
    "temporal_attention.attention.qkv.*": tuple(f"temporal_attention.{name}" for name in PROJECTIONS),
    "temporal_attention.output.dense.*": "temporal_attention.out_proj.*",
    "temporal_layernorm.*": "temporal_residual.norm.*",
    "temporal_dense.*": "temporal_dense.*",  # folded into the projection before it
    "attention.attention.qkv.*": tuple(f"attention.{name}" for name in PROJECTIONS),
    "attention.output.dense.*": "attention.out_proj.*",
    "layernorm_before.*": "attention_residual.norm.*",
    "intermediate.dense.*": "ffn.fc1.*",
    "output.dense.*": "ffn.fc2.*",
    "layernorm_after.*": "ffn_residual.norm.*",
}
TABLE: dict[str, str | tuple[str, ...]] = {
    f"encoder.layer.#.{name}": f"layers.#.{ours}"
    if isinstance(ours, str)
    else tuple(f"layers.#.{each}" for each in ours)
    for name, ours in LAYER.items()
} | {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.time_embeddings": "times",
    "embeddings.patch_embeddings.projection.*": "patches.proj.*",
    "layernorm.*": "norm.*",
}
HEADS = ("classifier",)


def convert_timesformer(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """TimeSformer with divided attention (Bertasius et al. 2021).

    Raises:
        ValueError: The attention is over space alone, or over space and time at once.
    """
    require(config, {"attention_type": "divided_space_time"})
    ours, names = rename(state, TABLE, prefix="timesformer.", ignore=HEADS)
    image_size, patch_size = pair(read(config, "image_size", 224)), square(read(config, "patch_size", 16))
    if "times" in ours:
        ours["times"] = ours["times"][0]  # (T, E)
    fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size))
    for name in [name for name in ours if name.endswith("temporal_dense.weight")]:
        layer = name.removesuffix("temporal_dense.weight")
        dense, bias = ours.pop(name), ours.pop(f"{layer}temporal_dense.bias")
        inner = f"{layer}temporal_attention.out_proj"
        if f"{inner}.weight" in ours:  # D (W x + b) + d
            ours[f"{inner}.bias"] = dense @ ours[f"{inner}.bias"] + bias
            ours[f"{inner}.weight"] = dense @ ours[f"{inner}.weight"]
    dropout = attention_dropout(read(config, "attention_probs_dropout_prob", 0.0))
    keywords = {
        "embed_dim": read(config, "hidden_size", 768),
        "num_layers": read(config, "num_hidden_layers", 12),
        "num_heads": read(config, "num_attention_heads", 12),
        "image_size": image_size,
        "num_frames": read(config, "num_frames", 8),
        "patch_size": patch_size,
        "in_channels": read(config, "num_channels", 3),
        "ffn_dim": read(config, "intermediate_size", 3072),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "bias": True if read(config, "qkv_bias", True) else ["out"],
        "norm_eps": read(config, "layer_norm_eps", 1e-6),
        "dropout": read(config, "hidden_dropout_prob", 0.0),
        "attention": dropout,
        "temporal_attention": dropout,
    }
    return Converted(keywords, ours, names)
