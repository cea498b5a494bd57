"""T5 and T5 1.1 (FLAN-T5, mT5's layout) in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bart import EMBEDDINGS, tie
from .keymap import Converted, activation, attention_dropout, read, rename, require

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
NETWORK = {"wi": "fc1", "wi_0": "fc1", "wi_1": "gate", "wo": "fc2"}  # the activation applies to wi_0 only


def _block(side: str, sublayers: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Returns the patterns of a stack's blocks, whose sublayers are numbered, and their names here."""
    table = {f"{side}.final_layer_norm.weight": f"{side}.norm.weight"}
    for i, (theirs, ours) in enumerate(sublayers.items()):
        block, layer = f"{side}.block.#.layer.{i}", f"{side}.layers.#"
        names = NETWORK if theirs == "DenseReluDense" else PROJECTIONS
        table |= {f"{block}.{theirs}.{a}.weight": f"{layer}.{ours[0]}.{b}.weight" for a, b in names.items()}
        table[f"{block}.layer_norm.weight"] = f"{layer}.{ours[1]}_residual.norm.weight"
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # shared by all blocks
    return table | {bias: f"{side}.position_bias.weight"}


T5 = (
    EMBEDDINGS
    | _block("encoder", {"SelfAttention": ("attention", "attention"), "DenseReluDense": ("ffn", "ffn")})
    | _block(
        "decoder",
        {
            "SelfAttention": ("self_attention", "self"),
            "EncDecAttention": ("cross_attention", "cross"),
            "DenseReluDense": ("ffn", "ffn"),
        },
    )
)
# An unused bias for cross-attention of the first checkpoints; heads of other tasks.
OTHERS = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias", "classification_head", "qa_outputs")


def convert_t5(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """T5 (Raffel et al. 2020, section 2.1) and T5 1.1 (Shazeer 2020): pre-norm without centring, no biases."""
    require(config, {"is_encoder_decoder": True})
    ours, names = rename(state, T5, prefix="transformer.", ignore=OTHERS)
    d_model, head_dim = read(config, "d_model"), read(config, "d_kv", 64)
    for name in ours:
        if name.endswith(".q_proj.weight"):  # T5 does not divide scores by sqrt(d)
            ours[name] = ours[name] * head_dim**0.5
    # transformers 5 has a key for the division of logits by sqrt(E); before, tied tables implied it.
    scaled = read(config, "scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    tables = tie(ours, names)
    # h W^T / sqrt(E) with embeddings W is h U^T with embeddings sqrt(E) U, as ours are scaled, where U = W / sqrt(E).
    both = scaled and tables["tied_output"]
    for name in ("embedding.weight", "target_embedding.weight"):
        ours[name] = ours[name] * d_model**-0.5 if both else ours[name]
    if scaled:
        ours["output.weight"] = ours["output.weight"] * d_model**-0.5
    network = read(config, "feed_forward_proj", "relu")
    name = "gelu_new" if network == "gated-gelu" else network.removeprefix("gated-")  # a quirk of its configuration
    num_layers, dropout = read(config, "num_layers"), read(config, "dropout_rate", 0.1)
    keywords = tables | {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": d_model,
        "num_layers": num_layers,
        "num_decoder_layers": read(config, "num_decoder_layers", num_layers),
        "num_heads": read(config, "num_heads"),
        "head_dim": head_dim,
        "ffn_dim": read(config, "d_ff"),
        "gated": network.startswith("gated-"),
        "activation": activation(name),
        "bias": False,
        "norm": "rms",
        "norm_eps": read(config, "layer_norm_epsilon", 1e-6),
        "positions": "relative",
        "num_buckets": read(config, "relative_attention_num_buckets", 32),
        "max_distance": read(config, "relative_attention_max_distance", 128),
        "scale_embeddings": both,
        "dropout": dropout,
    }
    for side in ("attention", "decoder_attention", "cross_attention"):
        keywords[side] = attention_dropout(dropout)
    return Converted(keywords, ours, names)
