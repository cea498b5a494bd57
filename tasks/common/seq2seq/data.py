"""Batches of tasks that generate text; samples and data set of text-to-text tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import is_broken, shorten


@dataclass
class PairSample:
    """A source text and its target."""

    id: str
    source: str
    target: str = ""  # empty when unlabeled
    references: list[str] = field(default_factory=list)  # all correct targets, for evaluation; if empty, the target

    def right_targets(self) -> list[str]:
        """The references for evaluation."""
        return self.references or [self.target]


@dataclass(kw_only=True)
class TextBatch(Batch):
    """Tensors for a decoder under teacher forcing, and references for the metric; a task adds what it encodes."""

    target_ids: Tensor  # (B, L) long: the decoder's input, the start token first
    labels: Tensor  # (B, L) long: the target at each position, the end token last
    label_mask: Tensor  # (B, L) bool, True = counts
    ids: list[str]
    references: list[list[str]]
    is_repeat: bool = False  # repeated to give every rank the same number of batches; excluded from metrics

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model encodes: the first arguments of its `forward` and `generate`."""
        raise NotImplementedError

    @property
    def forced(self) -> tuple[Tensor, ...]:
        """The arguments of the model's `forward` under teacher forcing."""
        return *self.inputs, self.target_ids

    @property
    def source_len(self) -> int | None:
        """Tokens of the longest source, which limits a generated text; None: no source of tokens."""
        return None


@dataclass(kw_only=True)
class PairBatch(TextBatch):
    """Tensors for an encoder-decoder, and references for the metric."""

    source_ids: Tensor  # (B, S) long
    source_mask: Tensor  # (B, S) bool, True = a real token

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.source_ids, self.source_mask

    @property
    def source_len(self) -> int | None:
        return self.source_ids.shape[1]


class PairDataset(SampleDataset[PairSample]):
    """Checked pairs; see ``SampleDataset``. Tasks subclass it to read their file formats.

    >>> len(PairDataset([PairSample("1", "a dog", "ein Hund")]))
    1
    """

    item: ClassVar[str] = "pair"

    def check(self, sample: PairSample) -> tuple[str, str] | None:
        sides: list[tuple[str, Any]] = [("source", sample.source), ("target", sample.target)]
        for name, text in [*sides, *(("reference", text) for text in sample.references)]:
            if not isinstance(text, str):
                return f"a {name} text", shorten(text)
            if is_broken(text):
                return f"a {name} of UTF-8 text", shorten(text)
            if not text.strip() and (name == "reference" or (name == "source" and self.require_labels)):
                return f"a {name} that is not empty", shorten(text)
        if self.require_labels and not sample.target.strip() and not sample.references:
            return "a target that is not empty", shorten(sample.target)
        return None

    def identity(self, sample: PairSample) -> tuple[list[Any], Sequence[Any]]:
        return [sample.id, sample.source, sample.target, sample.references], []

    def inputs(self, sample: PairSample) -> tuple[list[Any], Sequence[Any]]:
        return [sample.source], []

    def facts(self, sample: PairSample, files: bool = True) -> dict[str, Any]:
        sides = {"source": sample.source, "target": sample.right_targets()[0]}
        return {f"words of the {name}": len(text.split()) for name, text in sides.items()}

    def with_more(self, other: PairDataset) -> Self:
        """The data set with the samples of another one appended; ids may repeat."""
        both = self.filter(lambda sample: True)
        both.places, both.samples = [*both.places, *other.places], [*both.samples, *other.samples]
        both.name = f"{self.name} and {other.name}"
        return both
