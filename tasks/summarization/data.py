"""Samples, data set and batches of summarization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmattn.data.errors import Problems, shorten
from mmattn.data.table import Table
from mmattn.data.text.sentences import Span
from mmattn.tasks.common.seq2seq.data import PairBatch, PairDataset, PairSample
from mmattn.tasks.summarization.formats import read_summaries


@dataclass
class SummarySample(PairSample):
    """A document and its summary."""

    # Words of the summary with a known source: the span of each, and its spans in the document.
    origins: list[tuple[Span, list[Span]]] = field(default_factory=list)


@dataclass(kw_only=True)
class SummaryBatch(PairBatch):
    """Tensors for the model, and references for the metric."""

    sentence_starts: Tensor  # (B, n) long: first token of each sentence, padded with -1
    copy_ids: Tensor  # (B, S) long: source_ids before word dropout
    cut: Tensor  # (B,) long: number of truncated tokens of each document
    documents: list[str]
    sentences: list[list[Span]]  # characters of each of the sentences in `sentence_starts`


class SummaryDataset(PairDataset):
    """Documents with their summaries, from a file (formats: ``formats.py``) or from memory, checked."""

    columns = ("document", "summary")

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, PairSample]]:
        for where, fields in read_summaries(path, self.require_labels, problems):
            yield where, SummarySample(**fields)

    def check(self, sample: PairSample) -> tuple[str, str] | None:
        if not self.require_labels and not (isinstance(sample.source, str) and sample.source.strip()):
            return "a document, a text that is not empty", shorten(sample.source)
        return super().check(sample)

    def without_repeats(self) -> SummaryDataset:
        """The data set without duplicates: documents that occur again with the same summary."""
        first = {(sample.source, sample.target): sample for sample in reversed(self.samples)}
        kept = {id(sample) for sample in first.values()}
        return self.filter(lambda sample: id(sample) in kept)
