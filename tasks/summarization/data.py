"""Summarization: samples, file formats, data set, processor and batches."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data import pairs
from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.readers import read_rows, report_missing
from mmattn.data.text.sentences import Span, split_sentences
from mmattn.tasks.common.seq2seq.data import PairBatch, PairDataset, PairProcessor, PairSample

logger = logging.getLogger(__name__)
KEYS = ("document", "summary", "references", "id")


@dataclass
class SummarySample(PairSample):
    """A document and its summary, as a person would describe them."""

    # Words of the summary whose place in the document is known: where each stands, and where it comes from.
    origins: list[tuple[Span, list[Span]]] = field(default_factory=list)


def _none() -> Tensor:
    return torch.zeros(0, 0, dtype=torch.long)


@dataclass
class SummaryBatch(PairBatch):
    """Tensors for the model, and what the metric needs."""

    # Fields after those of PairBatch that have a value need one too; `collate` gives them.
    sentence_starts: Tensor = field(default_factory=_none)  # (B, n) long: each sentence's first token, then -1
    copy_ids: Tensor = field(default_factory=_none)  # (B, S) long: source_ids as they were before training hides some
    cut: Tensor = field(default_factory=_none)  # (B,) long: tokens of each document that are not read


# Reading --------------------------------------------------------------------------------------------------------------


def read_summaries(path: str | Path, require_summary: bool, problems: Problems) -> Iterator[tuple[str, SummarySample]]:
    """Reads JSONL, CSV or TSV with the keys or columns ``document``, ``summary``, and if wanted ``id``, ``references``.

    ``references`` are several right summaries: a list in JSONL; in CSV a JSON list. Where ``summary`` is missing, the
    first of them stands in for it.

    Args:
        path: The file.
        require_summary: Whether a missing summary is an error.
        problems: Takes the bad lines.

    Yields:
        Where the line stands, and the sample.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and path.suffix.lower() not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        raise DataError(str(path), "a .jsonl, .csv or .tsv file", f"the ending {path.suffix!r}")
    seen: dict[str, int] = {}
    unused: dict[str, None] = {}
    for where, line, row in read_rows(path, problems):
        missing = [] if "document" in row else ["document"]
        if require_summary and not {"summary", "references"} & row.keys():
            missing.append("summary")
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        unused.update(dict.fromkeys(key for key in row if key not in KEYS))
        name = row.get("id")
        name = str(line if name is None or name == "" else name)
        if name in seen:
            problems.add(where, "an id of its own", f"{name!r}, which line {seen[name]} has already")
            continue
        seen[name] = line
        references = _references(row.get("references"))
        if references is None:
            problems.add(where, "references that are a list of texts", shorten(row["references"]))
            continue
        summary = row.get("summary")
        if summary is None or summary == "":
            summary = references[0] if references else ""
        yield where, SummarySample(name, row["document"], summary, references)
    if unused:
        logger.warning("%s: not used: %s", path, ", ".join(unused))


def _references(value: Any) -> list[str] | None:
    """A list of texts from what stands in a row; None where it is none."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


class SummaryDataset(PairDataset):
    """Documents with their summaries, checked.

    Args:
        source: A path (see ``read_summaries``), or samples.
        on_error: ``raise`` ends at the first bad line; ``skip`` leaves bad ones out, and counts and reports them.
        require_summary: Whether a document without a summary is an error, as in training and evaluation.

    Raises:
        DataError: Names the file and the line, what was expected and what was found.
    """

    def __init__(
        self, source: str | Path | Sequence[SummarySample], on_error: str = "raise", require_summary: bool = True
    ) -> None:
        problems = Problems(on_error)
        if isinstance(source, (str, Path)):
            super().__init__(
                read_summaries(source, require_summary, problems), str(source), problems, require_target=require_summary
            )
        else:
            super().__init__(source, "samples", problems, require_target=require_summary)

    def without_repeats(self) -> int:
        """Leaves out what stands there once more, document and summary alike; gives how many those were."""
        before = len(self.samples)
        first = {(sample.source, sample.target): sample for sample in reversed(self.samples)}
        kept = {id(sample) for sample in first.values()}
        self.samples = [sample for sample in self.samples if id(sample) in kept]
        return before - len(self.samples)


# Processing -----------------------------------------------------------------------------------------------------------


class SummaryProcessor(PairProcessor):
    """What turns documents into ids with their sentences, and ids into summaries; shipped with the model."""

    def token_spans(self, text: str) -> list[Span]:
        """The characters of each token of a text, blanks before it left out."""
        return self.source.spans(text)

    def document_tokens(self, text: str) -> list[Span]:
        """The characters of each token that the model reads, the end left out."""
        return self.token_spans(text)[: self.max_source_len - 1 - len(self.source.prefix_ids)]

    def sentence_starts(self, texts: Sequence[str]) -> Tensor:
        """Which token is the first of each sentence: (B, n) long, filled up with -1."""
        rows = [self._starts(text) for text in texts]
        most = max(map(len, rows))
        return torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.long)

    def _starts(self, text: str) -> list[int]:
        tokens = self.document_tokens(text)
        found, place = [0], 0
        for start, _ in split_sentences(text)[1:]:
            while place < len(tokens) and tokens[place][1] <= start:
                place += 1
            if place < len(tokens) and place > found[-1]:
                found.append(place)
        return found


def collate(
    samples: Sequence[PairSample],
    processor: SummaryProcessor,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
) -> SummaryBatch:
    """Makes a batch: that of ``data.pairs.collate``, and where the documents' sentences begin."""
    batch = pairs.collate(samples, processor, seeds, is_repeat)
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    starts = processor.sentence_starts([sample.source for sample in samples])
    whole = [processor.whole_length(processor.source, sample.source) for sample in samples]
    cut = torch.tensor([max(0, length - processor.max_source_len) for length in whole])
    return SummaryBatch(**values, sentence_starts=starts, copy_ids=batch.source_ids, cut=cut)
