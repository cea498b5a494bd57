"""Llama, Mistral, Qwen2 and Qwen3 in the format of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .gpt2 import tie_output
from .keymap import Converted, Table, activation, attention_dropout, read, rename, require

LAYERS: Table = {
    "embed_tokens.weight": "embedding.weight",
    "layers.#.input_layernorm.weight": "decoder.layers.#.attention_residual.norm.weight",
    "layers.#.self_attn.q_proj.*": "decoder.layers.#.attention.q_proj.*",
    "layers.#.self_attn.k_proj.*": "decoder.layers.#.attention.k_proj.*",
    "layers.#.self_attn.v_proj.*": "decoder.layers.#.attention.v_proj.*",
    "layers.#.self_attn.o_proj.*": "decoder.layers.#.attention.out_proj.*",
    "layers.#.self_attn.q_norm.weight": "decoder.layers.#.attention.q_norm.weight",
    "layers.#.self_attn.k_norm.weight": "decoder.layers.#.attention.k_norm.weight",
    "layers.#.post_attention_layernorm.weight": "decoder.layers.#.ffn_residual.norm.weight",
    "layers.#.mlp.gate_proj.*": "decoder.layers.#.ffn.fc1.*",  # the activation is of this one
    "layers.#.mlp.up_proj.*": "decoder.layers.#.ffn.gate.*",
    "layers.#.mlp.down_proj.*": "decoder.layers.#.ffn.fc2.*",
    "norm.weight": "decoder.norm.weight",
    "lm_head.weight": "output.weight",
}
WINDOW = 4096  # tokens, theirs where config.json has no sliding_window
SCALINGS = {  # names of the options of `mmattn.Rotary` for each rope_type
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_len",
    },
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "original_max_position_embeddings": "original_max_len",
        "attention_factor": "attention_factor",
    },
}


def convert_llama(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Llama (Touvron et al. 2023): rotary positions, gated networks, grouped-query attention."""
    require(config, {"pretraining_tp": 1})
    biased, heads = bool(config.get("attention_bias")), read(config, "num_attention_heads")
    return _convert(config, state, bias=biased, ffn_bias=bool(config.get("mlp_bias")), kv=heads)


def convert_mistral(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Mistral (Jiang et al. 2023): Llama with a sliding window, which is theirs by default, and none if it is null."""
    window = config.get("sliding_window", WINDOW)
    layers = range(read(config, "num_hidden_layers")) if window else ()
    return _convert(config, state, kv=8, local=layers, window=window)


def convert_qwen2(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Qwen2 (Yang et al. 2024): Llama with biases of queries, keys and values."""
    return _convert(config, state, bias=("q", "k", "v"), kv=32, **_windows(config))


def convert_qwen3(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Qwen3 (Yang et al. 2025): Llama with normalized queries and keys."""
    biased = bool(config.get("attention_bias"))
    found = _convert(config, state, bias=biased, kv=32, head_dim=128, **_windows(config))
    return found._replace(keywords=found.keywords | {"qk_norm": "rms"})


def _windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """The layers with a sliding window."""
    if not config.get("use_sliding_window"):
        return {}
    layers, first = read(config, "num_hidden_layers"), read(config, "max_window_layers", 28)
    kinds = config.get("layer_types") or ["sliding_attention" if n >= first else "" for n in range(layers)]
    local = [number for number, kind in enumerate(kinds) if kind == "sliding_attention"]
    return {"local": local, "window": read(config, "sliding_window", WINDOW)}


def _convert(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    bias: Any = False,
    ffn_bias: bool = False,
    kv: int,
    head_dim: int | None = None,
    local: Any = (),
    window: int | None = None,
) -> Converted:
    bare = {
        name.removeprefix("model."): value for name, value in state.items() if not name.endswith("rotary_emb.inv_freq")
    }
    ours, names = rename(bare, LAYERS)
    if window is not None and local and window < 2:
        raise ValueError(f"config.json has sliding_window={window!r}; expected at least 2 tokens")
    keywords = {
        "vocab_size": read(config, "vocab_size"),
        "embed_dim": read(config, "hidden_size"),
        "num_layers": read(config, "num_hidden_layers"),
        "num_heads": read(config, "num_attention_heads"),
        "num_kv_heads": read(config, "num_key_value_heads", kv),
        "head_dim": config.get("head_dim") or head_dim,
        "ffn_dim": read(config, "intermediate_size"),
        "max_len": read(config, "max_position_embeddings", 2048),
        "positions": "rotary",
        **_rotary(config),
        "norm": "rms",
        "norm_eps": read(config, "rms_norm_eps", 1e-6),
        "activation": activation(read(config, "hidden_act", "silu")),
        "gated": True,
        "bias": bias,
        "ffn_bias": ffn_bias,
        "dropout": 0.0,
        "attention": attention_dropout(read(config, "attention_dropout", 0.0)),
    }
    if local:
        keywords |= {"local_layers": list(local), "window": (window or 0) - 1}  # theirs counts the token itself
    return Converted(keywords | tie_output(config, ours, names, default=False), ours, names)


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary positions, in the form of transformers 5 or of before.

    Raises:
        ValueError: A rope_type that is not supported.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"config.json has partial_rotary_factor={given['partial_rotary_factor']!r}; only 1.0 is supported"
        )
    if kind == "default":
        return {"rotary_base": float(base), "rotary_scaling": None}
    if kind not in SCALINGS:
        raise ValueError(f"config.json has rope_type={kind!r}; supported are default, {', '.join(SCALINGS)}")
    longest = config.get("max_position_embeddings")
    values = {"original_max_position_embeddings": longest, **given}
    if kind == "yarn":
        values |= _yarn(values, longest)
    scaling = {ours: float(values[theirs]) for theirs, ours in SCALINGS[kind].items()}
    return {"rotary_base": float(base), "rotary_scaling": {"kind": kind, **scaling}}


def _yarn(given: Mapping[str, Any], longest: Any) -> dict[str, Any]:
    """What a configuration of YaRN leaves out, as transformers completes it.

    Raises:
        ValueError: An option that is not supported.
    """
    if not given.get("truncate", True):
        raise ValueError("config.json has truncate=False of rope_type 'yarn'; only True is supported")
    factor = given.get("factor") or longest / given["original_max_position_embeddings"]

    def size(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    one, every, attention = (given.get(name) for name in ("mscale", "mscale_all_dim", "attention_factor"))
    if attention is None:
        attention = size(one) / size(every) if one and every else size(1.0)
    betas = {"beta_fast": given.get("beta_fast") or 32, "beta_slow": given.get("beta_slow") or 1}
    return {"factor": factor, "attention_factor": attention, **betas}
