"""BLIP for captions and for questions in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert_decoder import DECODER, WRITER, decoder_keywords, unused
from .keymap import Converted, activation, attention_dropout, read, rename, within
from .siglip import SIGLIP
from .vit import fold_prefix, pair, square

VISION: dict[str, str | tuple[str, ...]] = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding.*": "patches.proj.*",
    "embeddings.position_embedding": "positions",
    "encoder.layers.#.self_attn.qkv.*": tuple(f"encoder.layers.#.attention.{part}_proj.*" for part in "qkv"),
    "encoder.layers.#.self_attn.projection.*": "encoder.layers.#.attention.out_proj.*",
}
VISION |= {
    name: ours for name, ours in SIGLIP.items() if any(part in name for part in ("layer_norm", ".mlp.fc", "post_"))
}
TABLE = within(VISION, "vision_model.", "image.") | within(DECODER, "text_encoder.", "question.")
TABLE |= within(WRITER, "text_decoder.", "text.")
OTHERS = ("vision_model.embeddings.position_ids", "text_encoder.embeddings.position_ids")
# Defaults of transformers for keys that a config.json omits.
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "hidden_act": "gelu"}
TEXT = SIZES | {"vocab_size": 30524, "num_attention_heads": 8, "hidden_dropout_prob": 0.0}
TEXT |= {"attention_probs_dropout_prob": 0.0}


def convert_blip(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """BLIP's captioning and question answering (Li et al. 2022); the latter has an encoder of questions."""
    vision, text = SIZES | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    ours, names = rename(state, TABLE, ignore=(*OTHERS, *unused(state, "text_decoder.")))
    image_size, patch_size = pair(read(vision, "image_size", 384)), square(read(vision, "patch_size", 16))
    tied = any(read(part, "tie_word_embeddings", True) for part in (config, text))
    keywords = decoder_keywords(text, ours, names, "text.", tied) | {
        "reads_question": any(name.startswith("question.") for name in ours),
        "question_attention": attention_dropout(text["attention_probs_dropout_prob"]),
        "attention": attention_dropout(read(vision, "attention_dropout", 0.0)),
        "image": {
            "embed_dim": vision["hidden_size"],
            "num_layers": vision["num_hidden_layers"],
            "num_heads": read(vision, "num_attention_heads", 12),
            "image_size": image_size,
            "patch_size": patch_size,
            "num_prefix": fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size), "image."),
            "ffn_dim": vision["intermediate_size"],
            "activation": activation(vision["hidden_act"]),
            "norm_eps": read(vision, "layer_norm_eps", 1e-5),
        },
    }
    return Converted(keywords, ours, names)
