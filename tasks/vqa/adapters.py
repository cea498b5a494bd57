"""Adapters of VQA: models of this toolkit, public encoders of images, of questions, or of both, and whole networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from mmattn.data.text.pretrained import read_public
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.checkpoint import PROCESSOR
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import init_missing, init_others, read_network, without
from mmattn.tasks.common.image_text import read_image_text, read_inputs, with_image_size
from mmattn.tasks.common.images import read_image_encoder, with_side
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import read_text_encoder
from mmattn.tasks.vqa.processor import NetworkProcessor, PublicInputs

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

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        parts = with_side(parts, processor.image) if self.network is None else parts
        return super().adapt(parts, processor, sizes, seed)


class EncoderAdapter(VQAAdapter):
    """Reads a public encoder; all other layers are initialized."""

    role: str  # one of ROLES

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(init_others(parts, sizes, seed), processor, sizes, seed)


class ImageAdapter(EncoderAdapter):
    """Reads timm's models, ViT, DeiT, DINOv2 and SigLIP as the image encoder: all of their layers."""

    role = "image"

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        encoder = read_image_encoder(source)
        free = (*FREE, *HEAD, *TEXT, "patch_size", "channels")
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


class NetworkAdapter(VQAAdapter):
    """Reads public networks that answer questions, which have no head for object labels."""

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        return dict(keywords) | {"pooling": "attention", "num_object_labels": 0}

    def read_own(self, source: Source, **options: Any) -> CheckpointParts:
        parts = super().read_own(source, **options)
        return replace(parts, processor=NetworkProcessor.load(source.folder / PROCESSOR))

    def check(self, parts: CheckpointParts) -> None:
        rows, size = parts.keywords["vocab_size"], parts.processor.tokenizer.rows
        if size > rows:
            raise CheckpointError(f"{parts.where}: expected a tokenizer of at most {rows} tokens, found {size}.")


class ViltAdapter(NetworkAdapter):
    """Reads ViLT, with its answers if it has a classifier."""

    network = "vilt"

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        from mmattn.backbones.vilt import Vilt
        from mmattn.tasks.vqa.public import PublicVilt

        return PublicVilt(Vilt(**keywords))

    def check(self, parts: CheckpointParts) -> None:
        super().check(parts)
        rows, count = parts.keywords["num_answers"], len(parts.processor.answers)
        if count != rows:
            raise CheckpointError(
                f"{parts.where}: expected {rows} answers, one for each row of the classifier; found {count}."
            )

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.vilt import Vilt

        image = read_inputs(source)
        converted = read_network(source, Vilt, "ViLT")
        keywords = dict(converted.keywords)
        if keywords.get("in_channels", 3) != 3:
            raise CheckpointError(
                f"{source.name}: expected a model of color images, found {keywords['in_channels']} channels."
            )
        tokenizer, _ = read_public(source.folder, max_len=keywords["max_len"])
        state = {f"net.{name}": tensor for name, tensor in converted.state.items()}
        if keywords["num_answers"] is None:
            inputs = PublicInputs(image, tokenizer)
            return CheckpointParts(self, source.where, keywords, state, inputs, headless=True)
        names = source.config.get("id2label") or {n: f"LABEL_{n}" for n in range(keywords["num_answers"])}
        numbered = {int(number): str(name) for number, name in names.items()}
        answers = [name for _, name in sorted(numbered.items())]
        return CheckpointParts(self, source.where, keywords, state, NetworkProcessor(image, tokenizer, answers))

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Replace the classifier's last layer if the answers differ, and initialize a missing classifier."""
        missing = "net.classifier." if parts.headless else "net.classifier.3."
        if not parts.headless and processor.answers != parts.processor.answers:
            parts = without(parts, (missing,), f"was trained on {len(parts.processor.answers):,} other answers")
        parts = init_missing(parts, {"num_answers": len(processor.answers)}, seed, (missing,))
        return super().adapt(replace(parts, headless=False), processor, sizes, seed)


class AnswererAdapter(NetworkAdapter):
    """Reads BLIP, which writes its answers."""

    network = "image_to_text"

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        from mmattn.backbones.image_text import ImageToText
        from mmattn.tasks.vqa.public import PublicAnswerer

        return PublicAnswerer(ImageToText(**keywords))

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        public = read_image_text(source, "BLIP")
        if not public.keywords.get("reads_question"):
            raise CheckpointError(f"{source.name}: expected a model that answers questions, found one of captions.")
        options = {"generation": public.generation}
        processor = NetworkProcessor(public.image, public.reader, (), writer=public.writer, options=options)
        return CheckpointParts(self, source.where, public.keywords, public.state, processor)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        return super().adapt(with_image_size(parts, processor.image.size), processor, sizes, seed)
