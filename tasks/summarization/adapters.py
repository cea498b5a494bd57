"""Adapters of summarization: models of this toolkit, and the BERT family as the encoder of an extractive model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from mmattn.tasks.common.adapter import FREE, CheckpointParts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.finetune import init_missing
from mmattn.tasks.common.seq2seq.adapters import PairAdapter
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import longest, read_text_encoder
from mmattn.tasks.summarization.extractive import ExtractiveModel
from mmattn.tasks.summarization.model import EXTRACTIVE, build
from mmattn.tasks.summarization.processor import SummaryProcessor

HEAD = ("num_heads", "ffn_dim", "sentence_layers", "pooling")  # keywords of the layers that are new


class SummarizationAdapter(PairAdapter):
    """Reads models of this toolkit."""

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        return build(**keywords)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        text = parts.keywords.get("text_options")
        if text is not None and processor.max_source_len > (most := longest(text)):
            expected = f"at most {most}, the number of positions of {parts.where}"
            raise ConfigError(f"data.max_source_len: expected {expected}, found {processor.max_source_len}.")
        if parts.headless:
            parts = replace(init_missing(parts, sizes, seed, ("head.",)), headless=False)
        return super().adapt(parts, processor, sizes, seed)


class BertAdapter(SummarizationAdapter):
    """Reads BERT, RoBERTa, DistilBERT and ELECTRA, without their poolers; the head over sentences is initialized."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        text = read_text_encoder(source)
        defaults = inspect.signature(ExtractiveModel).parameters
        keywords = {"network": EXTRACTIVE, "text_options": text.options, "vocab_size": text.vocab_size}
        keywords |= {name: defaults[name].default for name in HEAD}
        state = {f"encoder.{key}": value for key, value in text.state.items()}
        processor = SummaryProcessor(text.tokenizer, max_source_len=text.max_len)
        return CheckpointParts(self, source.where, keywords, state, processor, headless=True, free=(*FREE, *HEAD))
