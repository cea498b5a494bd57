"""Adapters of question answering: models of this toolkit, and the BERT family with or without a head for answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.finetune import init_missing
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import longest, read_text_encoder
from mmattn.tasks.qa.processor import QAProcessor

HEAD = {"qa_outputs.*": "span.*"}  # transformers' name of the head, and ours
MAX_LEN = 384  # tokens of a window, the usual number for SQuAD; less if the model has fewer positions


class QAAdapter(Adapter):
    """Reads models of this toolkit."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        fresh = ("head.", "evidence.") if parts.headless else ("evidence.",)
        missing = fresh if parts.keywords.get("evidence") else fresh[:-1]
        parts = init_missing(parts, sizes, seed, missing)
        return super().adapt(replace(parts, headless=False), processor, sizes, seed)


class BertAdapter(QAAdapter):
    """Reads BERT, RoBERTa, DistilBERT and ELECTRA, without their poolers."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        most = longest(parts.keywords["text_options"])
        if processor.max_len > most:
            expected = f"at most {most}, the number of positions of {parts.where}"
            raise ConfigError(f"data.max_len: expected {expected}, found {processor.max_len}.")
        return super().adapt(parts, processor, sizes, seed)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        named = [str(name) for name in source.config.get("architectures") or ()]
        head = HEAD if any(name.endswith("ForQuestionAnswering") for name in named) else None
        text = read_text_encoder(source, head)
        max_len = min(text.max_len, MAX_LEN)
        state = {
            f"head.{key}" if key.startswith("span.") else f"encoder.{key}": value for key, value in text.state.items()
        }
        keywords = {"encoder": "bert", "text_options": text.options, "max_len": max_len, "vocab_size": text.vocab_size}
        processor = QAProcessor(text.tokenizer, max_len, min(128, max_len // 3))
        free = (*FREE, "max_len", "evidence")
        return CheckpointParts(self, source.where, keywords, state, processor, headless=head is None, free=free)
