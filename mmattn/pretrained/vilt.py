"""ViLT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert import BUFFERS, EMBEDDINGS
from .keymap import Converted, read, rename, require
from .vit import TRANSFORMERS, vit_keywords

# The patches and layers of a ViT, the embeddings of a BERT.
TABLE = TRANSFORMERS | {
    "embeddings.token_type_embeddings.weight": "modalities",
    "classifier.#.*": "classifier.#.*",
    **{
        name.replace("embeddings.", "embeddings.text_embeddings.", 1): f"text.{ours}"
        for name, ours in EMBEDDINGS.items()
    },
}
OTHERS = ("mlm_score", "rank_output", *(name.replace("embeddings.", "embeddings.text_embeddings.") for name in BUFFERS))


def convert_vilt(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """ViLT (Kim et al. 2021), with its classifier of answers if the weights contain it; other heads are not."""
    require(config, {"max_image_length": -1})  # others draw patches at random
    ours, names = rename(state, TABLE, prefix="vilt.", ignore=OTHERS)
    keywords = vit_keywords({"image_size": 384, "patch_size": 32, **config}, ours)
    del keywords["num_prefix"]
    keywords |= {
        "vocab_size": read(config, "vocab_size", 30522),
        "num_answers": ours["classifier.3.bias"].shape[0] if "classifier.3.bias" in ours else None,
        "max_len": read(config, "max_position_embeddings", 40),
        "num_types": read(config, "type_vocab_size", 2),
        "num_modalities": read(config, "modality_type_vocab_size", 2),
    }
    return Converted(keywords, ours, names)
