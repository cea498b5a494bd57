"""Text to text: samples, data set and batches of every task that reads one text and writes another."""

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

    @property
    def beside(self) -> dict[str, Tensor]:
        """What a task's model is given beside source, mask and target, by name."""
        return {}


class PairDataset(SampleDataset[PairSample]):
    """Checked pairs; see ``SampleDataset``. A task's own reads its file formats.

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

    def with_more(self, other: PairDataset) -> Self:
        """The data set with the samples of another one behind its own, whose ids may be the same."""
        both = self.filter(lambda sample: True)
        both.places, both.samples = [*both.places, *other.places], [*both.samples, *other.samples]
        both.name = f"{self.name} and {other.name}"
        return both
