"""Adapters of text classification: models of this toolkit, and public encoders with or without a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmattn.data.errors import shorten
from mmattn.pretrained.keymap import DROPPED
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.finetune import init_missing, without
from mmattn.tasks.common.sources import Source
from mmattn.tasks.common.text_encoder import EMBEDDING, longest, read_text_encoder
from mmattn.tasks.text_classification import families
from mmattn.tasks.text_classification.formats import MULTI, REGRESSION, SINGLE, TAGGING
from mmattn.tasks.text_classification.labels import Labels
from mmattn.tasks.text_classification.processor import TextClassificationProcessor

MAX_LEN = 128  # tokens of an encoder without a head; less if it has fewer positions
HEAD, POOLING, LANGUAGE = "head.", "pooling.", "language."
SPARE = 50_000_000  # parameters of heads that are new, at most: those of tokens
FREE_KEYWORDS = (*FREE, "pooling", "hidden")


class TextClassificationAdapter(Adapter):
    """Reads models of this toolkit; the layers of other labels are reinitialized."""

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Replace the heads if the labels differ, and initialize those that are missing; see `Adapter.adapt`."""
        options = parts.keywords.get("text_options")
        if options is not None and "max_len" in options and processor.max_len > (most := longest(options)):
            expected = f"at most {most}, the number of positions of {parts.where}"
            raise ConfigError(f"data.max_len: expected {expected}, found {processor.max_len}.")
        mine, theirs = (
            [(name, labels.kind, labels.names) for name, labels in one.tasks.items()]
            for one in (parts.processor, processor)
        )
        keywords, head_options = dict(parts.keywords), dict(parts.keywords.get("head_options") or {})
        if mine != theirs:
            if mine:
                parts = without(parts, (HEAD,), "was trained on other labels")
            if not any(name.startswith(HEAD) for name in parts.state):
                head_options = {key: value for key, value in head_options.items() if key == "language"}
        if all(labels.kind == TAGGING for labels in processor.tasks.values()):  # nothing is pooled
            parts = replace(parts, state={k: v for k, v in parts.state.items() if not k.startswith(POOLING)})
        if not sizes.get("language"):
            parts = replace(parts, state={k: v for k, v in parts.state.items() if not k.startswith(LANGUAGE)})
            head_options.pop("language", None)
        keywords["head_options"] = head_options or None
        fixed = {"num_characters": keywords.get("num_characters", 2), "head_options": keywords["head_options"]}
        prefixes = (HEAD, LANGUAGE, POOLING)
        parts = init_missing(replace(parts, keywords=keywords), {**sizes, **fixed}, seed, prefixes, spare=SPARE)
        return super().adapt(replace(parts, headless=False), processor, sizes, seed)


class EncoderAdapter(TextClassificationAdapter):
    """Reads BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT and DeBERTa, with a head if there is one."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        family = str(source.family)
        named = [str(name) for name in source.config.get("architectures") or ()]
        kind = next((k for k in KINDS_OF if any(name.endswith(k) for name in named)), None)
        name, wanted = families.ENCODERS.get(family, families.BERT)
        head = None if kind is None else KINDS_OF[kind](family, source.config)
        text = read_text_encoder(source, None if head is None else head.names, wanted)
        state: dict[str, Tensor] = {
            key if key.startswith((HEAD, LANGUAGE, DROPPED)) else f"encoder.{key}": v for key, v in text.state.items()
        }
        keywords: dict[str, Any] = {"encoder": name, "text_options": text.options, "vocab_size": text.vocab_size}
        keywords |= {"pooling": "mean", "heads": {}, "num_characters": 2}
        labels: dict[str, Labels] = {}
        if head is not None and kind == LM:
            state["language.tokens.weight"] = state[f"encoder.{EMBEDDING}"].clone()
            state["language.tokens.bias"] = state["language.tokens.bias"][: text.vocab_size].clone()
            keywords |= {"language": True, "head_options": {"language": head.options}}
        elif head is not None and kind is not None:
            labels[""] = _labels(source, TAGGING if kind == TOKEN else None, len(state["head.0.out.bias"]))
            given = {"hidden": None, "dropout": 0.0, **head.options}
            keywords |= {"pooling": head.pooling, "head_options": given}
            keywords["heads"] = {"": [labels[""].kind, labels[""].size]}
        state = {key: value for key, value in state.items() if not key.startswith(DROPPED)}
        keywords["max_len"] = text.max_len if head is not None else min(text.max_len, MAX_LEN)
        processor = TextClassificationProcessor(text.tokenizer, labels, keywords["max_len"])
        return CheckpointParts(
            self, source.where, keywords, state, processor, headless=head is None, free=FREE_KEYWORDS
        )


SEQUENCE, TOKEN, LM = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
KINDS_OF = {SEQUENCE: families.sequence_head, TOKEN: families.token_head, LM: families.language_head}


def _labels(source: Source, kind: str | None, count: int) -> Labels:
    """The labels of a public model, by the names and the problem type in its config.

    Raises:
        CheckpointError: There are others than the head has outputs.
    """
    given = source.config.get("id2label") or {str(n): f"LABEL_{n}" for n in range(count)}
    problem = source.config.get("problem_type")
    if kind is None:
        kind = {"regression": REGRESSION, "multi_label_classification": MULTI}.get(str(problem), SINGLE)
        if count == 1 and kind == SINGLE:
            kind = REGRESSION
    if kind == REGRESSION:
        if count != 1:
            raise CheckpointError(f"{source.name}: expected one score of regression, found {count}.")
        return Labels(kind)
    names = [given.get(str(n)) for n in range(count)] if isinstance(given, dict) else []
    if len(given) != count or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source.name}: expected names of {count} labels (id2label), found {shorten(given)}.")
    return Labels(kind, [str(name) for name in names])
