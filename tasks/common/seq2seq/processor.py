"""Processor of text-to-text tasks; saved with the model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmattn.data.processor import Processor
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.tokenizer import TextProcessor, TokenIds
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.options import check_search
from mmattn.tasks.common.seq2seq.data import PairBatch, PairDataset, PairSample

LIMITS = frozenset({"max_new_tokens", "max_length"})  # target length limits in a generation_config.json
NEW_TOKENS = 20  # default max_new_tokens of transformers


class PairProcessor(Processor[PairSample, PairBatch]):
    """Pairs of texts to ids and ids to text; saved with the model.

    Args:
        source: Tokenizer of sources.
        target: Tokenizer of targets; the same object if the vocabulary is shared.
        max_source_len: Maximum number of source tokens, including the end token; longer sources are truncated and
            counted.
        max_target_len: Maximum number of target tokens, including the end token.
        options: Additional JSON values: languages, a public model's generation config, decoding defaults.
    """

    KEYS = frozenset({"source", "target", "max_source_len", "max_target_len", "options"})
    batch_class: ClassVar[type[PairBatch]] = PairBatch

    def __init__(
        self,
        source: TokenIds,
        target: TokenIds | None = None,
        max_source_len: int = 256,
        max_target_len: int = 256,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.target = source, source if target is None else target
        self.max_source_len, self.max_target_len = max_source_len, max_target_len
        self.options = dict(options or {})
        for name, value in (("max_source_len", max_source_len), ("max_target_len", max_target_len)):
            if not isinstance(value, int) or value < 2:
                raise ValueError(f"{name}: expected at least 2, found {value!r}")

    @classmethod
    def fit(
        cls,
        dataset: PairDataset,
        tokenizer: str = "bpe",
        vocab_size: int = 8000,
        shared_vocab: bool = True,
        lowercase: bool = False,
        max_source_len: int = 256,
        max_target_len: int = 256,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a processor from the training pairs, and only from them.

        Args:
            dataset: The training data.
            tokenizer: ``bpe`` (byte-level), ``unigram`` or ``word``.
            vocab_size: Maximum number of ids in each vocabulary.
            shared_vocab: One vocabulary for both sides, which then share their embeddings; or one each.
            lowercase: Lower-case all texts.
            max_source_len: See the class.
            max_target_len: See the class.
            options: See the class.
        """
        sources = [sample.source for sample in dataset.samples]
        targets = [sample.target for sample in dataset.samples]
        longest = max(max_source_len, max_target_len)
        make = partial(TextProcessor.fit, kind=tokenizer, vocab_size=vocab_size, lowercase=lowercase, max_len=longest)
        source = make([*sources, *targets] if shared_vocab else sources)
        target = source if shared_vocab else make(targets)
        return cls(source, target, max_source_len, max_target_len, options)

    @property
    def shared(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self.source is self.target

    def sizes(self) -> dict[str, Any]:
        """Keywords of the model that depend on the data; source_vocab_size is None for a shared vocabulary."""
        return {
            "vocab_size": self.target.vocab_size,
            "source_vocab_size": None if self.shared else self.source.vocab_size,
        }

    # Batches ----------------------------------------------------------------------------------------------------------

    def collate(
        self,
        samples: Sequence[PairSample],
        *,
        augment: None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> PairBatch:
        targets = [sample.target or sample.right_targets()[0] for sample in samples]
        return self.batch_class(
            **self.encode_sources([sample.source for sample in samples]),
            **encode_targets(self.target, targets, self.max_target_len),
            ids=[sample.id for sample in samples],
            references=[sample.right_targets() for sample in samples],
            is_repeat=is_repeat,
        )

    def encode_sources(self, texts: Sequence[str]) -> dict[str, Any]:
        """Encode sources as fields of a batch: ids (B, S), the end token last, and mask (B, S), True = a real token."""
        ids, mask = self.source.encode_batch(texts, self.max_source_len, eos=True)
        return {"source_ids": ids, "source_mask": mask}

    def ablate(self, batch: PairBatch, what: str, seeds: Sequence[int] | None = None) -> PairBatch:
        """Ablate the "source": replace each by a single period."""
        return dataclasses.replace(batch, **self.encode_sources(["."] * len(batch)))

    def lengths(self, samples: Sequence[PairSample]) -> list[tuple[int, int]]:
        """Tokens of source and target after truncation, for batches of similar lengths."""
        limits = self.max_source_len, self.max_target_len
        return [(min(a, limits[0]), min(b, limits[1])) for a, b in map(self._whole_lengths, samples)]

    def count_truncated(self, samples: Sequence[PairSample]) -> tuple[int, int]:
        """Numbers of sources and targets that exceed the length limits, for a report before training."""
        lengths = [self._whole_lengths(sample) for sample in samples]
        return sum(a > self.max_source_len for a, _ in lengths), sum(b > self.max_target_len for _, b in lengths)

    def _whole_lengths(self, sample: PairSample) -> tuple[int, int]:
        return self.whole_length(self.source, sample.source), self.whole_length(self.target, sample.target)

    def tokens_cut(self, source: str) -> int:
        """Number of truncated tokens at the end of a source."""
        return max(0, self.whole_length(self.source, source) - self.max_source_len)

    @staticmethod
    def whole_length(tokenizer: TokenIds, text: str) -> int:
        """Tokens of a text with prefix and end token, not truncated."""
        return len(tokenizer.prefix_ids) + tokenizer.length(text) + 1

    def decode(self, ids: Sequence[int]) -> str:
        """Plain, detokenized text of target ids."""
        return self.target.decode(ids)

    # Fine-tuning ------------------------------------------------------------------------------------------------------

    def retarget(self, train: Any, given: Mapping[str, Any]) -> Self:
        """A processor for other data: the same tokenizers, with the given lengths and options.

        Args:
            train: The training data.
            given: Keywords of ``fit``.

        Raises:
            ConfigError: A keyword would change the tokenizers.
        """
        known = {
            "tokenizer": self.source.kind,
            "vocab_size": max(self.source.vocab_size, self.target.vocab_size),
            "shared_vocab": self.shared,
            "lowercase": getattr(self.source, "lowercase", False),
        }
        check_kept(known, given)
        other = copy.copy(self)
        other.options = self.options | given.get("options", {})
        other.max_source_len = given.get("max_source_len", self.max_source_len)
        other.max_target_len = given.get("max_target_len", self.max_target_len)
        generation = other.options.get("generation")
        if generation is not None and ("max_target_len" in given or generation.get("max_new_tokens") == NEW_TOKENS):
            other.options["generation"] = {k: v for k, v in generation.items() if k not in LIMITS}
        return other

    # Saving -----------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "source": self.source.config(),
            "target": None if self.shared else self.target.config(),
            "max_source_len": self.max_source_len,
            "max_target_len": self.max_target_len,
            "options": self.options,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        shared = config["target"] is None
        source = load_tokenizer(folder if shared else folder / "source", config["source"])
        target = source if shared else load_tokenizer(folder / "target", config["target"])
        search = config["options"].get("search", {})
        if "consensus" in search:  # of version 0.1
            search["mbr"] = search.pop("consensus")
        check_search(search)
        GenerationConfig(**config["options"].get("generation") or {})  # raises a ValueError for what it cannot use
        return cls(source, target, config["max_source_len"], config["max_target_len"], config["options"])

    def save_parts(self, folder: Path) -> None:
        """Write the tokenizers, into ``source/`` and ``target/`` if there are two."""
        for name, tokenizer in self._tokenizers():
            (folder / name).mkdir(exist_ok=True)
            tokenizer.save(folder / name)

    def parts_text(self) -> str:
        return "".join(tokenizer.to_json() for _, tokenizer in self._tokenizers())

    def _tokenizers(self) -> list[tuple[str, TokenIds]]:
        return [("", self.source)] if self.shared else [("source", self.source), ("target", self.target)]


def encode_targets(tokenizer: TokenIds, texts: Sequence[str], max_len: int) -> dict[str, Tensor]:
    """Encode texts as fields of a `TextBatch`: the decoder's input (B, L), its labels (B, L), and their mask."""
    labels, label_mask = tokenizer.encode_batch(texts, max_len, eos=True)
    start = torch.full_like(labels[:, :1], tokenizer.start_id)
    return {"target_ids": torch.cat([start, labels[:, :-1]], dim=1), "labels": labels, "label_mask": label_mask}


def known_options(tokenizer: TokenIds) -> dict[str, Any]:
    """The options of a configuration that a tokenizer was made with."""
    lowercase = getattr(tokenizer, "lowercase", False)
    return {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "lowercase": lowercase}


def check_kept(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that the options of a configuration leave the tokenizers of the model to fine-tune as they are.

    Args:
        known: Options of the model's tokenizers; a given vocab_size may be larger.
        given: Options of the configuration; None: not given.

    Raises:
        ConfigError: An option would change a tokenizer; names it.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name == "min_count":
            raise ConfigError(
                f"data.min_count: expected none, since the tokens are those of the model to fine-tune, found {value}; "
                "leave the keyword out."
            )
        fits = value >= known[name] if name == "vocab_size" else name not in known or value == known[name]
        if not fits:
            raise ConfigError(
                f"data.{name}: expected {known[name]!r}, as in the model to fine-tune, found "
                f"{value!r}; its tokenizers do not change: leave the keyword out."
            )
