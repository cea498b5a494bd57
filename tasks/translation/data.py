"""Samples and data set of parallel text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.data.errors import Problems
from mmattn.data.table import Table
from mmattn.tasks.common.seq2seq.data import PairDataset, PairSample
from mmattn.tasks.translation.formats import read_parallel


@dataclass
class TranslationSample(PairSample):
    """A sentence and its translation."""

    alignment: list[tuple[int, int]] = field(default_factory=list)  # (target word, source word) indices


class TranslationDataset(PairDataset):
    """Parallel text from files (formats: ``formats.py``) or from samples in memory, checked.

    Args:
        source: A path; samples; or rows of a sentence and its translation.
        source_lang: Source language code; also the file extension, column or key of the source.
        target_lang: The same of the target.
        options: Arguments of ``SampleDataset``.
    """

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        source_lang: str = "en",
        target_lang: str = "de",
        **options: Any,
    ) -> None:
        self.languages = self.columns = source_lang, target_lang
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, PairSample]]:
        for where, fields in read_parallel(path, self.languages, self.require_labels, problems):
            yield where, TranslationSample(**fields)
