"""GPT-2 in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, Table, activation, attention_dropout, read, rename, require, tie

LAYERS: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "embedding.weight",
    "wpe.weight": "positions.weight",
    "h.#.ln_1.*": "decoder.layers.#.attention_residual.norm.*",
    "h.#.attn.c_attn.*": tuple(f"decoder.layers.#.attention.{name}_proj.*" for name in "qkv"),
    "h.#.attn.c_proj.*": "decoder.layers.#.attention.out_proj.*",
    "h.#.ln_2.*": "decoder.layers.#.ffn_residual.norm.*",
    "h.#.mlp.c_fc.*": "decoder.layers.#.ffn.fc1.*",
    "h.#.mlp.c_proj.*": "decoder.layers.#.ffn.fc2.*",
    "ln_f.*": "decoder.norm.*",
    "lm_head.weight": "output.weight",
}
MAPS = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight", ".q_attn.weight")  # (in, out), as convolutions of width 1
MASKS = (".attn.bias", ".attn.masked_bias", ".crossattention.bias", ".crossattention.masked_bias")  # older buffers


def transposed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns GPT-2's state with the matrices of linear maps as (out, in), and without the buffers of masks."""
    kept = {name: value for name, value in state.items() if not name.endswith(MASKS)}
    return {name: value.t().contiguous() if name.endswith(MAPS) else value for name, value in kept.items()}


def gpt2_keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords of a `CausalLM` but for tied_output."""
    require(config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False})
    embed_dim = read(config, "n_embd", 768)
    return {
        "vocab_size": read(config, "vocab_size", 50257),
        "embed_dim": embed_dim,
        "num_layers": read(config, "n_layer", 12),
        "num_heads": read(config, "n_head", 12),
        "ffn_dim": read(config, "n_inner", 4 * embed_dim),
        "max_len": read(config, "n_positions", 1024),
        "positions": "learned",
        "norm": "layer",
        "norm_eps": read(config, "layer_norm_epsilon", 1e-5),
        "activation": activation(read(config, "activation_function", "gelu_new")),
        "gated": False,
        "bias": True,
        "ffn_bias": True,
        "dropout": read(config, "resid_pdrop", 0.1),
        "attention": attention_dropout(read(config, "attn_pdrop", 0.1)),
    }


def convert_gpt2(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """GPT-2 (Radford et al. 2019): learned positions, pre-norm, the output tied to the embeddings."""
    require(config, {"add_cross_attention": False})
    bare = {name.removeprefix("transformer."): value for name, value in transposed(state).items()}
    table: Table = LAYERS
    ours, names = rename(bare, table)
    return Converted(gpt2_keywords(config) | tie_output(config, ours, names), ours, names)


def tie_output(
    config: Mapping[str, Any], ours: dict[str, Tensor], names: dict[str, str], default: bool = True, part: str = ""
) -> dict[str, Any]:
    """Adds the output projection to a renamed state where the embedding table is it; returns tied_output.

    Args:
        config: The config.json; if the tensors contradict it, they have precedence.
        ours: A renamed state dict.
        names: Foreign name of each of its keys.
        default: Whether it is tied if config.json does not say so.
        part: Prefix of the names.

    Raises:
        ValueError: There is no output projection, and none is to be tied.
    """
    table, output = f"{part}embedding.weight", f"{part}output.weight"
    if output not in ours and table in ours and not read(config, "tie_word_embeddings", default):
        raise ValueError("missing key: lm_head.weight, which config.json does not tie to the embeddings")
    return {"tied_output": tie(ours, names, table, output, True)}
