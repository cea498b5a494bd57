"""Whisper in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bart import STACKS, tie
from .keymap import Converted, activation, attention_dropout, read, rename, require

# The names of BART's stacks, except tables that Whisper lacks.
WHISPER = {name: ours for name, ours in STACKS.items() if name not in ("shared.weight", "encoder.embed_tokens.weight")}
WHISPER |= {
    "encoder.conv1.*": "conv1.*",
    "encoder.conv2.*": "conv2.*",
    "encoder.layer_norm.*": "encoder.norm.*",
    "decoder.layer_norm.*": "decoder.norm.*",
}
OUTPUT = "proj_out"  # BART's lm_head
HEADS = ("projector", "classifier", "layer_weights")


def convert_whisper(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Whisper (Radford et al. 2022)."""
    require(config, {"scale_embedding": False})
    for size in ("attention_heads", "ffn_dim"):
        require(config, {f"decoder_{size}": read(config, f"encoder_{size}")})
    ours, names = rename(state, WHISPER | {f"{OUTPUT}.weight": "output.weight"}, prefix="model.", ignore=HEADS)
    if (target := "target_embedding.weight") in ours:  # the source is audio: the only table of tokens is the target's
        ours["embedding.weight"], names["embedding.weight"] = ours[target], names[target]
    tied = tie(ours, names, tied=read(config, "tie_word_embeddings", True))
    dropped = attention_dropout(read(config, "attention_dropout", 0.0))
    keywords = {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": read(config, "d_model"),
        "num_layers": read(config, "encoder_layers"),
        "num_heads": read(config, "encoder_attention_heads"),
        "num_mels": read(config, "num_mel_bins", 80),
        "num_decoder_layers": read(config, "decoder_layers"),
        "ffn_dim": read(config, "encoder_ffn_dim"),
        "max_frames": 2 * read(config, "max_source_positions", 1500),
        "max_len": read(config, "max_target_positions", 448),
        "tied_output": tied["tied_output"],
        "activation": activation(read(config, "activation_function", "gelu")),
        "dropout": read(config, "dropout", 0.0),
    } | dict.fromkeys(("attention", "decoder_attention", "cross_attention"), dropped)
    return Converted(keywords, ours, names)
