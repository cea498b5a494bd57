"""VideoMAE in the format of transformers: the encoder alone, or with its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .keymap import Converted, activation, attention_dropout, read, rename, within
from .vit import pair, square

LAYER: dict[str, str] = {
    "attention.attention.query.*": "attention.q_proj.*",
    "attention.attention.key.*": "attention.k_proj.*",
    "attention.attention.value.*": "attention.v_proj.*",
    "attention.attention.q_bias": "attention.q_proj.bias",  # of published files
    "attention.attention.v_bias": "attention.v_proj.bias",
    "attention.output.dense.*": "attention.out_proj.*",
    "intermediate.dense.*": "ffn.fc1.*",
    "output.dense.*": "ffn.fc2.*",
    "layernorm_before.*": "attention_residual.norm.*",
    "layernorm_after.*": "ffn_residual.norm.*",
}
ENCODER = within(LAYER, "encoder.layer.#.", "encoder.layers.#.") | {
    "embeddings.patch_embeddings.projection.*": "patches.proj.*",
    "layernorm.*": "encoder.norm.*",
    "fc_norm.*": "norm.*",
}
DECODER = within(LAYER, "decoder.decoder_layers.#.", "decoder.layers.layers.#.") | {
    "encoder_to_decoder.weight": "decoder.project.weight",
    "mask_token": "decoder.mask_token",
    "decoder.norm.*": "decoder.layers.norm.*",
    "decoder.head.*": "decoder.out.*",
}
# Positions are fixed, and those of published files are not used.
OTHERS = ("classifier", "embeddings.position_embeddings", "position_embeddings")


def convert_videomae(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """The encoder of VideoMAE (Tong et al. 2022); its decoder is ignored, see `convert_videomae_pretraining`."""
    decoder = tuple(name for name in state if name.startswith(("decoder.", "encoder_to_decoder.", "mask_token")))
    bare = {name.removeprefix("videomae."): tensor for name, tensor in state.items()}
    ours, names = rename(bare, ENCODER, ignore=(*OTHERS, *decoder))
    keywords = encoder_keywords(config)
    if keywords["pooling"] == "mean" and "norm.weight" not in ours:  # in classifiers alone; here the identity
        like = ours["encoder.layers.0.ffn_residual.norm.weight"]
        ours |= {"norm.weight": like.new_ones(like.shape), "norm.bias": like.new_zeros(like.shape)}
    return Converted(keywords, ours, names)


def convert_videomae_pretraining(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """VideoMAE with its decoder: keywords and weights of `mmattn.backbones.videomae.VideoMAE`.

    Raises:
        ValueError: The files have no decoder.
    """
    if "mask_token" not in state:
        raise ValueError("no decoder: expected a VideoMAEForPreTraining")
    inner = {name.removeprefix("videomae."): t for name, t in state.items() if name.startswith("videomae.")}
    converted = convert_videomae(config, inner)
    outer = {name: tensor for name, tensor in state.items() if not name.startswith("videomae.")}
    ours, names = rename(outer, DECODER, ignore=OTHERS)
    encoder = {f"encoder.{name}": tensor for name, tensor in converted.state.items()}
    keywords = {
        "encoder": converted.keywords,
        "decoder_dim": read(config, "decoder_hidden_size", 384),
        "decoder_layers": read(config, "decoder_num_hidden_layers", 4),
        "decoder_heads": read(config, "decoder_num_attention_heads", 6),
        "decoder_ffn_dim": read(config, "decoder_intermediate_size", 1536),
        "norm_targets": read(config, "norm_pix_loss", True),
    }
    return Converted(keywords, encoder | ours, {f"encoder.{k}": v for k, v in converted.names.items()} | names)


def encoder_keywords(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `TubeletTransformer`."""
    is_mean = read(config, "use_mean_pooling", True)
    biased = read(config, "qkv_bias", True) and read(config, "qv_bias", True)
    return {
        "embed_dim": read(config, "hidden_size", 768),
        "num_layers": read(config, "num_hidden_layers", 12),
        "num_heads": read(config, "num_attention_heads", 12),
        "image_size": pair(read(config, "image_size", 224)),
        "num_frames": read(config, "num_frames", 16),
        "patch_size": square(read(config, "patch_size", 16)),
        "tubelet_size": read(config, "tubelet_size", 2),
        "in_channels": read(config, "num_channels", 3),
        "pooling": "mean" if is_mean else "first",
        "ffn_dim": read(config, "intermediate_size", 3072),
        "activation": activation(read(config, "hidden_act", "gelu")),
        "bias": ["q", "v", "out"] if biased else ["out"],
        "norm_eps": read(config, "layer_norm_eps", 1e-12),
        "dropout": read(config, "hidden_dropout_prob", 0.0),
        "attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.0)),
    }
