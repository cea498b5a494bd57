"""DeBERTa of versions 2 and 3 in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert import LAYERS
from .keymap import Converted, Table, activation, attention_dropout, read, rename, require, required_names

SHARED = {
    name: ours
    for name, ours in LAYERS.items()
    if "attention.self" not in name and not name.startswith("embeddings.pos")
}
DEBERTA = SHARED | {
    "embeddings.position_embeddings.weight": "positions.weight",
    "encoder.layer.#.attention.self.query_proj.*": "encoder.layers.#.attention.q_proj.*",
    "encoder.layer.#.attention.self.key_proj.*": "encoder.layers.#.attention.k_proj.*",
    "encoder.layer.#.attention.self.value_proj.*": "encoder.layers.#.attention.v_proj.*",
    "encoder.layer.#.attention.self.pos_key_proj.*": "encoder.layers.#.attention.position_k.*",
    "encoder.layer.#.attention.self.pos_query_proj.*": "encoder.layers.#.attention.position_q.*",
    "encoder.rel_embeddings.weight": "relative.weight",
    "encoder.LayerNorm.*": "relative_norm.*",
}
HEADS = ("cls", "lm_predictions", "mask_predictions", "pooler", "classifier", "qa_outputs")
BUFFERS = ("embeddings.position_ids",)


def convert_deberta(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """DeBERTa of versions 2 and 3 (He et al. 2021; He et al. 2023), without the convolution of some of version 2."""
    require(config, {"relative_attention": True, "conv_kernel_size": 0})
    width = read(config, "hidden_size")
    require(config, {"embedding_size": width, "attention_head_size": width // read(config, "num_attention_heads")})
    ignore = (*BUFFERS, *(HEADS if head is None else ()))
    table: Table = {**DEBERTA, **(head or {})}
    ours, names = rename(state, table, prefix="deberta.", ignore=ignore, required=required_names(head))
    kinds = config.get("pos_att_type") or []
    parts = [part.strip() for part in (kinds.split("|") if isinstance(kinds, str) else kinds)]
    if unknown := [part for part in parts if part not in ("c2p", "p2c")]:
        raise ValueError(f"config.json has pos_att_type={unknown[0]!r}; only c2p and p2c are supported")
    longest, distance = read(config, "max_position_embeddings", 512), read(config, "max_relative_positions", -1)
    keywords = {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": width,
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "max_len": longest,
        "num_types": read(config, "type_vocab_size", 0),
        "learned_positions": read(config, "position_biased_input", True),
        "parts": parts,
        "shared": read(config, "share_att_key", False),
        "buckets": max(read(config, "position_buckets", -1), 0),
        "max_distance": longest if distance < 1 else distance,
        "norm_positions": "layer_norm" in read(config, "norm_rel_ebd", "none"),
        "ffn_dim": read(config, "intermediate_size"),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "norm_eps": read(config, "layer_norm_eps", 1e-7),
        "dropout": read(config, "hidden_dropout_prob", 0.1),
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.1)),
    }
    return Converted(keywords, ours, names)
