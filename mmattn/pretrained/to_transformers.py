"""Conversion of networks of this package to the format of transformers: the inverse of the families' converters.

Each function takes the keywords and the state dict of one of our classes, and returns the config.json and the state
dict of the class of transformers that computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .bart import BART, STACKS
from .bert import LAYERS
from .gpt2 import LAYERS as GPT2, MAPS
from .keymap import rename_back
from .vit import TRANSFORMERS
from .whisper import WHISPER

Foreign = tuple[dict[str, Any], dict[str, Tensor]]  # config.json and state dict
SEQ2SEQ = {"norm_first": True, "norm_embeddings": False, "norm": "layer", "norm_eps": 1e-5, "gated": False}
SEQ2SEQ |= {"bias": True, "head_dim": None}  # defaults of `Seq2Seq`
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu"}


def stacks_back(keywords: Mapping[str, Any], state: Mapping[str, Tensor]) -> Foreign:
    """A `Seq2Seq` as MarianMTModel or BartForConditionalGeneration.

    Raises:
        ValueError: It is neither; says why.
    """
    learned = keywords.get("positions", "sinusoidal") == "learned"
    expected = {"norm_first": False, "norm_embeddings": learned, "norm": "layer", "norm_eps": 1e-5, "gated": False}
    _require(keywords, expected | {"bias": True, "head_dim": None}, SEQ2SEQ)
    if keywords.get("positions", "sinusoidal") not in ("learned", "sinusoidal"):
        raise ValueError(f"positions: expected learned or sinusoidal, found {keywords['positions']!r}")
    given = dict(state)
    if learned:  # two rows that are never used precede them
        for name in ("positions.weight", "target_positions.weight"):
            given[name] = torch.cat([torch.zeros_like(given[name][:2]), given[name]])
    if "output.bias" in given:
        given["output.bias"] = given["output.bias"][None]
    shared, tied = keywords.get("shared_embeddings", True), keywords.get("tied_output", True)
    config = _stack_config(keywords) | {
        "model_type": "bart" if learned else "marian",
        "architectures": ["BartForConditionalGeneration" if learned else "MarianMTModel"],
        "scale_embedding": bool(keywords.get("scale_embeddings", True)),
        "tie_word_embeddings": bool(tied),
        "share_encoder_decoder_embeddings": bool(shared),
        "max_position_embeddings": keywords.get("max_len", 512),
    }
    if learned and not shared:
        raise ValueError("shared_embeddings: expected one table of source and target, as BART has; found two")
    if not shared:
        config["decoder_vocab_size"] = keywords.get("target_vocab_size") or keywords["vocab_size"]
    table = BART if learned else STACKS
    if shared:
        given["shared"] = given.pop("embedding.weight")
        given.pop("target_embedding.weight", None)
    if tied:
        given.pop("output.weight", None)
    return config, rename_back(given, table, prefix="model.", bare=("lm_head", "final_logits_bias"))


def whisper_back(keywords: Mapping[str, Any], state: Mapping[str, Tensor]) -> Foreign:
    """A `Whisper` as WhisperForConditionalGeneration."""
    given = dict(state)
    given.pop("embedding.weight", None)  # the source is audio; the table is the target's
    tied = keywords.get("tied_output", True)
    if tied:
        given.pop("output.weight", None)
    config = _stack_config(keywords) | {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "num_mel_bins": keywords.get("num_mels", 80),
        "max_source_positions": keywords.get("max_frames", 3000) // 2,
        "max_target_positions": keywords.get("max_len", 448),
        "tie_word_embeddings": bool(tied),
    }
    table = WHISPER | {"proj_out.weight": "output.weight"}
    return config, rename_back(given, table, prefix="model.", bare=("proj_out",))


def bert_back(keywords: Mapping[str, Any], state: Mapping[str, Tensor]) -> Foreign:
    """A `BertEncoder` without its pooler as BertModel; the names of the tensors begin with "bert.".

    Raises:
        ValueError: It is a RoBERTa, DistilBERT, ELECTRA or ALBERT.
    """
    others = {"pad_id": None, "token_dim": None, "num_groups": None, "num_types": 2}
    _require(keywords, others, others)
    config = {
        "model_type": "bert",
        "vocab_size": keywords["vocab_size"],
        "hidden_size": keywords["embed_dim"],
        "num_hidden_layers": keywords["num_layers"],
        "num_attention_heads": keywords["num_heads"],
        "intermediate_size": keywords.get("ffn_dim") or 4 * keywords["embed_dim"],
        "max_position_embeddings": keywords.get("max_len", 512),
        "type_vocab_size": 2,
        "hidden_act": ACTIVATIONS[keywords.get("activation", "gelu")],
        "layer_norm_eps": keywords.get("norm_eps", 1e-12),
        "hidden_dropout_prob": keywords.get("dropout", 0.0),
        "attention_probs_dropout_prob": _dropout(keywords.get("attention")),
    }
    return config, rename_back(state, LAYERS, prefix="bert.")


def vit_back(keywords: Mapping[str, Any], state: Mapping[str, Tensor]) -> Foreign:
    """A `VisionTransformer` with one class token as ViTModel without a pooler; the names begin with "vit.".

    Raises:
        ValueError: It has other tokens, or options that ViT does not have.
    """
    given = dict(state)
    if keywords.get("num_prefix", 1) != 1 or "prefix" not in given:
        raise ValueError(f"num_prefix: expected one class token, found {keywords.get('num_prefix', 1)}")
    others = {name: tensor for name, tensor in given.items() if name.startswith(("pooler.", "head."))}
    if others:
        raise ValueError(f"pooler: expected none, found {', '.join(others)}")
    positions = given.pop("positions")  # (1, E, h, w); the class token has that of its own in it
    given["class_token"] = given.pop("prefix")[None]  # (1, 1, E)
    rows = positions.flatten(2).transpose(1, 2)  # (1, h w, E)
    given["positions"] = torch.cat([torch.zeros_like(rows[:, :1]), rows], dim=1)
    patch = int(keywords["patch_size"])
    config = {
        "model_type": "vit",
        "hidden_size": keywords["embed_dim"],
        "num_hidden_layers": keywords["num_layers"],
        "num_attention_heads": keywords["num_heads"],
        "intermediate_size": keywords.get("ffn_dim") or 4 * keywords["embed_dim"],
        "image_size": [patch * side for side in positions.shape[-2:]],
        "patch_size": patch,
        "num_channels": keywords.get("in_channels", 3),
        "hidden_act": ACTIVATIONS[keywords.get("activation", "gelu")],
        "qkv_bias": keywords.get("qkv_bias", True),
        "layer_norm_eps": keywords.get("norm_eps", 1e-6),
        "hidden_dropout_prob": keywords.get("dropout", 0.0),
        "attention_probs_dropout_prob": _dropout(keywords.get("attention")),
    }
    return config, rename_back(given, TRANSFORMERS, prefix="vit.")


def gpt2_back(keywords: Mapping[str, Any], state: Mapping[str, Tensor]) -> Foreign:
    """A `CausalLM` as GPT2LMHeadModel.

    Raises:
        ValueError: It has other positions, norms or feed-forward networks.
    """
    expected = {"positions": "learned", "norm": "layer", "gated": False, "bias": True, "ffn_bias": True}
    _require(keywords, expected, expected)
    given, table = dict(state), {name: ours for name, ours in GPT2.items() if isinstance(ours, str)}
    if keywords.get("tied_output", True):
        given.pop("output.weight", None)
    for first in [name for name in given if ".attention.q_proj." in name]:  # one map of queries, keys and values
        parts = [given.pop(first.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        given[first.replace("q_proj", "qkv")] = torch.cat(parts)
    table |= {"h.#.attn.c_attn.*": "decoder.layers.#.attention.qkv.*"}
    found = rename_back(given, table, prefix="transformer.", bare=("lm_head",))
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": keywords["vocab_size"],
        "n_embd": keywords["embed_dim"],
        "n_layer": keywords["num_layers"],
        "n_head": keywords["num_heads"],
        "n_inner": keywords.get("ffn_dim") or 4 * keywords["embed_dim"],
        "n_positions": keywords["max_len"],
        "layer_norm_epsilon": keywords.get("norm_eps", 1e-5),
        "activation_function": ACTIVATIONS[keywords.get("activation", "gelu")],
        "resid_pdrop": keywords.get("dropout", 0.0),
        "attn_pdrop": _dropout(keywords.get("attention")),
        "tie_word_embeddings": bool(keywords.get("tied_output", True)),
    }
    return config, {name: one.t().contiguous() if name.endswith(MAPS) else one for name, one in found.items()}


def _stack_config(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that encoder-decoders share."""
    for name in ("attention", "decoder_attention", "cross_attention"):
        _dropout(keywords.get(name))
    layers, width = keywords["num_layers"], keywords["embed_dim"]
    decoder = keywords.get("num_decoder_layers")
    sides = {"attention_heads": keywords["num_heads"], "ffn_dim": keywords.get("ffn_dim") or 4 * width}
    config: dict[str, Any] = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
    return config | {
        "vocab_size": keywords["vocab_size"],
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers if decoder is None else decoder,
        "activation_function": ACTIVATIONS[keywords.get("activation", "gelu")],
        "dropout": keywords.get("dropout", 0.0),
        "attention_dropout": _dropout(keywords.get("attention")),
        "is_encoder_decoder": True,
    }


def _dropout(attention: Any) -> float:
    """The dropout of dense attention.

    Raises:
        ValueError: Another kernel.
    """
    options = {"kind": attention} if isinstance(attention, str) else dict(attention or {})
    if options.pop("kind", "dense") != "dense" or options.keys() - {"dropout"}:
        raise ValueError(f"attention: expected the kernel dense, found {attention}")
    return float(options.get("dropout") or 0.0)


def _require(keywords: Mapping[str, Any], expected: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises a ValueError for keywords that the foreign class does not have."""
    for key, value in expected.items():
        if (found := keywords.get(key, defaults[key])) != value:
            raise ValueError(f"{key}: expected {value!r}, found {found!r}")


def split_prefix(state: MutableMapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Takes the tensors whose names begin with a prefix out of a state dict; returns them without it."""
    return {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
