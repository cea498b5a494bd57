"""Text to text: samples, data set, processor and batches of every task that reads one text and writes another."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmattn.data.batching import Batch
from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.processor import Saved
from mmattn.data.text.tokenizer import TextProcessor, TokenIds, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class PairSample:
    """A text and the text that it becomes, as a person would describe it."""

    id: str
    source: str
    target: str = ""  # empty when unlabelled
    references: list[str] = field(default_factory=list)  # all right targets, for measuring; where empty, the target

    def right_targets(self) -> list[str]:
        """What an answer is measured against."""
        return self.references or [self.target]


@dataclass
class PairBatch(Batch):
    """Tensors for an encoder-decoder, and what the metric needs."""

    source_ids: Tensor  # (B, S) long
    source_mask: Tensor  # (B, S) bool, True = a real token
    target_ids: Tensor  # (B, L) long: what the decoder reads, the start token first
    labels: Tensor  # (B, L) long: what it should say at each place, the end last
    label_mask: Tensor  # (B, L) bool, True = counts
    ids: list[str]
    references: list[list[str]]
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted


class PairDataset(Dataset[PairSample]):
    """Checked pairs.

    Args:
        found: Samples, or what a reader gives: where each stands ("train.csv, line 7") and the sample.
        name: Of the whole, for messages.
        problems: Takes what is bad; by default the first ends the run.
        require_target: Whether a missing target is an error, as in training and evaluation.

    Raises:
        DataError: Names the line or item, what was expected and what was found.

    >>> len(PairDataset([PairSample("1", "a dog", "ein Hund")]))
    1
    """

    def __init__(
        self,
        found: Iterable[PairSample | tuple[str, PairSample]],
        name: str = "samples",
        problems: Problems | None = None,
        require_target: bool = True,
    ) -> None:
        problems = Problems() if problems is None else problems
        self.name = name
        self.samples: list[PairSample] = []
        for number, item in enumerate(found):
            where, sample = (f"sample {number} (id {item.id!r})", item) if isinstance(item, PairSample) else item
            fault = _fault(sample, require_target)
            if fault is None:
                self.samples.append(sample)
            else:
                problems.add(where, *fault)
        self.skipped = problems.items  # (item, reason)
        if problems.items:
            logger.warning("%s", problems.summary(name, len(self.samples)))
        if not self.samples:
            left = f"none ({len(self.skipped)} left out as bad)" if self.skipped else "none"
            raise DataError(name, "at least one pair", left)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> PairSample:
        return self.samples[index]

    def fingerprint(self) -> str:
        """SHA-256 over every text."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.id, sample.source, sample.target, sample.references]).encode())
        return digest.hexdigest()


def _fault(sample: PairSample, require_target: bool) -> tuple[str, str] | None:
    """What was expected and found, where something is wrong."""
    sides: list[tuple[str, Any]] = [("source", sample.source), ("target", sample.target)]
    for name, text in [*sides, *(("reference", text) for text in sample.references)]:
        if not isinstance(text, str):
            return f"a {name} text", shorten(text)
        if is_broken(text):
            return f"a {name} of UTF-8 text", shorten(text)
        if not text.strip() and (name == "reference" or (name == "source" and require_target)):
            return f"a {name} that is not empty", shorten(text)
    if require_target and not sample.target.strip() and not sample.references:
        return "a target that is not empty", shorten(sample.target)
    return None


