"""RT-DETR in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .deformable_detr import CROSS, HEADS, TWINS, without_twins
from .detr import DECODER_LAYER, ENCODER_LAYER
from .keymap import Converted, activation, attention_dropout, read, rename, require
from .resnet import RESNET, conv_norm, read_resnet, without_counts


def _fusion(theirs: str, ours: str) -> dict[str, str]:
    parts = {
        "conv1": "branch",
        "conv2": "shortcut",
        "conv3": "project",
        "bottlenecks.#.conv1": "blocks.#.wide",
        "bottlenecks.#.conv2": "blocks.#.narrow",
    }
    table: dict[str, str] = {}
    for name, part in parts.items():
        table |= conv_norm(f"{theirs}.{name}.conv", f"{theirs}.{name}.norm", f"{ours}.{part}")
    return table


MODEL = {
    **{
        f"encoder.{aifi}.#.layers.#.{name}": f"encoder.attentions.#.layers.#.{ours}"
        for aifi in ("encoder", "aifi")  # in files, and in memory
        for name, ours in ENCODER_LAYER.items()
    },
    **{f"decoder.layers.#.{name}": f"decoder.#.{ours}" for name, ours in (DECODER_LAYER | CROSS).items()},
    **RESNET,
    **conv_norm("encoder_input_proj.#.0", "encoder_input_proj.#.1", "projections.#"),
    **conv_norm("decoder_input_proj.#.0", "decoder_input_proj.#.1", "levels.#"),
    **conv_norm("encoder.lateral_convs.#.conv", "encoder.lateral_convs.#.norm", "encoder.lateral.#"),
    **conv_norm("encoder.downsample_convs.#.conv", "encoder.downsample_convs.#.norm", "encoder.halve.#"),
    **_fusion("encoder.fpn_blocks.#", "encoder.top_down.#"),
    **_fusion("encoder.pan_blocks.#", "encoder.bottom_up.#"),
    "enc_output.0.*": "proposal_proj.*",
    "enc_output.1.*": "proposal_norm.*",
    "enc_score_head.*": "proposal_classes.*",
    "enc_bbox_head.layers.#.*": "proposal_boxes.layers.#.*",
    "decoder.query_pos_head.layers.#.*": "query_pos.layers.#.*",
}
TABLE = {f"model.{name}": ours for name, ours in MODEL.items()}
TABLE |= {f"{prefix}{name}": ours for prefix in ("", TWINS) for name, ours in HEADS.items()}
TRAINING = ("model.denoising_class_embed",)


def convert_rt_detr(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """RT-DETR of transformers (Zhao et al. 2024), without the embeddings of labels that are added in training."""
    # transformers leaves positions out in evaluation with an eval_size, and fails with learn_initial_query.
    require(config, {"eval_size": None, "normalize_before": False, "learn_initial_query": False})
    ours, names = rename(without_twins(state), TABLE, ignore=TRAINING, required=("model.enc_score_head.*",))
    backbone = read_resnet(config, ours, (2, 3, 4), "rt_detr_resnet")
    if backbone["frozen"]:
        without_counts(ours)
    dropout = read(config, "dropout", 0.0)
    keywords = {
        "num_classes": ours["proposal_classes.weight"].shape[0],
        "embed_dim": read(config, "d_model", 256),
        "num_queries": read(config, "num_queries", 300),
        "num_levels": read(config, "num_feature_levels", 3),
        "num_points": read(config, "decoder_n_points", 4),
        "num_layers": read(config, "decoder_layers", 6),
        "num_heads": read(config, "decoder_attention_heads", 8),
        "ffn_dim": read(config, "decoder_ffn_dim", 1024),
        "encoder_dim": read(config, "encoder_hidden_dim", 256),
        "encoder_layers": read(config, "encoder_layers", 1),
        "encoder_heads": read(config, "encoder_attention_heads", 8),
        "encoder_ffn_dim": read(config, "encoder_ffn_dim", 1024),
        "attended": tuple(read(config, "encode_proj_layers", (2,))),
        "expansion": read(config, "hidden_expansion", 1.0),
        "base": read(config, "positional_encoding_temperature", 10000),
        "attention": attention_dropout(read(config, "attention_dropout", 0.0)),
        "encoder_attention": attention_dropout(dropout),
        "dropout": dropout,
        "activation": activation(read(config, "decoder_activation_function", "relu")),
        "encoder_activation": activation(read(config, "encoder_activation_function", "gelu")),
        "conv_activation": activation(read(config, "activation_function", "silu")),
        "norm_eps": read(config, "layer_norm_eps", 1e-5),
        "batch_norm_eps": read(config, "batch_norm_eps", 1e-5),
        "backbone": backbone,
    }
    return Converted(keywords, ours, names)
