"""BERT, including MiniLM, RoBERTa, DistilBERT, ELECTRA and ALBERT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, Table, activation, attention_dropout, read, rename, require, required_names

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embedding.weight",
    "embeddings.position_embeddings.weight": "positions.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.*": "norm.*",
}
LAYERS = EMBEDDINGS | {
    "encoder.layer.#.attention.self.query.*": "encoder.layers.#.attention.q_proj.*",
    "encoder.layer.#.attention.self.key.*": "encoder.layers.#.attention.k_proj.*",
    "encoder.layer.#.attention.self.value.*": "encoder.layers.#.attention.v_proj.*",
    "encoder.layer.#.attention.output.dense.*": "encoder.layers.#.attention.out_proj.*",
    "encoder.layer.#.attention.output.LayerNorm.*": "encoder.layers.#.attention_residual.norm.*",
    "encoder.layer.#.intermediate.dense.*": "encoder.layers.#.ffn.fc1.*",
    "encoder.layer.#.output.dense.*": "encoder.layers.#.ffn.fc2.*",
    "encoder.layer.#.output.LayerNorm.*": "encoder.layers.#.ffn_residual.norm.*",
}
DISTILBERT = EMBEDDINGS | {
    "transformer.layer.#.attention.q_lin.*": "encoder.layers.#.attention.q_proj.*",
    "transformer.layer.#.attention.k_lin.*": "encoder.layers.#.attention.k_proj.*",
    "transformer.layer.#.attention.v_lin.*": "encoder.layers.#.attention.v_proj.*",
    "transformer.layer.#.attention.out_lin.*": "encoder.layers.#.attention.out_proj.*",
    "transformer.layer.#.sa_layer_norm.*": "encoder.layers.#.attention_residual.norm.*",
    "transformer.layer.#.ffn.lin1.*": "encoder.layers.#.ffn.fc1.*",
    "transformer.layer.#.ffn.lin2.*": "encoder.layers.#.ffn.fc2.*",
    "transformer.layer.#.output_layer_norm.*": "encoder.layers.#.ffn_residual.norm.*",
}
# Checkpoints converted from TensorFlow name a norm's weight and bias gamma and beta.
for old, new in (("gamma", "weight"), ("beta", "bias")):
    LAYERS |= {name.replace("*", old): ours.replace("*", new) for name, ours in LAYERS.items() if "LayerNorm.*" in name}
BERT = LAYERS | {"pooler.dense.*": "pooler.dense.*"}
ELECTRA = LAYERS | {"embeddings_project.*": "project.*"}

_ALBERT = "encoder.albert_layer_groups.#.albert_layers.0"
ALBERT = EMBEDDINGS | {
    "encoder.embedding_hidden_mapping_in.*": "project.*",
    f"{_ALBERT}.attention.query.*": "encoder.layers.#.attention.q_proj.*",
    f"{_ALBERT}.attention.key.*": "encoder.layers.#.attention.k_proj.*",
    f"{_ALBERT}.attention.value.*": "encoder.layers.#.attention.v_proj.*",
    f"{_ALBERT}.attention.dense.*": "encoder.layers.#.attention.out_proj.*",
    f"{_ALBERT}.attention.LayerNorm.*": "encoder.layers.#.attention_residual.norm.*",
    f"{_ALBERT}.ffn.*": "encoder.layers.#.ffn.fc1.*",
    f"{_ALBERT}.ffn_output.*": "encoder.layers.#.ffn.fc2.*",
    f"{_ALBERT}.full_layer_layer_norm.*": "encoder.layers.#.ffn_residual.norm.*",
    "pooler.*": "pooler.dense.*",
}

# Buffers saved by older versions, and task heads.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
BERT_HEADS = ("cls", "classifier", "qa_outputs")
ROBERTA_HEADS = ("lm_head", "classifier", "qa_outputs")
DISTILBERT_HEADS = (
    "vocab_transform",
    "vocab_layer_norm",
    "vocab_projector",
    "pre_classifier",
    "classifier",
    "qa_outputs",
)
ELECTRA_HEADS = (
    "discriminator_predictions",
    "generator_predictions",
    "generator_lm_head",
    "sequence_summary",
    "classifier",
    "qa_outputs",
)
ALBERT_HEADS = ("predictions", "sop_classifier", "classifier", "qa_outputs")


def convert_bert(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """BERT and MiniLM (Devlin et al. 2019; Wang et al. 2020)."""
    ours, names = _rename(state, BERT, head, prefix="bert.", heads=BERT_HEADS)
    return Converted(_keywords(config, ours), ours, names)


def convert_roberta(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """RoBERTa and XLM-RoBERTa (Liu et al. 2019; Conneau et al. 2020)."""
    ours, names = _rename(state, BERT, head, prefix="roberta.", heads=ROBERTA_HEADS)
    return Converted(_keywords(config, ours) | {"pad_id": read(config, "pad_token_id", 1)}, ours, names)


def convert_electra(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """ELECTRA (Clark et al. 2020): discriminators, which tasks start from, and generators."""
    ours, names = _rename(state, ELECTRA, head, prefix="electra.", heads=ELECTRA_HEADS)
    return Converted(_keywords(config, ours) | {"token_dim": read(config, "embedding_size", 128)}, ours, names)


def convert_albert(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """ALBERT (Lan et al. 2020), whose layers share their weights."""
    require(config, {"inner_group_num": 1})
    ours, names = _rename(state, ALBERT, head, prefix="albert.", heads=ALBERT_HEADS)
    groups, width = read(config, "num_hidden_groups", 1), read(config, "hidden_size")
    size = read(config, "embedding_size", 128)
    if size == width:
        raise ValueError(f"config.json has embedding_size={size}, which equals hidden_size: not supported")
    keywords = _keywords({**config, "hidden_act": read(config, "hidden_act", "gelu_new")}, ours)
    return Converted(keywords | {"token_dim": size, "num_groups": groups}, ours, names)


def convert_distilbert(config: Mapping[str, Any], state: Mapping[str, Tensor], head: Table | None = None) -> Converted:
    """DistilBERT (Sanh et al. 2019)."""
    ours, names = _rename(state, DISTILBERT, head, prefix="distilbert.", heads=DISTILBERT_HEADS)
    keywords = {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": read(config, "dim"),
        "num_layers": read(config, "n_layers"),
        "num_heads": read(config, "n_heads"),
        "ffn_dim": read(config, "hidden_dim"),
        "max_len": read(config, "max_position_embeddings", 512),
        "num_types": 0,
        "pooler": False,
        "activation": activation(read(config, "activation", "gelu")),
        "dropout": read(config, "dropout", 0.1),
        "attention": attention_dropout(read(config, "attention_dropout", 0.1)),
    }
    return Converted(keywords, ours, names)


def _rename(
    state: Mapping[str, Tensor], table: Table, head: Table | None, *, prefix: str, heads: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames an encoder without its heads; or with the one in `head`, which must be present, and no other may be."""
    if head is None:
        return rename(state, table, prefix=prefix, ignore=(*BUFFERS, *heads))
    return rename(state, {**table, **head}, prefix=prefix, ignore=BUFFERS, required=required_names(head))


def _keywords(config: Mapping[str, Any], ours: Mapping[str, Tensor]) -> dict[str, Any]:
    require(config, {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False})
    return bert_keywords(config) | {
        "num_types": read(config, "type_vocab_size", 2),
        "pooler": any(name.startswith("pooler.") for name in ours),  # often absent in task models
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.1)),
    }


def bert_keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords that BERT's encoders and decoders share."""
    return {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": read(config, "hidden_size"),
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "ffn_dim": read(config, "intermediate_size"),
        "max_len": read(config, "max_position_embeddings", 512),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "norm_eps": read(config, "layer_norm_eps", 1e-12),
        "dropout": read(config, "hidden_dropout_prob", 0.1),
    }
