"""SegFormer in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename

# files of transformers 4 and 5
SAVED = {
    "segformer.encoder.patch_embeddings.#.proj.*": "stages.#.patches.proj.*",
    "segformer.encoder.patch_embeddings.#.layer_norm.*": "stages.#.patches.norm.*",
    "segformer.encoder.block.#.#.layer_norm_1.*": "stages.#.layers.#.attention_norm.*",
    "segformer.encoder.block.#.#.attention.self.query.*": "stages.#.layers.#.attention.q_proj.*",
    "segformer.encoder.block.#.#.attention.self.key.*": "stages.#.layers.#.attention.k_proj.*",
    "segformer.encoder.block.#.#.attention.self.value.*": "stages.#.layers.#.attention.v_proj.*",
    "segformer.encoder.block.#.#.attention.self.sr.*": "stages.#.layers.#.reduce.*",
    "segformer.encoder.block.#.#.attention.self.layer_norm.*": "stages.#.layers.#.reduce_norm.*",
    "segformer.encoder.block.#.#.attention.output.dense.*": "stages.#.layers.#.attention.out_proj.*",
    "segformer.encoder.block.#.#.layer_norm_2.*": "stages.#.layers.#.ffn_norm.*",
    "segformer.encoder.block.#.#.mlp.dense1.*": "stages.#.layers.#.ffn.fc1.*",
    "segformer.encoder.block.#.#.mlp.dwconv.dwconv.*": "stages.#.layers.#.ffn.conv.*",
    "segformer.encoder.block.#.#.mlp.dense2.*": "stages.#.layers.#.ffn.fc2.*",
    "segformer.encoder.layer_norm.#.*": "stages.#.norm.*",
    "decode_head.linear_c.#.proj.*": "decoder.projections.#.*",
}
# state dicts of transformers 5
IN_MEMORY = {
    "segformer.stages.#.patch_embeddings.proj.*": "stages.#.patches.proj.*",
    "segformer.stages.#.patch_embeddings.layer_norm.*": "stages.#.patches.norm.*",
    "segformer.stages.#.blocks.#.layernorm_before.*": "stages.#.layers.#.attention_norm.*",
    "segformer.stages.#.blocks.#.attention.q_proj.*": "stages.#.layers.#.attention.q_proj.*",
    "segformer.stages.#.blocks.#.attention.k_proj.*": "stages.#.layers.#.attention.k_proj.*",
    "segformer.stages.#.blocks.#.attention.v_proj.*": "stages.#.layers.#.attention.v_proj.*",
    "segformer.stages.#.blocks.#.attention.o_proj.*": "stages.#.layers.#.attention.out_proj.*",
    "segformer.stages.#.blocks.#.attention.sequence_reduction.sequence_reduction.*": "stages.#.layers.#.reduce.*",
    "segformer.stages.#.blocks.#.attention.sequence_reduction.layer_norm.*": "stages.#.layers.#.reduce_norm.*",
    "segformer.stages.#.blocks.#.layernorm_after.*": "stages.#.layers.#.ffn_norm.*",
    "segformer.stages.#.blocks.#.mlp.fc1.*": "stages.#.layers.#.ffn.fc1.*",
    "segformer.stages.#.blocks.#.mlp.dwconv.dwconv.*": "stages.#.layers.#.ffn.conv.*",
    "segformer.stages.#.blocks.#.mlp.fc2.*": "stages.#.layers.#.ffn.fc2.*",
    "segformer.stages.#.layer_norm.*": "stages.#.norm.*",
    "decode_head.linear_projections.#.proj.*": "decoder.projections.#.*",
}
HEAD = {
    "decode_head.linear_fuse.weight": "decoder.fuse.weight",
    "decode_head.batch_norm.*": "decoder.norm.*",
    "decode_head.batch_norm.running_mean": "decoder.norm.running_mean",
    "decode_head.batch_norm.running_var": "decoder.norm.running_var",
    "decode_head.batch_norm.num_batches_tracked": "decoder.norm.num_batches_tracked",
    "decode_head.classifier.*": "decoder.classifier.*",
}
TABLE = {**SAVED, **IN_MEMORY, **HEAD}
# The encoder alone is saved without its prefix.
TABLE |= {name.removeprefix("segformer."): ours for name, ours in (SAVED | IN_MEMORY).items()}


def convert_segformer(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """SegFormer of transformers (Xie et al. 2021), with a decoder if the weights contain it."""
    ours, names = rename(state, TABLE, ignore=("classifier",))  # head of the pretraining on image classes
    classes = ours["decoder.classifier.bias"].shape[0] if "decoder.classifier.bias" in ours else None
    keywords = {
        "num_classes": classes,
        "embed_dims": tuple(read(config, "hidden_sizes", (32, 64, 160, 256))),
        "num_layers": tuple(read(config, "depths", (2, 2, 2, 2))),
        "num_heads": tuple(read(config, "num_attention_heads", (1, 2, 5, 8))),
        "reductions": tuple(read(config, "sr_ratios", (8, 4, 2, 1))),
        "patch_sizes": tuple(read(config, "patch_sizes", (7, 3, 3, 3))),
        "strides": tuple(read(config, "strides", (4, 2, 2, 2))),
        "ffn_ratios": tuple(read(config, "mlp_ratios", (4, 4, 4, 4))),
        "decoder_dim": read(config, "decoder_hidden_size", 256),
        "attention": attention_dropout(config.get("attention_probs_dropout_prob", 0.0)),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "drop_path": config.get("drop_path_rate", 0.1),
        "classifier_dropout": config.get("classifier_dropout_prob", 0.1),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "in_channels": read(config, "num_channels", 3),
    }
    return Converted(keywords, ours, names)
