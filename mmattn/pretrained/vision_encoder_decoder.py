"""VisionEncoderDecoderModel of ViT or DeiT and BERT in the format of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .bert_decoder import WRITER, decoder_keywords, unused
from .keymap import Converted, read, rename, within
from .vit import TRANSFORMERS, TRANSFORMERS_HEADS, vit_keywords

KINDS = {"encoder": ("vit", "deit"), "decoder": ("bert",)}
TABLE = within(TRANSFORMERS, "encoder.", "image.") | within(WRITER, "decoder.", "text.")
TABLE |= {"enc_to_dec_proj.*": "project.*"}
OTHERS = tuple(f"encoder.{name}" for name in (*TRANSFORMERS_HEADS, "pooler"))


def convert_vision_encoder_decoder(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """An image encoder with a BERT that attends to its states (Rothe et al. 2020; Li et al. 2023, section 3).

    Raises:
        ValueError: Another encoder or decoder.
    """
    encoder, decoder = (read(config, side) for side in KINDS)
    for (side, known), part in zip(KINDS.items(), (encoder, decoder), strict=True):
        if part.get("model_type") not in known:
            found = part.get("model_type")
            raise ValueError(f"{side} of model_type {found!r} is not converted; expected one of: {', '.join(known)}")
    ours, names = rename(state, TABLE, ignore=(*OTHERS, *unused(state, "decoder.")))
    image = vit_keywords(encoder, ours, "image.")
    keywords = decoder_keywords(decoder, ours, names, "text.", read(decoder, "tie_word_embeddings", True)) | {
        "num_types": read(decoder, "type_vocab_size", 2),
        "project_image": "project.weight" in ours,
        "attention": image.pop("attention"),
        "image": image,
    }
    return Converted(keywords, ours, names)
