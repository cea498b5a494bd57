"""Deformable DETR in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .detr import DECODER_LAYER, FFN, POSITIONS
from .keymap import Converted, activation, attention_dropout, read, rename
from .resnet import RESNET, read_resnet, without_counts

DEFORMABLE = {
    "sampling_offsets.*": "offset_proj.*",
    "attention_weights.*": "weight_proj.*",
    "value_proj.*": "v_proj.*",
    "output_proj.*": "out_proj.*",
}
CROSS = {f"encoder_attn.{name}": f"cross_attention.{ours}" for name, ours in DEFORMABLE.items()}
ENCODER_LAYER = {f"self_attn.{name}": f"attention.{ours}" for name, ours in DEFORMABLE.items()} | {
    "self_attn_layer_norm.*": "attention_residual.norm.*",
    **FFN,
}
HEADS = {"class_embed.#.*": "class_heads.#.*", "bbox_embed.#.layers.#.*": "box_heads.#.layers.#.*"}
TWINS = "model.decoder."  # where the heads are once more, if boxes are refined
MODEL = {
    **{f"encoder.layers.#.{name}": f"encoder.#.{ours}" for name, ours in ENCODER_LAYER.items()},
    **{f"decoder.layers.#.{name}": f"decoder.#.{ours}" for name, ours in (DECODER_LAYER | CROSS).items()},
    **RESNET,
    "input_proj.#.#.*": "projections.#.#.*",
    "level_embed": "level_embed",
    "query_position_embeddings.weight": "queries",
    "reference_points.*": "reference.*",
    "enc_output.*": "proposal_proj.*",
    "enc_output_norm.*": "proposal_norm.*",
    "pos_trans.*": "query_proj.*",
    "pos_trans_norm.*": "query_norm.*",
    **POSITIONS,
}
TABLE = {f"{prefix}{name}": ours for prefix in ("model.", "") for name, ours in MODEL.items()}
TABLE |= {f"{prefix}{name}": ours for prefix in ("", TWINS) for name, ours in HEADS.items()}


def convert_deformable_detr(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Deformable DETR of transformers (Zhu et al. 2021): plain, with refined boxes, or in two stages."""
    ours, names = rename(without_twins(state), TABLE)
    levels, layers = read(config, "num_feature_levels", 4), read(config, "decoder_layers", 6)
    two_stage = read(config, "two_stage", False)
    backbone = read_resnet(config, ours, (2, 3, 4) if levels > 1 else (4,))
    without_counts(ours)
    share_heads = fold_heads(ours, names, layers + two_stage)
    keywords = {
        "num_classes": ours["class_heads.0.bias"].shape[0] if "class_heads.0.bias" in ours else None,
        "embed_dim": read(config, "d_model", 256),
        "num_queries": read(config, "two_stage_num_proposals" if two_stage else "num_queries", 300),
        "num_levels": levels,
        "encoder_points": read(config, "encoder_n_points", 4),
        "decoder_points": read(config, "decoder_n_points", 4),
        "num_encoder_layers": read(config, "encoder_layers", 6),
        "num_decoder_layers": layers,
        "num_heads": read(config, "encoder_attention_heads", 8),
        "decoder_heads": read(config, "decoder_attention_heads", 8),
        "ffn_dim": read(config, "encoder_ffn_dim", 1024),
        "decoder_ffn_dim": read(config, "decoder_ffn_dim", 1024),
        "positions": read(config, "position_embedding_type", "sine"),
        "refine_boxes": read(config, "with_box_refine", False),
        "two_stage": two_stage,
        "share_heads": share_heads,
        "attention": attention_dropout(read(config, "attention_dropout", 0.0)),
        "dropout": read(config, "dropout", 0.1),
        "activation": activation(read(config, "activation_function", "relu")),
        "backbone": backbone,
    }
    return Converted(keywords, ours, names)


def without_twins(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state without the second copies of heads.

    Raises:
        ValueError: They differ.
    """
    twins = {key for key in state if key.startswith(TWINS) and key.removeprefix(TWINS) in state}
    if different := sorted(key for key in twins if not torch.equal(state[key], state[key.removeprefix(TWINS)])):
        raise ValueError(f"{different[0]!r} is not equal to {different[0].removeprefix(TWINS)!r}")
    return {key: tensor for key, tensor in state.items() if key not in twins}


def fold_heads(ours: MutableMapping[str, Tensor], names: MutableMapping[str, str], count: int) -> bool:
    """Whether the heads of all layers are equal: then the first one remains; otherwise each layer gets its own."""
    first = [name for name in ours if name.startswith(("class_heads.0.", "box_heads.0."))]
    others = {name.replace("heads.0.", f"heads.{n}."): name for name in first for n in range(1, count)}
    for other, name in others.items():
        if other not in ours:  # tied heads are saved once
            ours[other], names[other] = ours[name], names[name]
    if shared := all(torch.equal(ours[other], ours[name]) for other, name in others.items()):
        for other in others:
            del ours[other]
    return shared
