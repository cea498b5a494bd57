"""Question answering: samples, data set and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import Problems, is_broken, shorten
from mmattn.data.table import Table
from mmattn.tasks.qa.formats import read_questions


class Answer(NamedTuple):
    """An answer and the character of the context at which it starts."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The character behind it."""
        return self.start + len(self.text)


@dataclass
class QASample:
    """A question about a text, its context."""

    id: str
    question: str
    context: str
    answers: list[Answer] | None = None  # of several annotators; empty: the context has none; None: unlabeled
    title: str = ""
    kind: str = ""  # of the question, by which figures are grouped
    evidence: list[tuple[int, int]] = field(default_factory=list)  # characters of the supporting facts, if annotated

    @property
    def texts(self) -> list[str]:
        """The answers' texts; [""] if the context has none."""
        return [answer.text for answer in self.answers or ()] or [""]


class Window(NamedTuple):
    """Where the context's tokens are in a sequence of the model."""

    question: int  # index of the sample in the batch
    first: int  # position of the context's first token
    spans: list[tuple[int, int]]  # start and end character of each of the context's tokens

    def part(self, values: Tensor) -> Tensor:
        """The values (L,) of the S tokens of the context: (S,)."""
        return values[self.first : self.first + len(self.spans)]


@dataclass
class QABatch(Batch):
    """A batch of B questions in N windows: the model's inputs, its targets, and the data of the metric."""

    input_ids: Tensor  # (N, L) long
    key_mask: Tensor  # (N, L) bool, True = a real token
    token_types: Tensor  # (N, L) long
    context_mask: Tensor  # (N, L) bool, True = a token of the context
    starts: Tensor  # (N,) long: the position of the answer's first token; 0: it is not in this window
    ends: Tensor  # (N,) long: the position of its last token
    evidence: Tensor  # (N, L) bool, True = a token of a supporting fact
    has_evidence: Tensor  # (N,) bool: whether the question's supporting facts are annotated
    windows: list[Window]
    ids: list[str]
    samples: list[QASample]
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics


class QADataset(SampleDataset[QASample]):
    """Questions with their contexts from a file or from samples in memory, validated.

    Formats (`formats.py` has the details): SQuAD's JSON, versions 1.1 and 2.0; CSV, TSV or JSONL with the columns
    question, context, answer and, optionally, start and id.
    """

    item: ClassVar[str] = "question"
    columns = ("question", "context", "answer")

    @property
    def groups(self) -> list[int]:
        """The index of each question's context, so that a split does not divide the questions of one."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(sample.context, len(numbers)) for sample in self.samples]

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, QASample]]:
        for where, fields in read_questions(path, self.require_labels, problems):
            answers = fields.pop("answers")
            given = None if answers is None else [Answer(text, start) for text, start in answers]
            yield where, QASample(**fields, answers=given)

    def check(self, sample: QASample) -> tuple[str, str] | None:
        for name, text in (("question", sample.question), ("context", sample.context)):
            if not isinstance(text, str) or not text.strip():
                return f"a {name} that is not empty", shorten(text)
            if is_broken(text):
                return f"a {name} of valid Unicode", shorten(text)
        if sample.answers is None:
            return ("answers, or none for a question without one", "no label") if self.require_labels else None
        for text, start in sample.answers:
            found = sample.context[start : start + len(text)]
            if not text.strip():
                return "an answer that is not empty", shorten(text)
            if start < 0 or found != text:
                place = sample.context.find(text)
                hint = "which the context does not contain" if place < 0 else f"which is at character {place}"
                return f"the answer {shorten(text)} at character {start}", f"{shorten(found)} there; {hint}"
        return None

    def identity(self, sample: QASample) -> tuple[list[Any], Sequence[Any]]:
        return [sample.id, sample.question, sample.context, sample.answers, sample.evidence], []

    def inputs(self, sample: QASample) -> tuple[list[Any], Sequence[Any]]:
        return [sample.question, sample.context], []

    def label(self, sample: QASample) -> str:
        return "" if sample.answers else "unanswerable"

    def facts(self, sample: QASample, files: bool = True) -> dict[str, Any]:
        texts = {"question": sample.question, "context": sample.context, "answer": sample.texts[0]}
        found = {f"words of the {name}": len(text.split()) for name, text in texts.items() if text}
        return found | {"answer": "in the context" if sample.answers else "none"}
