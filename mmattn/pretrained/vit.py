"""ViT and DeiT as transformers and timm write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename

LAYER = {
    # transformers up to 4, and what transformers 5 still saves
    "encoder.layer.#.attention.attention.query.*": "attention.q_proj.*",
    "encoder.layer.#.attention.attention.key.*": "attention.k_proj.*",
    "encoder.layer.#.attention.attention.value.*": "attention.v_proj.*",
    "encoder.layer.#.attention.output.dense.*": "attention.out_proj.*",
    "encoder.layer.#.intermediate.dense.*": "ffn.fc1.*",
    "encoder.layer.#.output.dense.*": "ffn.fc2.*",
    "encoder.layer.#.layernorm_before.*": "attention_residual.norm.*",
    "encoder.layer.#.layernorm_after.*": "ffn_residual.norm.*",
    # transformers 5 in memory
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

TIMM: dict[str, str | tuple[str, ...]] = {
    "cls_token": "class_token",
    "dist_token": "distillation_token",
    "pos_embed": "positions",
    "patch_embed.proj.*": "patches.proj.*",
    "blocks.#.norm1.*": "encoder.layers.#.attention_residual.norm.*",
    "blocks.#.attn.qkv.*": tuple(f"encoder.layers.#.attention.{part}_proj.*" for part in "qkv"),
    "blocks.#.attn.proj.*": "encoder.layers.#.attention.out_proj.*",
    "blocks.#.norm2.*": "encoder.layers.#.ffn_residual.norm.*",
    "blocks.#.mlp.fc1.*": "encoder.layers.#.ffn.fc1.*",
    "blocks.#.mlp.fc2.*": "encoder.layers.#.ffn.fc2.*",
    "norm.*": "encoder.norm.*",
    "fc_norm.*": "norm.*",
}
TIMM_HEADS = ("head", "head_dist")
# timm's names with nothing between size and patch: others have other blocks, norms or activations under the same keys.
TIMM_NAMES = re.compile(r"(?:vit|deit)_([a-z]+)(?:_distilled)?_patch\d+_\d+(?:_miil)?")
TIMM_SIZES = {  # size: (E, h); the number of heads is not in the file, and does not follow from the size
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
}
# Arguments of timm's constructor that are read, show in the tensors, or matter in training alone.
TIMM_ARGUMENTS = {"img_size", "num_heads", "global_pool", "act_layer", "dynamic_img_size", "proj_drop_rate"}
TIMM_ARGUMENTS |= {"embed_dim", "patch_size", "in_chans", "depth", "mlp_ratio", "qkv_bias", "class_token", "fc_norm"}
TIMM_ARGUMENTS |= {"no_embed_class", "num_classes", "drop_rate", "drop_path_rate", "weight_init", "fix_init"}
TIMM_POOLINGS = {"token": "token", "avg": "mean"}


def convert_vit(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """ViT and DeiT of transformers (Dosovitskiy et al. 2021; Touvron et al. 2021)."""
    prefix = {"vit": "vit.", "deit": "deit."}[read(config, "model_type")]
    ours, names = rename(state, TRANSFORMERS, prefix=prefix, ignore=TRANSFORMERS_HEADS)
    image_size = _pair(read(config, "image_size", 224))
    patch_size = _square(read(config, "patch_size", 16))
    num_prefix = _fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size))
    pooled = "pooler.dense.weight" in ours  # a classifier is saved without
    keywords = {
        "embed_dim": read(config, "hidden_size"),
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": read(config, "num_channels", 3),
        "num_prefix": num_prefix,
        "pooler_dim": ours["pooler.dense.weight"].shape[0] if pooled else None,
        "pooler_activation": activation(read(config, "pooler_act", "tanh")),
        "ffn_dim": read(config, "intermediate_size"),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "qkv_bias": read(config, "qkv_bias", True),
        "norm_eps": read(config, "layer_norm_eps", 1e-12),
        "dropout": read(config, "hidden_dropout_prob", 0.0),
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.0)),
    }
    return Converted(keywords, ours, names)


def convert_timm(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """timm's plain ViT and DeiT. Depth and widths are read from the tensors, the rest from config.json.

    Raises:
        ValueError: another architecture, or an argument that changes what is computed and is not converted.
    """
    name = read(config, "architecture")
    match = TIMM_NAMES.fullmatch(name)
    if match is None or match[1] not in TIMM_SIZES:
        raise ValueError(
            f"timm architecture {name!r} is not converted; there are vit_SIZE_patchP_PIXELS, deit_SIZE_patchP_PIXELS "
            f"and deit_SIZE_distilled_patchP_PIXELS with SIZE one of {', '.join(TIMM_SIZES)}"
        )
    # Older files keep at the top what newer ones keep under pretrained_cfg.
    about = dict(config) | dict(config.get("pretrained_cfg", {}))
    arguments = {key: value for key, value in config.get("model_args", {}).items() if value is not None}
    # What is switched off is either timm's default or shows in the tensors.
    if unknown := sorted(key for key, value in arguments.items() if value and key not in TIMM_ARGUMENTS):
        raise ValueError(f"model_args of config.json has {', '.join(unknown)}, which is not converted")

    ours, names = rename(state, TIMM, ignore=TIMM_HEADS)
    for key in ("patches.proj.weight", "encoder.layers.0.ffn.fc1.weight", "positions"):
        if key not in ours:
            raise ValueError(f"nothing for {key}: not the weights of {name}")
    embed_dim, in_channels, patch_size, _ = ours["patches.proj.weight"].shape
    usual_dim, num_heads = TIMM_SIZES[match[1]]
    if "num_heads" not in arguments and embed_dim != usual_dim:
        raise ValueError(f"{name} has {usual_dim} channels, found {embed_dim}; model_args would have to give num_heads")
    image_size = _pair(arguments.get("img_size") or read(about, "input_size")[1:])
    num_prefix = _fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size))
    pooling = arguments.get("global_pool", config.get("global_pool", "token"))
    if pooling not in TIMM_POOLINGS:
        raise ValueError(f"global_pool={pooling!r} is not converted; there are: {', '.join(TIMM_POOLINGS)}")
    keywords = {
        "embed_dim": embed_dim,
        "num_layers": 1 + max(int(key.split(".")[2]) for key in ours if key.startswith("encoder.layers.")),
        "num_heads": arguments.get("num_heads", num_heads),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "num_prefix": num_prefix,
        "resize_positions": "bicubic_antialias" if arguments.get("dynamic_img_size") else None,
        "pooling": "prefix" if num_prefix == 2 else TIMM_POOLINGS[pooling],
        "norm_pooled": "norm.weight" in ours,
        "ffn_dim": ours["encoder.layers.0.ffn.fc1.weight"].shape[0],
        "activation": activation(arguments.get("act_layer", "gelu")),
        "qkv_bias": "encoder.layers.0.attention.q_proj.bias" in ours,
        "norm_eps": 1e-6,
        "dropout": arguments.get("proj_drop_rate", 0.0),
    }
    return Converted(keywords, ours, names)


def _fold_prefix(ours: MutableMapping[str, Tensor], grid: tuple[int, int]) -> int:
    """Class and distillation token become one tensor with their positions added; the others a map. Returns how many."""
    tokens = [ours.pop(name) for name in ("class_token", "distillation_token") if name in ours]  # (1, 1, E) each
    if "positions" not in ours:
        raise ValueError("no position embeddings")
    positions, count = ours["positions"][0], grid[0] * grid[1]  # (P + h w, E)
    extra = positions.shape[0] - count
    if extra not in (0, len(tokens)):
        raise ValueError(
            f"{positions.shape[0]} positions for {grid[0]} x {grid[1]} patches and {len(tokens)} tokens before them"
        )
    if tokens:
        prefix = torch.cat(tokens, dim=1)[0]  # (P, E)
        ours["prefix"] = prefix + positions[:extra] if extra else prefix
    ours["positions"] = positions[extra:].T.unflatten(1, grid)[None]  # (1, E, h, w)
    return len(tokens)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _square(size: Any) -> int:
    height, width = _pair(size)
    if height != width:
        raise ValueError(f"patches of {height} x {width} pixels: only square ones are supported")
    return height