class PairProcessor(Saved):
    """What turns pairs of texts into ids and ids into text; shipped with the model.

    Args:
        source: Tokenizer of what is read.
        target: Tokenizer of what is written, the same object where the vocabulary is shared.
        max_source_len: Most tokens read, the end included; what is longer is cut, and counted.
        max_target_len: Most tokens written, the end included.
        options: What else a task keeps, as JSON takes it (languages).
    """

    KEYS = frozenset({"source", "target", "max_source_len", "max_target_len", "options"})

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
            if value < 2:
                raise ValueError(f"{name}: expected at least 2, found {value}")

    @classmethod
    def fit(
        cls,
        dataset: PairDataset,
        tokenizer: str = "bpe",
        vocab_size: int = 8000,
        shared_vocab: bool = True,
        lowercase: bool = False,
        min_count: int = 1,
        max_source_len: int = 256,
        max_target_len: int = 256,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Makes a processor from the training pairs, and only from them.

        Args:
            dataset: The training data.
            tokenizer: ``bpe`` (byte-level), ``unigram`` or ``word``.
            vocab_size: Most ids, of each vocabulary.
            shared_vocab: One vocabulary for both sides, which then share their embeddings; or one each.
            lowercase: Lower-case everything.
            min_count: Least occurrences of a word or pair.
            max_source_len: See the class, as the next two.
            max_target_len: Most tokens written.
            options: What else is kept.
        """
        sources = [sample.source for sample in dataset.samples]
        targets = [sample.target for sample in dataset.samples]

        def make(texts: list[str]) -> TextProcessor:
            longest = max(max_source_len, max_target_len)
            return TextProcessor.fit(texts, tokenizer, vocab_size, min_count, lowercase, longest)

        source = make([*sources, *targets] if shared_vocab else sources)
        target = source if shared_vocab else make(targets)
        return cls(source, target, max_source_len, max_target_len, options)

    @property
    def shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    def sizes(self) -> dict[str, Any]:
        """The model's keywords that the data decide; without a source vocabulary of its own, the sides share one."""
        return {
            "vocab_size": self.target.vocab_size,
            "source_vocab_size": None if self.shared else self.source.vocab_size,
        }

    def lengths(self, samples: Sequence[PairSample]) -> list[tuple[int, int]]:
        """Tokens of source and target as the model gets them, for batches of like lengths."""
        return [
            (
                min(self.whole_length(self.source, sample.source), self.max_source_len),
                min(self.whole_length(self.target, sample.target), self.max_target_len),
            )
            for sample in samples
        ]

    def count_truncated(self, samples: Sequence[PairSample]) -> tuple[int, int]:
        """How many sources and targets are longer than the model reads and writes: for a report before training."""
        sources = sum(self.whole_length(self.source, sample.source) > self.max_source_len for sample in samples)
        targets = sum(self.whole_length(self.target, sample.target) > self.max_target_len for sample in samples)
        return sources, targets

    @staticmethod
    def whole_length(tokenizer: TokenIds, text: str) -> int:
        """Tokens of a text with its first and its end, not cut."""
        return len(tokenizer.prefix_ids) + tokenizer.length(text) + 1

    def encode_sources(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, S), the end last, and mask (B, S), True = a real token."""
        return self.source.encode_batch(texts, self.max_source_len, eos=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Plain text, as a person would write it, from target ids."""
        return self.target.decode(ids)

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
        return cls(source, target, config["max_source_len"], config["max_target_len"], config["options"])

    def save_parts(self, folder: Path) -> None:
        """Writes the tokenizers, into ``source/`` and ``target/`` where there are two."""
        if self.shared:
            self.source.save(folder)
            return
        for name, tokenizer in (("source", self.source), ("target", self.target)):
            (folder / name).mkdir(exist_ok=True)
            tokenizer.save(folder / name)

    def parts_text(self) -> str:
        return self.source.to_json() + ("" if self.shared else self.target.to_json())


def collate(
    samples: Sequence[PairSample],
    processor: PairProcessor,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
) -> PairBatch:
    """Makes a batch.

    Args:
        samples: The pairs.
        processor: Texts to ids.
        seeds: One integer a sample; a task's own augmentation may use them.
        is_repeat: See ``PairBatch``.
    """
    del seeds
    source_ids, source_mask = processor.encode_sources([sample.source for sample in samples])
    targets = [sample.target or sample.right_targets()[0] for sample in samples]
    labels, label_mask = processor.target.encode_batch(targets, processor.max_target_len, eos=True)
    start = torch.full_like(labels[:, :1], processor.target.start_id)
    return PairBatch(
        source_ids=source_ids,
        source_mask=source_mask,
        target_ids=torch.cat([start, labels[:, :-1]], dim=1),  # (B, L)
        labels=labels,
        label_mask=label_mask,
        ids=[sample.id for sample in samples],
        references=[sample.right_targets() for sample in samples],
        is_repeat=is_repeat,
    )
