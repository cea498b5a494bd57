"""ViT and DeiT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename

LAYER = {
    # files of transformers 4 and 5
    "encoder.layer.#.attention.attention.query.*": "attention.q_proj.*",
    "encoder.layer.#.attention.attention.key.*": "attention.k_proj.*",
    "encoder.layer.#.attention.attention.value.*": "attention.v_proj.*",
    "encoder.layer.#.attention.output.dense.*": "attention.out_proj.*",
    "encoder.layer.#.intermediate.dense.*": "ffn.fc1.*",
    "encoder.layer.#.output.dense.*": "ffn.fc2.*",
    "encoder.layer.#.layernorm_before.*": "attention_residual.norm.*",
    "encoder.layer.#.layernorm_after.*": "ffn_residual.norm.*",
    # state dicts of transformers 5
    "layers.#.attention.q_proj.*": "attention.q_proj.*",
    "layers.#.attention.k_proj.*": "attention.k_proj.*",
    "layers.#.attention.v_proj.*": "attention.v_proj.*",
    "layers.#.attention.o_proj.*": "attention.out_proj.*",
    "layers.#.mlp.fc1.*": "ffn.fc1.*",
    "layers.#.mlp.fc2.*": "ffn.fc2.*",
    "layers.#.layernorm_before.*": "attention_residual.norm.*",
    "layers.#.layernorm_after.*": "ffn_residual.norm.*",
}
TRANSFORMERS = {name: f"encoder.layers.#.{ours}" for name, ours in LAYER.items()} | {
    "embeddings.cls_token": "class_token",
    "embeddings.distillation_token": "distillation_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection.*": "patches.proj.*",
    "layernorm.*": "encoder.norm.*",
    "pooler.dense.*": "pooler.dense.*",
}
TRANSFORMERS_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "decoder", "embeddings.mask_token")


def convert_vit(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """ViT and DeiT of transformers (Dosovitskiy et al. 2021; Touvron et al. 2021)."""
    prefix = {"vit": "vit.", "deit": "deit."}[read(config, "model_type")]
    ours, names = rename(state, TRANSFORMERS, prefix=prefix, ignore=TRANSFORMERS_HEADS)
    pooled = "pooler.dense.weight" in ours  # absent in classifiers
    keywords = vit_keywords(config, ours) | {
        "pooler_dim": ours["pooler.dense.weight"].shape[0] if pooled else None,
        "pooler_activation": activation(read(config, "pooler_act", "tanh")),
    }
    return Converted(keywords, ours, names)


def vit_keywords(config: Mapping[str, Any], ours: MutableMapping[str, Tensor], part: str = "") -> dict[str, Any]:
    """Returns the keywords of a ViT or DeiT without its pooler, and folds the prefix of its tensors in ours.

    Args:
        config: The config.json, or its section of the encoder.
        ours: A renamed state dict; see `fold_prefix`.
        part: Prefix of the tensors' names.
    """
    image_size = pair(read(config, "image_size", 224))
    patch_size = square(read(config, "patch_size", 16))
    return {
        "embed_dim": read(config, "hidden_size"),
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": read(config, "num_channels", 3),
        "num_prefix": fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size), part),
        "ffn_dim": read(config, "intermediate_size"),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "qkv_bias": read(config, "qkv_bias", True),
        "norm_eps": read(config, "layer_norm_eps", 1e-12),
        "dropout": read(config, "hidden_dropout_prob", 0.0),
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.0)),
    }


def fold_prefix(ours: MutableMapping[str, Tensor], grid: tuple[int, int], part: str = "") -> int:
    """Joins class, distillation and register tokens, with their positions added, and reshapes the other positions.

    Args:
        ours: "class_token", "distillation_token", "register_tokens" (1, ., E), if any, and "positions"
            (1, P + h w, E), P of them for the first two or none; replaced by "prefix" and "positions" (1, E, h, w).
        grid: h and w.
        part: Prefix of these names.

    Returns:
        The number of prefix tokens.

    Raises:
        ValueError: Positions are missing, or their number does not match.
    """
    found = [name for name in (f"{part}class_token", f"{part}distillation_token") if name in ours]
    tokens = [ours.pop(name) for name in found]  # (1, 1, E) each
    if f"{part}positions" not in ours:
        raise ValueError("no position embeddings")
    positions, count = ours[f"{part}positions"][0], grid[0] * grid[1]  # (P + h w, E)
    extra = positions.shape[0] - count
    if extra not in (0, len(tokens)):
        raise ValueError(
            f"{positions.shape[0]} positions for {grid[0]} x {grid[1]} patches and {len(tokens)} tokens before them"
        )
    if tokens and extra:
        tokens = [torch.cat(tokens, dim=1) + positions[:extra]]  # (1, P, E)
    if f"{part}register_tokens" in ours:  # they have no positions
        tokens.append(ours.pop(f"{part}register_tokens"))
    if tokens:
        ours[f"{part}prefix"] = torch.cat(tokens, dim=1)[0]
    ours[f"{part}positions"] = positions[extra:].T.unflatten(1, grid)[None]  # (1, E, h, w)
    return ours[f"{part}prefix"].shape[0] if tokens else 0


def pair(size: Any) -> tuple[int, int]:
    """Converts one number for both sides, or two, to height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def square(size: Any) -> int:
    """Returns the side of a square patch.

    Raises:
        ValueError: The patch is not square.
    """
    height, width = pair(size)
    if height != width:
        raise ValueError(f"patches of {height} x {width} pixels: only square ones are supported")
    return height
