"""Adapters of captioning: models of this toolkit, public image encoders, and public networks that are whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmattn.tasks.captioning.processor import CaptionProcessor, PublicInputs
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import init_others
from mmattn.tasks.common.image_text import read_image_text, with_image_size
from mmattn.tasks.common.images import read_image_encoder, with_side
from mmattn.tasks.common.sources import Source

# Keywords that do not affect the weights of public encoders.
HEAD = ("embed_dim", "num_heads", "ffn_dim", "image_layers", "decoder", "decoder_layers", "tied_output", "pooling")


class CaptionAdapter(Adapter):
    """Reads models of this toolkit."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(with_side(parts, processor.image), processor, sizes, seed)


class ImageAdapter(Adapter):
    """Reads a public image encoder; all other layers are initialized."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        encoder = read_image_encoder(source)
        free, inputs = (*FREE, *HEAD, "patch_size", "channels"), PublicInputs(encoder.image)
        return CheckpointParts(self, source.where, encoder.keywords, encoder.state, inputs, headless=True, free=free)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(init_others(parts, sizes, seed), processor, sizes, seed)


# The task's names of a public network's keywords, and fixed values of those that it lacks.
NAMES = {"num_layers": "decoder_layers"}
OWN = {"image_encoder": "vit", "decoder": "transformer", "pooling": "attention", "num_object_labels": 0}


class ImageTextAdapter(Adapter):
    """Reads BLIP, GIT, and pairs of ViT or DeiT and BERT or GPT-2; they have no head for object labels."""

    network = "image_to_text"

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        from mmattn.backbones.image_text import ImageToText
        from mmattn.tasks.captioning.public import PublicCaptioner

        return PublicCaptioner(ImageToText(**keywords))

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        return OWN | {NAMES.get(key, key): value for key, value in keywords.items()}

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        public = read_image_text(source, "BLIP, GIT, or ViT or DeiT with BERT or GPT-2")
        if public.keywords.get("reads_question"):
            raise CheckpointError(f"{source.name}: expected a model of captions, found one that answers questions.")
        longest = public.writer.max_len
        processor = CaptionProcessor(public.image, public.writer, longest, {"generation": public.generation})
        return CheckpointParts(self, source.where, public.keywords, public.state, processor)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(with_image_size(parts, processor.image.size), processor, sizes, seed)
