"""DINOv2, with and without registers, in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename
from .vit import fold_prefix, pair, square

LAYER: dict[str, str | tuple[str, ...]] = {
    "norm1.*": "attention_residual.norm.*",
    "layer_scale1.lambda1": "attention_residual.scale.gamma",
    "norm2.*": "ffn_residual.norm.*",
    "layer_scale2.lambda1": "ffn_residual.scale.gamma",
    "mlp.fc1.*": "ffn.fc1.*",
    "mlp.fc2.*": "ffn.fc2.*",
    # files of transformers 4 and 5
    "attention.attention.query.*": "attention.q_proj.*",
    "attention.attention.key.*": "attention.k_proj.*",
    "attention.attention.value.*": "attention.v_proj.*",
    "attention.output.dense.*": "attention.out_proj.*",
    "mlp.weights_in.*": ("ffn.fc1.*", "ffn.gate.*"),  # the activation applies to the first half
    "mlp.weights_out.*": "ffn.fc2.*",
    # state dicts of transformers 5
    "attention.q_proj.*": "attention.q_proj.*",
    "attention.k_proj.*": "attention.k_proj.*",
    "attention.v_proj.*": "attention.v_proj.*",
    "attention.o_proj.*": "attention.out_proj.*",
    "mlp.gate_proj.*": "ffn.fc1.*",
    "mlp.up_proj.*": "ffn.gate.*",
    "mlp.down_proj.*": "ffn.fc2.*",
}
DINOV2: dict[str, str | tuple[str, ...]] = {
    "embeddings.cls_token": "class_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection.*": "patches.proj.*",
    "layernorm.*": "encoder.norm.*",
}
for _name, _ours in LAYER.items():
    _targets = (_ours,) if isinstance(_ours, str) else _ours
    DINOV2[f"encoder.layer.#.{_name}"] = tuple(f"encoder.layers.#.{target}" for target in _targets)
OTHERS = ("classifier", "embeddings.mask_token")


def convert_dinov2(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """DINOv2 (Oquab et al. 2024), also with registers (Darcet et al. 2024, section 2); takes images of any size.

    Raises:
        ValueError: Positions and image size do not match.
    """
    kind = read(config, "model_type")
    ours, names = rename(state, DINOV2, prefix=f"{kind}.", ignore=OTHERS)
    image_size, patch_size = pair(read(config, "image_size", 224)), square(read(config, "patch_size", 14))
    embed_dim = read(config, "hidden_size")
    gated = read(config, "use_swiglu_ffn", False)
    ffn_dim = int(embed_dim * read(config, "mlp_ratio", 4))
    keywords = {
        "embed_dim": embed_dim,
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": read(config, "num_channels", 3),
        "num_prefix": fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size)),
        "resize_positions": "bicubic_antialias" if kind == "dinov2_with_registers" else "bicubic",
        # As many weights as without the gate, rounded to a multiple of 8.
        "ffn_dim": (int(ffn_dim * 2 / 3) + 7) // 8 * 8 if gated else ffn_dim,
        "activation": "silu" if gated else activation(read(config, "hidden_act", "gelu")),
        "gated": gated,
        "layer_scale": read(config, "layerscale_value", 1.0),
        "qkv_bias": read(config, "qkv_bias", True),
        "norm_eps": read(config, "layer_norm_eps", 1e-6),
        "dropout": read(config, "hidden_dropout_prob", 0.0),
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.0)),
    }
    return Converted(keywords, ours, names)
