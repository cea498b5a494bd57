"""wav2vec 2.0 and HuBERT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename, require

LAYER = {f"attention.{part}_proj.*": f"attention.{part}_proj.*" for part in ("q", "k", "v", "out")} | {
    "layer_norm.*": "attention_residual.norm.*",
    "feed_forward.intermediate_dense.*": "ffn.fc1.*",
    "feed_forward.output_dense.*": "ffn.fc2.*",
    "final_layer_norm.*": "ffn_residual.norm.*",
}
POSITIONS = "encoder.pos_conv_embed"
WAV2VEC2 = {f"encoder.layers.#.{name}": f"encoder.layers.#.{ours}" for name, ours in LAYER.items()} | {
    "feature_extractor.conv_layers.#.conv.*": "convolutions.#.conv.*",
    "feature_extractor.conv_layers.#.layer_norm.*": "convolutions.#.norm.*",
    "feature_projection.layer_norm.*": "feature_norm.*",
    "feature_projection.projection.*": "project.*",
    f"{POSITIONS}.conv.*": "positions.conv.*",  # HuBERT's with batch statistics has no weight norm
    # Two names of weight norm's magnitude and direction, of torch 1 and 2.
    f"{POSITIONS}.conv.weight_g": "magnitude",
    f"{POSITIONS}.conv.weight_v": "direction",
    f"{POSITIONS}.conv.parametrizations.weight.original0": "magnitude",
    f"{POSITIONS}.conv.parametrizations.weight.original1": "direction",
    f"{POSITIONS}.batch_norm.*": "positions.norm.*",
    f"{POSITIONS}.batch_norm.running_mean": "positions.norm.running_mean",
    f"{POSITIONS}.batch_norm.running_var": "positions.norm.running_var",
    f"{POSITIONS}.batch_norm.num_batches_tracked": "positions.norm.num_batches_tracked",
    "encoder.layer_norm.*": "encoder.layer_norm.*",
    "lm_head.*": "head.*",
}
# Modules of pretraining, and heads of other tasks.
OTHERS = ("masked_spec_embed", "quantizer", "project_hid", "project_q", "projector", "classifier", "layer_weights")
# Defaults of transformers for keys that config.json omits.
CONVOLUTIONS = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}


def convert_wav2vec2(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021), with their CTC head if present."""
    require(config, {"add_adapter": False, "adapter_attn_dim": None})
    prefix = {"wav2vec2": "wav2vec2.", "hubert": "hubert."}[read(config, "model_type")]
    ours, names = rename(state, WAV2VEC2, prefix=prefix, ignore=OTHERS)
    norm_first = read(config, "do_stable_layer_norm", False)
    for part in ("weight", "bias"):  # after all layers, or before them
        if (foreign := f"encoder.layer_norm.{part}") in ours:
            where = f"encoder.norm.{part}" if norm_first else f"norm.{part}"
            ours[where], names[where] = ours.pop(foreign), names.pop(foreign)
    unfold_weight_norm(ours, names)
    convolutions = {key: read(config, key, default) for key, default in CONVOLUTIONS.items()}
    keywords = {
        "embed_dim": read(config, "hidden_size", 768),
        "num_layers": read(config, "num_hidden_layers", 12),
        "num_heads": read(config, "num_attention_heads", 12),
        "vocab_size": read(config, "vocab_size", 32) if "head.weight" in ours else None,
        "ffn_dim": read(config, "intermediate_size", 3072),
        "conv_dims": convolutions["conv_dim"],
        "conv_kernels": convolutions["conv_kernel"],
        "conv_strides": convolutions["conv_stride"],
        "conv_norm": read(config, "feat_extract_norm", "group"),
        "conv_bias": read(config, "conv_bias", False),
        "conv_activation": activation(read(config, "feat_extract_activation", "gelu")),
        "feature_norm": read(config, "feat_proj_layer_norm", True),
        "position_kernel": read(config, "num_conv_pos_embeddings", 128),
        "position_groups": read(config, "num_conv_pos_embedding_groups", 16),
        "position_norm": read(config, "conv_pos_batch_norm", False),
        "norm_first": norm_first,
        "activation": activation(read(config, "hidden_act", "gelu")),
        "norm_eps": read(config, "layer_norm_eps", 1e-5),
        "dropout": read(config, "hidden_dropout", 0.1),
        "attention": attention_dropout(read(config, "attention_dropout", 0.1)),
    }
    return Converted(keywords, ours, names)


def unfold_weight_norm(ours: MutableMapping[str, Tensor], names: MutableMapping[str, str]) -> None:
    """``w = g v / |v|`` for each step of the positions' kernel (Salimans & Kingma 2016, section 2).

    Args:
        ours: "magnitude" (1, 1, K) and "direction" (E, E / groups, K), if present; replaced by the weight.
        names: Foreign name of each key.

    Raises:
        ValueError: One is present without the other.
    """
    parts = [name for name in ("magnitude", "direction") if name in ours]
    if len(parts) == 1:
        raise ValueError(f"{names[parts[0]]!r} is half of a weight norm; the other half is missing")
    if parts:
        g, v = ours.pop("magnitude"), ours.pop("direction")
        ours["positions.conv.weight"] = v * (g / torch.linalg.vector_norm(v, dim=(0, 1), keepdim=True))  # (E, ., K)
        names["positions.conv.weight"] = names.pop("direction")
        names.pop("magnitude")
