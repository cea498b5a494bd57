"""Adapters of VQA: models of this toolkit, and public encoders of images, of questions, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import init_others
from mmattn.tasks.common.images import read_image_encoder
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import read_text_encoder
from mmattn.tasks.vqa.processor import PublicInputs

ROLES = ("image", "text")
# Keywords that do not affect the weights of public encoders.
HEAD = ("embed_dim", "num_heads", "ffn_dim", "image_layers", "fusion", "pooling", "fusion_layers", "num_latents")
IMAGE = ("image_encoder", "patch_size", "channels")  # those of the other encoder
TEXT = ("text_encoder", "text_layers", "max_text_len")


class VQAAdapter(Adapter):
    """Reads models of this toolkit, and joins public encoders."""

    def join(self, parts: Mapping[str, CheckpointParts]) -> CheckpointParts:
        for role, one in parts.items():
            if role not in ROLES or not isinstance(one.adapter, EncoderAdapter) or one.adapter.role != role:
                expected = " and ".join(f"{name}: a public encoder" for name in ROLES)
                raise CheckpointError(f"expected {expected}; found {role}: {one.where}.")
        if len(parts) == 1:
            return next(iter(parts.values()))
        image, text = parts["image"], parts["text"]
        return replace(
            text,
            where=f"{image.where} and {text.where}",
            keywords=image.keywords | text.keywords,
            state={**image.state, **text.state},
            processor=PublicInputs(image.processor.image, text.processor.tokenizer),
            free=(*FREE, *HEAD, "max_text_len"),
        )


class EncoderAdapter(VQAAdapter):
    """Reads a public encoder; all other layers are initialized."""

    role: str  # one of ROLES

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(init_others(parts, sizes, seed), processor, sizes, seed)


class ImageAdapter(EncoderAdapter):
    """Reads timm's models as the image encoder: all of their layers."""

    role = "image"

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        encoder = read_image_encoder(source)
        free = (*FREE, *HEAD, *TEXT)
        inputs = PublicInputs(image=encoder.image)
        return CheckpointParts(self, source.where, encoder.keywords, encoder.state, inputs, headless=True, free=free)


class TextAdapter(EncoderAdapter):
    """Reads BERT, RoBERTa, DistilBERT and ELECTRA as the question encoder, without their poolers."""

    role = "text"

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        text = read_text_encoder(source)
        state = {f"text_encoder.{key}": value for key, value in text.state.items()}
        keywords = {"text_encoder": "bert", "text_options": text.options, "max_text_len": text.max_len}
        free = (*FREE, *HEAD, *IMAGE, "max_text_len")
        inputs = PublicInputs(tokenizer=text.tokenizer)
        return CheckpointParts(self, source.where, keywords, state, inputs, headless=True, free=free)
