"""Adapters of text classification: models of this toolkit with any labels, and the BERT family with or without a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.finetune import init_missing, without
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import longest, read_text_encoder
from mmattn.tasks.text_classification.processor import TextClassificationProcessor

MAX_LEN = 128  # tokens, by default; less if the model has fewer positions
HEADS = ("head.", "pooling.")
FREE_KEYWORDS = (*FREE, "pooling", "hidden", "max_len", "heads", "head_options", "language")


class TextClassificationAdapter(Adapter):
    """Reads models of this toolkit; the layers of other labels are reinitialized."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        self.check_length(parts, processor)
        mine, theirs = (
            [(name, labels.kind, labels.names) for name, labels in one.tasks.items()]
            for one in (parts.processor, processor)
        )
        keywords = dict(parts.keywords)
        sizes = {key: value for key, value in sizes.items() if key != "head_options"}
        if parts.headless or mine != theirs:
            reason = f"was trained on {'other labels' if mine else 'plain text'}"
            parts = without(parts, HEADS[:1], reason)
            if parts.headless or not mine:
                parts = replace(parts, state={k: v for k, v in parts.state.items() if not k.startswith(HEADS)})
            keywords["head_options"] = None
        if not sizes.get("language"):
            parts = replace(parts, state={k: v for k, v in parts.state.items() if not k.startswith("language.")})
        sizes = {**sizes, "num_characters": keywords.get("num_characters", sizes["num_characters"])}
        parts = init_missing(replace(parts, keywords=keywords), sizes, seed, (*HEADS, "language."), spare=SPARE)
        return super().adapt(replace(parts, headless=False), processor, sizes, seed)

    def check_length(self, parts: CheckpointParts, processor: Any) -> None:
        """Raise a ConfigError if texts may be longer than a public encoder's positions."""
        options = parts.keywords.get("text_options")
        if options is not None and "max_len" in options and processor.max_len > (most := longest(options)):
            expected = f"at most {most}, the number of positions of {parts.where}"
            raise ConfigError(f"data.max_len: expected {expected}, found {processor.max_len}.")


SPARE = 50_000_000  # parameters of a language head that is new


class EncoderAdapter(TextClassificationAdapter):
    """Reads public encoders, without their poolers."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        text = read_text_encoder(source)
        max_len = min(text.max_len, MAX_LEN)
        state = {f"encoder.{key}": value for key, value in text.state.items()}
        processor = TextClassificationProcessor(text.tokenizer, {}, max_len)
        keywords = {
            "encoder": "bert",
            "text_options": text.options,
            "max_len": max_len,
            "vocab_size": text.vocab_size,
            "pooling": "mean",
            "heads": {},
            "num_characters": 2,
        }
        return CheckpointParts(self, source.where, keywords, state, processor, headless=True, free=FREE_KEYWORDS)
