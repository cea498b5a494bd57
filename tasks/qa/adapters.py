"""Adapters of question answering: models of this toolkit, and the BERT family with or without a head for answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmattn.data.text.pretrained import read_public as read_tokenizers
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.finetune import init_missing, read_network
from mmattn.tasks.common.sources import Source
from mmattn.tasks.qa.processor import QAProcessor

HEAD = {"qa_outputs.*": "span.*"}  # transformers' name of the head, and ours
EMBEDDING = "encoder.embedding.weight"
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
        text = parts.keywords["text_options"]
        if processor.max_len > (longest := _longest(text)):
            expected = f"at most {longest}, the number of positions of {parts.where}"
            raise ConfigError(f"data.max_len: expected {expected}, found {processor.max_len}.")
        return super().adapt(parts, processor, sizes, seed)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.bert import BertEncoder

        named = [str(name) for name in source.config.get("architectures") or ()]
        head = HEAD if any(name.endswith("ForQuestionAnswering") for name in named) else None
        converted = read_network(source, BertEncoder, "BERT, RoBERTa, DistilBERT or ELECTRA", head=head)
        text = {key: value for key, value in converted.keywords.items() if key != "vocab_size"} | {"pooler": False}
        longest = _longest(text)
        tokenizer, _ = read_tokenizers(source.folder, max_len=longest)
        max_len = min(longest, MAX_LEN)
        state = {
            f"head.{key}" if key.startswith("span.") else f"encoder.{key}": value
            for key, value in converted.state.items()
            if not key.startswith("pooler.")
        }
        rows, size = state[EMBEDDING].shape[0], tokenizer.vocab_size
        if rows < size:
            raise CheckpointError(f"{source.name}: expected a tokenizer of at most {rows} tokens, found {size}.")
        state[EMBEDDING] = state[EMBEDDING][:size].clone()  # rows beyond the tokenizer's only round their number up
        keywords = {"encoder": "bert", "text_options": text, "max_len": max_len, "vocab_size": size}
        processor = QAProcessor(tokenizer, max_len, min(128, max_len // 3))
        free = (*FREE, "max_len", "evidence")
        return CheckpointParts(self, source.where, keywords, state, processor, headless=head is None, free=free)


def _longest(text: Mapping[str, Any]) -> int:
    """Maximum number of tokens of an encoder with these keywords."""
    return int(text.get("max_len", 512) - (0 if text.get("pad_id") is None else text["pad_id"] + 1))
