"""DETR in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename
from .resnet import RESNET, read_resnet, without_counts

# Names of attentions and feed-forward networks, in files of transformers 4 and 5 and in state dicts of transformers 5.
SELF = {f"self_attn.{part}_proj.*": f"{part}_proj.*" for part in ("q", "k", "v", "out")} | {
    "self_attn.o_proj.*": "out_proj.*"
}
FFN = {f"{prefix}{part}.*": f"ffn.{part}.*" for prefix in ("", "mlp.") for part in ("fc1", "fc2")} | {
    "final_layer_norm.*": "ffn_residual.norm.*"
}
ENCODER_LAYER = {name: f"attention.{ours}" for name, ours in SELF.items()} | {
    "self_attn_layer_norm.*": "attention_residual.norm.*",
    **FFN,
}
# Of a decoder layer, without its cross-attention.
DECODER_LAYER = {name: f"self_attention.{ours}" for name, ours in SELF.items()} | {
    "self_attn_layer_norm.*": "self_residual.norm.*",
    "encoder_attn_layer_norm.*": "cross_residual.norm.*",
    **FFN,
}
CROSS = {name.replace("self", "encoder"): f"cross_attention.{ours}" for name, ours in SELF.items()}
POSITIONS = {
    "position_embedding.row_embeddings.weight": "positions.rows",
    "position_embedding.column_embeddings.weight": "positions.columns",
}
MODEL = {
    **{f"encoder.layers.#.{name}": f"encoder.layers.#.{ours}" for name, ours in ENCODER_LAYER.items()},
    **{f"decoder.layers.#.{name}": f"decoder.#.{ours}" for name, ours in (DECODER_LAYER | CROSS).items()},
    **RESNET,
    "decoder.layernorm.*": "norm.*",
    "input_projection.*": "project.*",
    "query_position_embeddings.weight": "query_pos",
    **POSITIONS,
}
TABLE = {f"{prefix}{name}": ours for prefix in ("model.", "") for name, ours in MODEL.items()} | {
    "class_labels_classifier.*": "classifier.*",
    "bbox_predictor.layers.#.*": "boxes.layers.#.*",
}
MASKS = ("mask_head", "bbox_attention")  # of DetrForSegmentation


def convert_detr(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """DETR of transformers (Carion et al. 2020), with its heads if the weights contain them; heads of masks are not."""
    ours, names = rename(state, TABLE, prefix="detr.", ignore=MASKS)
    backbone = read_resnet(config, ours, (1, 2, 3, 4))
    without_counts(ours)
    classes = ours["classifier.bias"].shape[0] - 1 if "classifier.bias" in ours else None
    dropout = attention_dropout(read(config, "attention_dropout", 0.0))
    keywords = {
        "num_classes": classes,
        "embed_dim": read(config, "d_model", 256),
        "num_queries": read(config, "num_queries", 100),
        "num_encoder_layers": read(config, "encoder_layers", 6),
        "num_decoder_layers": read(config, "decoder_layers", 6),
        "num_heads": read(config, "encoder_attention_heads", 8),
        "decoder_heads": read(config, "decoder_attention_heads", 8),
        "ffn_dim": read(config, "encoder_ffn_dim", 2048),
        "decoder_ffn_dim": read(config, "decoder_ffn_dim", 2048),
        "positions": read(config, "position_embedding_type", "sine"),
        "norm_between": read(config, "auxiliary_loss", False),
        "attention": dropout,
        "cross_attention": dropout,
        "dropout": read(config, "dropout", 0.1),
        "activation": activation(read(config, "activation_function", "relu")),
        "backbone": backbone,
    }
    return Converted(keywords, ours, names)
