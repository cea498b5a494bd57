"""ModernBERT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .keymap import Converted, Table, activation, attention_dropout, read, rename, require, required_names

MODERNBERT: dict[str, str | tuple[str, ...]] = {
    "embeddings.tok_embeddings.weight": "embedding.weight",
    "embeddings.norm.*": "norm.*",
    "layers.#.attn_norm.*": "encoder.layers.#.attention_residual.norm.*",
    "layers.#.attn.Wqkv.*": tuple(f"encoder.layers.#.attention.{name}_proj.*" for name in "qkv"),
    "layers.#.attn.Wo.*": "encoder.layers.#.attention.out_proj.*",
    "layers.#.mlp_norm.*": "encoder.layers.#.ffn_residual.norm.*",
    "layers.#.mlp.Wi.*": ("encoder.layers.#.ffn.fc1.*", "encoder.layers.#.ffn.gate.*"),
    "layers.#.mlp.Wo.*": "encoder.layers.#.ffn.fc2.*",
    "final_norm.*": "encoder.norm.*",
}
HEADS = ("head", "decoder", "classifier")


def convert_modernbert(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """ModernBERT (Warner et al. 2024). Norms without biases get such of zero."""
    require(config, {"attention_bias": False, "mlp_bias": False})
    table: Table = {**MODERNBERT, **(head or {})}
    ours, names = rename(
        state, table, prefix="model.", ignore=HEADS if head is None else (), required=required_names(head)
    )
    for name in [name for name in ours if name.endswith("norm.weight")]:
        bias = name.removesuffix("weight") + "bias"
        if bias not in ours:
            ours[bias], names[bias] = torch.zeros_like(ours[name]), names[name]
    layers = read(config, "num_hidden_layers")
    every = read(config, "global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if number % every else "full_attention" for number in range(layers)
    ]
    rope = config.get("rope_parameters") or {}
    bases: dict[str, Any] = {
        kind: (rope.get(kind) or {}).get("rope_theta") or read(config, old, base)
        for kind, old, base in (
            ("full_attention", "global_rope_theta", 160_000.0),
            ("sliding_attention", "local_rope_theta", 10_000.0),
        )
    }
    keywords = {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": read(config, "hidden_size"),
        "num_layers": layers,
        "num_heads": read(config, "num_attention_heads"),
        "ffn_dim": read(config, "intermediate_size"),
        "global_layers": [number for number, kind in enumerate(kinds) if kind == "full_attention"],
        "window": read(config, "local_attention", 128) // 2,
        "max_len": read(config, "max_position_embeddings", 8192),
        "base": float(bases["full_attention"]),
        "local_base": float(bases["sliding_attention"]),
        "activation": activation(read(config, "hidden_activation", "gelu")),
        "norm_eps": read(config, "norm_eps", 1e-5),
        "dropout": read(config, "mlp_dropout", 0.0),
        "attention": attention_dropout(read(config, "attention_dropout", 0.0)),
    }
    return Converted(keywords, ours, names)
