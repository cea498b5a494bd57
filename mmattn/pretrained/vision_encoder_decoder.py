"""VisionEncoderDecoderModel of ViT or DeiT and BERT or GPT-2 in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert_decoder import WRITER, decoder_keywords, unused
from .gpt2 import LAYERS, gpt2_keywords, tie_output, transposed
from .keymap import Converted, read, rename, require, within
from .vit import TRANSFORMERS, TRANSFORMERS_HEADS, vit_keywords

KINDS = {"encoder": ("vit", "deit"), "decoder": ("bert", "gpt2")}
IMAGE = within(TRANSFORMERS, "encoder.", "image.") | {"enc_to_dec_proj.*": "project.*"}
# Keywords of GPT-2 that `ImageToText` takes, too.
WANTED = (
    "vocab_size",
    "embed_dim",
    "num_layers",
    "num_heads",
    "max_len",
    "ffn_dim",
    "activation",
    "norm_eps",
    "tied_output",
    "dropout",
)
OTHERS = tuple(f"encoder.{name}" for name in (*TRANSFORMERS_HEADS, "pooler"))
GPT2 = {
    name: ours
    if isinstance(ours, tuple)
    else ours.replace("attention_residual", "self_residual").replace(".attention.", ".self_attention.")
    for name, ours in LAYERS.items()
}
GPT2["h.#.attn.c_attn.*"] = tuple(f"decoder.layers.#.self_attention.{name}_proj.*" for name in "qkv")
GPT2 |= {
    "h.#.ln_cross_attn.*": "decoder.layers.#.cross_residual.norm.*",
    "h.#.crossattention.q_attn.*": "decoder.layers.#.cross_attention.q_proj.*",
    "h.#.crossattention.c_attn.*": tuple(f"decoder.layers.#.cross_attention.{name}_proj.*" for name in "kv"),
    "h.#.crossattention.c_proj.*": "decoder.layers.#.cross_attention.out_proj.*",
}


def convert_vision_encoder_decoder(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """An image encoder with a BERT or GPT-2 that attends to its states (Rothe et al. 2020; Li et al. 2023, section 3).

    Raises:
        ValueError: Another encoder or decoder.
    """
    encoder, decoder = (read(config, side) for side in KINDS)
    for (side, known), part in zip(KINDS.items(), (encoder, decoder), strict=True):
        if part.get("model_type") not in known:
            found = part.get("model_type")
            raise ValueError(f"{side} of model_type {found!r} is not converted; expected one of: {', '.join(known)}")
    tied = read(decoder, "tie_word_embeddings", True)
    if decoder["model_type"] == "gpt2":
        bare = {name.replace("decoder.transformer.", "decoder."): value for name, value in transposed(state).items()}
        ours, names = rename(bare, IMAGE | within(GPT2, "decoder.", "text."), ignore=OTHERS)
        require(decoder, {"add_cross_attention": True})
        given = gpt2_keywords(decoder) | tie_output(decoder, ours, names, part="text.")
        keywords = {name: given[name] for name in WANTED} | {"decoder": "gpt2"}
        keywords |= {"decoder_attention": given["attention"], "cross_attention": given["attention"]}
    else:
        table = IMAGE | within(WRITER, "decoder.", "text.")
        ours, names = rename(state, table, ignore=(*OTHERS, *unused(state, "decoder.")))
        keywords = decoder_keywords(decoder, ours, names, "text.", tied)
        keywords |= {"num_types": read(decoder, "type_vocab_size", 2)}
    image = vit_keywords(encoder, ours, "image.")
    keywords |= {
        "project_image": "project.weight" in ours,
        "attention": image.pop("attention"),
        "image": image,
    }
    return Converted(keywords, ours, names)
