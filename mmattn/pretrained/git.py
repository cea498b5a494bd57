"""GIT for captions and for questions in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert import BUFFERS, LAYERS, bert_keywords
from .keymap import Converted, activation, attention_dropout, read, rename, require, tie, within
from .siglip import SIGLIP
from .vit import fold_prefix, pair, square

IMAGE = "git.image_encoder.vision_model."
# CLIP's image tower has SigLIP's names, a class token, and a norm before the layers.
TABLE = within({name: ours for name, ours in SIGLIP.items() if not name.startswith("head.")}, IMAGE, "image.")
TABLE |= {
    f"{IMAGE}embeddings.class_embedding": "image.class_token",
    f"{IMAGE}pre_layrnorm.*": "image.embedded_norm.*",
    "git.visual_projection.visual_projection.#.*": "project.#.*",
    "output.*": "text.output.*",
    **within({name: ours.replace("encoder.", "decoder.") for name, ours in LAYERS.items()}, "git.", "text."),
}
OTHERS = (f"{IMAGE}embeddings.position_ids", *(f"git.{name}" for name in BUFFERS))
# Defaults of transformers for keys that a config.json omits.
SIZES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
VISION = SIZES | {"num_hidden_layers": 12, "hidden_act": "quick_gelu"}
TEXT = SIZES | {"num_hidden_layers": 6, "vocab_size": 30522, "max_position_embeddings": 1024}


def convert_git(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """GIT (Wang et al. 2022), whose image encoder is CLIP's.

    Raises:
        ValueError: A model of videos, or with other positions.
    """
    require(config, {"num_image_with_embedding": None, "position_embedding_type": "absolute"})
    vision, text = VISION | (config.get("vision_config") or {}), TEXT | dict(config)
    ours, names = rename(state, TABLE, ignore=OTHERS)
    tied = tie(ours, names, "text.embedding.weight", "text.output.weight", read(config, "tie_word_embeddings", False))
    image_size, patch_size = pair(vision.get("image_size", 224)), square(vision.get("patch_size", 16))
    embed_dim = vision["hidden_size"]
    for name, shape in (("class_token", (1, 1, embed_dim)), ("positions", (1, -1, embed_dim))):
        if f"image.{name}" in ours:
            ours[f"image.{name}"] = ours[f"image.{name}"].reshape(shape)
    if (weight := ours.get("image.patches.proj.weight")) is not None:  # CLIP's map of patches has no bias
        ours["image.patches.proj.bias"] = weight.new_zeros(len(weight))
    keywords = bert_keywords(text) | {
        "decoder": "git",
        "tied_output": tied,
        "decoder_attention": attention_dropout(read(config, "attention_probs_dropout_prob", 0.1)),
        "attention": attention_dropout(vision.get("attention_dropout", 0.0)),
        "image": {
            "embed_dim": embed_dim,
            "num_layers": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "image_size": image_size,
            "patch_size": patch_size,
            "in_channels": vision.get("num_channels", 3),
            "num_prefix": fold_prefix(ours, (image_size[0] // patch_size, image_size[1] // patch_size), "image."),
            "norm_embedded": True,
            "ffn_dim": vision["intermediate_size"],
            "activation": activation(vision["hidden_act"]),
            "norm_eps": vision.get("layer_norm_eps", 1e-5),
        },
    }
    return Converted(keywords, ours, names)
