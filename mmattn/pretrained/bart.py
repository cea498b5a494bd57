"""BART in the format of transformers, with functions shared with Marian."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename, require, same

LAYER = {
    "self_attn_layer_norm.*": "{self}_residual.norm.*",
    "encoder_attn.q_proj.*": "cross_attention.q_proj.*",
    "encoder_attn.k_proj.*": "cross_attention.k_proj.*",
    "encoder_attn.v_proj.*": "cross_attention.v_proj.*",
    "encoder_attn.out_proj.*": "cross_attention.out_proj.*",
    "encoder_attn_layer_norm.*": "cross_residual.norm.*",
    "fc1.*": "ffn.fc1.*",
    "fc2.*": "ffn.fc2.*",
    "final_layer_norm.*": "ffn_residual.norm.*",
} | {f"self_attn.{part}_proj.*": f"{{attention}}.{part}_proj.*" for part in ("q", "k", "v", "out")}
OWN = {  # names of a decoder layer's self-attention
    "encoder": {"self": "attention", "attention": "attention"},
    "decoder": {"self": "self", "attention": "self_attention"},
}
EMBEDDINGS = {
    "shared.weight": "shared",
    "encoder.embed_tokens.weight": "embedding.weight",
    "decoder.embed_tokens.weight": "target_embedding.weight",
    "lm_head.weight": "output.weight",
}
STACKS = EMBEDDINGS | {
    f"{side}.layers.#.{name}": f"{side}.layers.#.{ours.format(**own)}"
    for side, own in OWN.items()
    for name, ours in LAYER.items()
    if side == "decoder" or not name.startswith("encoder_attn")
}
STACKS |= {
    "final_logits_bias": "output.bias",
    "encoder.embed_positions.weight": "positions.weight",
    "decoder.embed_positions.weight": "target_positions.weight",
}
BART = STACKS | {
    "encoder.layernorm_embedding.*": "embedding_norm.*",
    "decoder.layernorm_embedding.*": "target_embedding_norm.*",
}
# Tensors of fairseq's checkpoints, and task heads.
OTHERS = ("encoder.version", "decoder.version", "classification_head", "qa_outputs")


def convert_bart(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """BART (Lewis et al. 2020)."""
    require(config, {"normalize_embedding": True, "static_position_embeddings": False})
    ours, names = rename(state, BART, prefix="model.", ignore=OTHERS)
    for name in ("positions.weight", "target_positions.weight"):
        if name in ours:
            ours[name] = ours[name][2:]  # the first two are unused: positions were counted from the padding id
    keywords = stack_keywords(config, ours, names) | {
        "positions": "learned",
        "max_len": read(config, "max_position_embeddings", 1024),
        "norm_embeddings": True,
    }
    return Converted(keywords, ours, names)


def stack_keywords(
    config: Mapping[str, Any], ours: MutableMapping[str, Tensor], names: MutableMapping[str, str]
) -> dict[str, Any]:
    """Returns the keywords that BART and Marian share, and adds tied tensors to ours."""
    require(config, {"normalize_before": False, "add_final_layer_norm": False, "add_bias_logits": False})
    for size in ("attention_heads", "ffn_dim"):
        require(config, {f"decoder_{size}": read(config, f"encoder_{size}")})
    tied = read(config, "tie_word_embeddings", True)
    one_table = read(config, "share_encoder_decoder_embeddings", True)  # Marian's alone
    if "output.bias" in ours:
        ours["output.bias"] = ours["output.bias"].flatten()  # (V,), of (1, V)
    return (
        tie(ours, names, tied=tied, one_table=one_table)
        | {
            "vocab_size": read(config, "vocab_size"),
            "embed_dim": read(config, "d_model"),
            "num_layers": read(config, "encoder_layers"),
            "num_decoder_layers": read(config, "decoder_layers"),
            "num_heads": read(config, "encoder_attention_heads"),
            "ffn_dim": read(config, "encoder_ffn_dim"),
            "output_bias": "output.bias" in ours,  # absent in a model without its head
            "scale_embeddings": read(config, "scale_embedding", False),
            "norm_first": False,
            "activation": activation(read(config, "activation_function", "gelu")),
            "dropout": read(config, "dropout", 0.1),
        }
        | dict.fromkeys(
            ("attention", "decoder_attention", "cross_attention"),
            attention_dropout(read(config, "attention_dropout", 0.0)),
        )
    )


def tie(
    ours: MutableMapping[str, Tensor], names: MutableMapping[str, str], *, tied: bool = True, one_table: bool = True
) -> dict[str, bool]:
    """Adds missing tied tables of source, target and output to a state dict.

    Tied tables are saved once, under any of their names, or, by older versions, under each of them. If tensors
    contradict config.json, the tensors have precedence, as in transformers.

    Args:
        ours: A renamed state dict; "shared" is removed, missing tables are added.
        names: Foreign name of each key.
        tied: Whether config.json ties the output to the target.
        one_table: Whether it has one table for source and target.

    Returns:
        Keywords of the constructor.

    Raises:
        ValueError: A table and those that it could be tied to are missing.
    """
    shared, source, target, output = EMBEDDINGS.values()
    joint = tied and one_table
    wanted = {  # the candidates for each, in this order
        source: (source, shared, *((target, output) if joint else ())),
        target: (target, shared, *((output,) if tied else ()), *((source,) if joint else ())),
        output: (output, *((target,) if tied else ())),
    }
    for name, places in wanted.items():
        found = next((place for place in places if place in ours), None)
        if found is None:
            foreign = next(key for key, value in EMBEDDINGS.items() if value == name)
            raise ValueError(f"missing {foreign}, and the tables that config.json ties it to")
        ours[name], names[name] = ours[found], names[found]
    for mapping in (ours, names):
        mapping.pop(shared, None)
    return {"shared_embeddings": same(ours[source], ours[target]), "tied_output": same(ours[target], ours[output])}
