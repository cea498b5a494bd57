"""SigLIP's image tower in the format of transformers, alone or from the complete model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename
from .vit import fold_prefix, pair, square

SIGLIP: dict[str, str | tuple[str, ...]] = {
    "embeddings.patch_embedding.*": "patches.proj.*",
    "embeddings.position_embedding.weight": "positions",
    "encoder.layers.#.layer_norm1.*": "encoder.layers.#.attention_residual.norm.*",
    "encoder.layers.#.self_attn.q_proj.*": "encoder.layers.#.attention.q_proj.*",
    "encoder.layers.#.self_attn.k_proj.*": "encoder.layers.#.attention.k_proj.*",
    "encoder.layers.#.self_attn.v_proj.*": "encoder.layers.#.attention.v_proj.*",
    "encoder.layers.#.self_attn.out_proj.*": "encoder.layers.#.attention.out_proj.*",
    "encoder.layers.#.layer_norm2.*": "encoder.layers.#.ffn_residual.norm.*",
    "encoder.layers.#.mlp.fc1.*": "encoder.layers.#.ffn.fc1.*",
    "encoder.layers.#.mlp.fc2.*": "encoder.layers.#.ffn.fc2.*",
    "post_layernorm.*": "encoder.norm.*",
    "head.probe": "head.query",
    "head.attention.in_proj_weight": tuple(f"head.attention.{part}_proj.weight" for part in "qkv"),
    "head.attention.in_proj_bias": tuple(f"head.attention.{part}_proj.bias" for part in "qkv"),
    "head.attention.out_proj.*": "head.attention.out_proj.*",
    "head.layernorm.*": "head.norm.*",
    "head.mlp.fc1.*": "head.ffn.fc1.*",
    "head.mlp.fc2.*": "head.ffn.fc2.*",
}
OTHERS = ("text_model", "logit_scale", "logit_bias", "classifier", "embeddings.position_ids")


def convert_siglip(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """SigLIP's image tower (Zhai et al. 2023), also that of SigLIP 2 of fixed resolution; no class token.

    Raises:
        ValueError: Positions and image size do not match.
    """
    if read(config, "model_type") == "siglip":
        config = read(config, "vision_config")
    ours, names = rename(state, SIGLIP, prefix="vision_model.", ignore=OTHERS)
    image_size, patch_size = pair(read(config, "image_size", 224)), square(read(config, "patch_size", 16))
    if "positions" in ours:
        ours["positions"] = ours["positions"][None]  # (1, h w, E)
    fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size))
    keywords = {
        "embed_dim": read(config, "hidden_size", 768),
        "num_layers": read(config, "num_hidden_layers", 12),
        "num_heads": read(config, "num_attention_heads", 12),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": read(config, "num_channels", 3),
        "num_prefix": 0,
        "pooling": "map" if "head.query" in ours else "mean",
        "ffn_dim": read(config, "intermediate_size", 3072),
        "activation": activation(read(config, "hidden_act", "gelu_pytorch_tanh")),
        "norm_eps": read(config, "layer_norm_eps", 1e-6),
        "attention": attention_dropout(read(config, "attention_dropout", 0.0)),
    }
    return Converted(keywords, ours, names)
