"""BERT with cross-attention in the format of transformers, as a part of other models."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .bert import LAYERS, bert_keywords
from .keymap import attention_dropout, read, require, tie

DECODER = {
    name: ours.replace("encoder.", "decoder.")
    .replace("attention", "self_attention")
    .replace("self_attention_", "self_")
    for name, ours in LAYERS.items()
}
# The cross-attention has the names of the self-attention beside it.
DECODER |= {
    name.replace(".attention.", ".crossattention."): ours.replace("self_", "cross_")
    for name, ours in DECODER.items()
    if ".attention." in name
}
HEAD = {
    "cls.predictions.transform.dense.*": "output.dense.*",
    "cls.predictions.transform.LayerNorm.*": "output.norm.*",
    "cls.predictions.decoder.*": "output.tokens.*",
    "cls.predictions.bias": "output.tokens.bias",
}
WRITER = {f"bert.{name}": ours for name, ours in DECODER.items()} | HEAD


def unused(state: Mapping[str, Tensor], part: str) -> tuple[str, ...]:
    """Returns what to ignore of a decoder's state: older buffers, and the copy of the output's bias.

    Args:
        state: The foreign state dict.
        part: Foreign prefix of the decoder.
    """
    copied = f"{part}cls.predictions.decoder.bias" in state
    return (f"{part}bert.embeddings.position_ids", *((f"{part}cls.predictions.bias",) if copied else ()))


def decoder_keywords(
    config: Mapping[str, Any], ours: MutableMapping[str, Tensor], names: MutableMapping[str, str], part: str, tied: bool
) -> dict[str, Any]:
    """Returns the keywords of a `BertDecoder`, and adds its tied output to ours.

    Args:
        config: The config.json, or its section of the decoder.
        ours: A renamed state dict.
        names: Foreign name of each of its keys.
        part: Prefix of the decoder's names in ours.
        tied: Whether the config ties the output to the embedding table; if the tensors contradict it, they have
            precedence.
    """
    require(config, {"position_embedding_type": "absolute", "is_decoder": True, "add_cross_attention": True})
    dropped = attention_dropout(read(config, "attention_probs_dropout_prob", 0.1))
    return bert_keywords(config) | {
        "tied_output": tie(ours, names, f"{part}embedding.weight", f"{part}output.tokens.weight", tied),
        "decoder_attention": dropped,
        "cross_attention": dropped,
    }
