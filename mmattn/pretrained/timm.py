"""ViT, DeiT, DINOv2 and SigLIP's image tower in the format of timm, where one class has them all by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .keymap import Converted, Table, activation, read, rename
from .vit import fold_prefix, pair

PLAIN: dict[str, str | tuple[str, ...]] = {
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
DINOV2 = PLAIN | {
    "reg_token": "register_tokens",
    "blocks.#.ls1.gamma": "encoder.layers.#.attention_residual.scale.gamma",
    "blocks.#.ls2.gamma": "encoder.layers.#.ffn_residual.scale.gamma",
}
# The activation applies to the first half.
SWIGLU = DINOV2 | {"blocks.#.mlp.fc1.*": ("encoder.layers.#.ffn.fc1.*", "encoder.layers.#.ffn.gate.*")}
SIGLIP = PLAIN | {
    "attn_pool.latent": "head.query",
    "attn_pool.q.*": "head.attention.q_proj.*",
    "attn_pool.kv.*": ("head.attention.k_proj.*", "head.attention.v_proj.*"),
    "attn_pool.proj.*": "head.attention.out_proj.*",
    "attn_pool.norm.*": "head.norm.*",
    "attn_pool.mlp.fc1.*": "head.ffn.fc1.*",
    "attn_pool.mlp.fc2.*": "head.ffn.fc2.*",
}
HEADS = ("head", "head_dist")
SIZES = {  # (E, h); the number of heads is not in the file
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
    "so400m": (1152, 16),
    "giantopt": (1536, 16),
}


class Architecture(NamedTuple):
    """An architecture: names whose models have the same blocks."""

    names: re.Pattern[str]  # (1) is the size
    label: str  # for messages
    table: Table
    poolings: Mapping[str, str]  # timm's names to those of this package
    sizes: Mapping[str, tuple[int, int]] = SIZES
    act_layer: str = "gelu"  # default of model_args
    arguments: Collection[str] = ()  # of timm's constructor, beyond ARGUMENTS, that determine tensors
    gated: bool = False


MEANS = {"token": "token", "avg": "mean"}
MAPS = {"map": "map", "avg": "mean"}
OWN = ("init_values", "reg_tokens")
GIANT = {"giant": (1536, 24)}
ARCHITECTURES = (
    # Size and patch are adjacent: other names have other blocks, norms or activations under the same keys.
    Architecture(
        re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge|giant|gigantic)(?:_distilled)?_patch\d+_\d+(?:_miil)?"),
        "vit_SIZE_patchP_PIXELS, deit_SIZE_patchP_PIXELS, deit_SIZE_distilled_patchP_PIXELS",
        PLAIN,
        MEANS,
    ),
    Architecture(
        re.compile(r"vit_(small|base|large)_patch\d+(?:_reg\d+)?_dinov2"),
        "vit_SIZE_patchP_dinov2",
        DINOV2,
        MEANS,
        arguments=OWN,
    ),
    Architecture(
        re.compile(r"vit_(giant)_patch\d+(?:_reg\d+)?_dinov2"),
        "vit_SIZE_patchP_regR_dinov2",
        SWIGLU,
        MEANS,
        sizes=GIANT,
        act_layer="silu",
        arguments=OWN,
        gated=True,
    ),
    # timm defines the form of GELU by the name alone.
    Architecture(
        re.compile(
            r"vit_(?:(base)_patch32_siglip(?:_gap)?_\d+|(large)_patch16_siglip(?:_gap)?_512|"
            r"(so400m|giantopt)_patch16_siglip(?:_gap)?_\d+)"
        ),
        "vit_SIZE_patchP_siglip_PIXELS",
        SIGLIP,
        MAPS,
        act_layer="gelu_tanh",
    ),
    Architecture(
        re.compile(r"vit_(base|large|so400m)_patch\d+_siglip(?:_gap)?_\d+"),
        "vit_SIZE_patchP_siglip_gap_PIXELS",
        SIGLIP,
        MAPS,
    ),
)
# Arguments of timm's constructor that are read, that determine tensors, or that affect training only.
ARGUMENTS = {"img_size", "num_heads", "global_pool", "act_layer", "dynamic_img_size", "proj_drop_rate"}
ARGUMENTS |= {"embed_dim", "patch_size", "in_chans", "depth", "mlp_ratio", "qkv_bias", "class_token", "fc_norm"}
ARGUMENTS |= {"no_embed_class", "num_classes", "drop_rate", "drop_path_rate", "weight_init", "fix_init"}


def convert_timm(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """timm's vision transformers. Depth and widths are read from the tensors, the rest from config.json.

    Raises:
        ValueError: An unsupported architecture, or an unsupported argument that affects the computation.
    """
    name = read(config, "architecture")
    kind, size = _architecture(name)
    # Older files have the keys of pretrained_cfg at the top level.
    about = dict(config) | dict(config.get("pretrained_cfg", {}))
    arguments = {key: value for key, value in config.get("model_args", {}).items() if value is not None}
    # Arguments that are off are timm's defaults or determine tensors.
    known = {*ARGUMENTS, *kind.arguments}
    if unknown := sorted(key for key, value in arguments.items() if value and key not in known):
        raise ValueError(f"model_args of config.json has {', '.join(unknown)}, which is not converted")

    ours, names = rename(state, kind.table, ignore=HEADS)
    for key in ("patches.proj.weight", "encoder.layers.0.ffn.fc1.weight", "positions"):
        if key not in ours:
            raise ValueError(f"missing {key}: not the weights of {name}")
    embed_dim, in_channels, patch_size, _ = ours["patches.proj.weight"].shape
    usual_dim, num_heads = kind.sizes[size]
    if "num_heads" not in arguments and embed_dim != usual_dim:
        raise ValueError(f"{name} has {usual_dim} channels, found {embed_dim}; model_args would have to give num_heads")
    image_size = pair(arguments.get("img_size") or read(about, "input_size")[1:])
    pooling = arguments.get("global_pool", config.get("global_pool", next(iter(kind.poolings))))
    if pooling not in kind.poolings:
        raise ValueError(f"global_pool={pooling!r} is not converted; expected one of: {', '.join(kind.poolings)}")
    keywords = {
        "embed_dim": embed_dim,
        "num_layers": 1 + max(int(key.split(".")[2]) for key in ours if key.startswith("encoder.layers.")),
        "num_heads": arguments.get("num_heads", num_heads),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "pooling": "prefix" if "distillation_token" in ours else kind.poolings[pooling],
        "num_prefix": fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size)),
        "resize_positions": "bicubic_antialias" if arguments.get("dynamic_img_size") else None,
        "norm_pooled": "norm.weight" in ours,
        "ffn_dim": ours["encoder.layers.0.ffn.fc1.weight"].shape[0],
        "activation": activation(arguments.get("act_layer", kind.act_layer)),
        "gated": kind.gated,
        "layer_scale": 1e-5 if "encoder.layers.0.attention_residual.scale.gamma" in ours else None,
        "qkv_bias": "encoder.layers.0.attention.q_proj.bias" in ours,
        "norm_eps": 1e-6,
        "dropout": arguments.get("proj_drop_rate", 0.0),
    }
    return Converted(keywords, ours, names)


def is_converted(name: str) -> bool:
    """Whether the architecture of that name is one that ``convert_timm`` reads."""
    return any(kind.names.fullmatch(name) for kind in ARCHITECTURES)


def _architecture(name: str) -> tuple[Architecture, str]:
    """Returns the architecture and the size of a name."""
    for kind in ARCHITECTURES:
        if match := kind.names.fullmatch(name):
            return kind, next(size for size in match.groups() if size)
    raise ValueError(
        f"timm architecture {name!r} is not converted; there are {', '.join(kind.label for kind in ARCHITECTURES)}, "
        f"with SIZE one of {', '.join(SIZES)}"
    )
