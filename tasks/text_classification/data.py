"""Text classification: samples, data set and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, is_broken, nearest, shorten
from mmattn.data.names import nfc
from mmattn.data.readers import TABLES, as_path, read_rows
from mmattn.data.table import Table
from mmattn.tasks.text_classification.formats import (
    KEYS,
    KINDS,
    MULTI,
    REGRESSION,
    SCORE,
    SINGLE,
    TAGGING,
    TEXT,
    Row,
    kind_of,
    name_of,
    names_of,
    number_of,
    read_samples,
)


@dataclass
class TextSample:
    """A text or a pair of texts with its labels, or words with a label each."""

    id: str
    text: str = ""  # of a tagging sample: its words joined by spaces
    text_pair: str | None = None
    labels: list[str] = field(default_factory=list)  # its class; its labels; or the tag of each word
    score: float | None = None  # of regression
    words: list[str] | None = None  # of a tagging sample
    task: str = ""  # of several tasks that are trained together
    evidence: list[tuple[int, int]] = field(default_factory=list)  # characters of the deciding words, if annotated


class Span(NamedTuple):
    """Which part of a sample a row of a batch has."""

    sample: int  # index in the batch
    words: list[tuple[int, int]]  # start and end character of each word of the row, in the sample's text
    places: list[list[int]]  # positions of each word's tokens in the row
    first: int  # index of the row's first word in the sample
    pair_words: Sequence[tuple[int, int]] = ()  # those of the second text
    pair_places: Sequence[list[int]] = ()

    @property
    def every_place(self) -> list[list[int]]:
        """The positions of the tokens of each word of both texts."""
        return [*self.places, *self.pair_places]


@dataclass
class TextBatch(Batch):
    """A batch of B samples in N rows (more than B if sentences of tagging are long): inputs, targets, metadata."""

    input_ids: Tensor  # (N, L) long; of hierarchical models (N, n, w), n sentences of w words
    key_mask: Tensor  # as input_ids, bool, True = a real token
    token_types: Tensor  # as input_ids, long: 1 for the second text
    word_starts: Tensor  # (N, W) long, position of each word's first token, -1 in the padding; W = 0 without tagging
    targets: dict[str, Any]  # by task: the rows, and the targets of the samples, see `TextProcessor.targets`
    spans: list[Span]
    ids: list[str]
    samples: list[TextSample]
    characters: Tensor | None = None  # (N, L, C) or (N, n, w, C) long, 0 is padding
    masked: Tensor | None = None  # (N, L) long: ids that are hidden from a masked language model; -1 elsewhere
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics

    def to(self, device: Any, non_blocking: bool = False) -> TextBatch:
        """Returns the batch with its tensors on the device."""
        moved = super().to(device, non_blocking)
        targets = {
            name: tuple(part.to(device, non_blocking=non_blocking) for part in parts)
            for name, parts in self.targets.items()
        }
        return replace(moved, targets=targets)


class TextDataset(SampleDataset[TextSample]):
    """Labelled texts from a file or from samples in memory, validated; of one task, or of several together.

    Args:
        source: A path in one of the formats of ``formats.py``; samples; rows; or a mapping of these by the task's name.
        kind: One of ``KINDS``; None: read off the labels.
        columns: Names of the file's columns by the names that are expected, ``{"label": "relatedness"}``.
        kinds: The kind of each task, if there are several; they have precedence.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "text"
    columns = ("text", "label")

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | Iterable[Any],
        kind: str | None = None,
        columns: Mapping[str, str] | None = None,
        kinds: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if kind not in (None, *KINDS):
            raise DataError(f"data.kind: expected one of {', '.join(KINDS)}, found {kind!r}")
        if strange := sorted(set(columns or {}) - set(KEYS)):
            hint = nearest(strange[0], KEYS)
            raise DataError(f"data.columns: expected some of {', '.join(KEYS)}, found {strange[0]!r}{hint}")
        self.names, self.kinds, self.reasons = dict(columns or {}), dict(kinds or {}), dict[str, str]()
        self.given = kind
        if isinstance(source, Mapping):
            if not source or not all(isinstance(name, str) and name for name in source):
                raise DataError("data.train", "a file for each task's name", shorten(source))
            parts = {
                name: TextDataset(one, kind, columns, {"": self.kinds[name]} if name in self.kinds else None, **options)
                for name, one in source.items()
            }
            self.kinds = {name: part.kinds[""] for name, part in parts.items()}
            self.reasons = {name: part.reasons.get("", "") for name, part in parts.items()}
            together = [
                replace(sample, id=f"{name}/{sample.id}", task=name)
                for name, part in parts.items()
                for sample in part.samples
            ]
            super().__init__(together, **options)
            self.name = ", ".join(part.name for part in parts.values())
            self.places = [place for part in parts.values() for place in part.places]
            for part in parts.values():
                self.problems.items += part.problems.items
            return
        super().__init__(source, **options)

    @property
    def kind(self) -> str:
        """The kind of the labels, of the first task."""
        return next(iter(self.kinds.values()))

    def _given(self, samples: Iterable[Any]) -> Iterator[tuple[str, TextSample]]:
        found = [(where, _composed(sample)) for where, sample in super()._given(samples)]
        tasks: dict[str, list[TextSample]] = {}
        for _, sample in found:
            tasks.setdefault(sample.task, []).append(sample)
        for name, some in tasks.items():
            self.kinds.setdefault(name, self.given or kind_of_samples(some))
        yield from found

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, TextSample]]:
        labeled = self.require_labels and self.given != TEXT and self.kinds.get("") != TEXT
        known = self.given or self.kinds.get("")
        named = any(name in self.names for name in ("label", "labels", "score", "tags"))
        needed = self.require_labels and known != TEXT and (named or known in (SINGLE, REGRESSION, TAGGING))
        rows = list(read_samples(path, self.names, needed, problems, not self.require_labels))
        if "" not in self.kinds:
            self.kinds[""], self.reasons[""] = (self.given, "") if self.given else kind_of([row for _, row in rows])
            if (
                self.kinds[""] == TEXT
                and not self.given
                and (isinstance(path, Table) or as_path(path).suffix.lower() in TABLES)
            ):
                header = next((row for _, _, row in read_rows(path, Problems("skip"))), {})
                self.reasons[""] += f" (columns: {', '.join(map(str, header))}; --data.columns.label names another)"
        kind = self.kinds[""]
        for where, row in rows:
            try:
                yield where, _sample(row, kind, where, labeled and kind != TEXT)
            except DataError as error:
                problems.take(where, error)

    def check(self, sample: TextSample) -> tuple[str, str] | None:
        kind = self.kinds.get(sample.task, self.given or TEXT)
        texts = {"text": sample.text} | ({} if sample.text_pair is None else {"text_pair": sample.text_pair})
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                return f"a {name} that is not empty", shorten(text)
            if is_broken(text):
                return f"a {name} of valid Unicode", shorten(text)
        if any(not isinstance(label, str) or not label for label in sample.labels):
            return "labels that are texts and not empty", shorten(sample.labels)
        if kind == TAGGING and (sample.labels or self.require_labels):
            words = sample.words or []
            if len(words) != len(sample.labels):
                return f"a tag for each of {len(words)} words", f"{len(sample.labels)}"
        if not self.require_labels:
            return None
        if kind == SINGLE and len(sample.labels) != 1:
            return "one label (several need data.kind: multi_label)", shorten(sample.labels)
        if kind == REGRESSION and sample.score is None:
            return "a score, a number", "none"
        if kind == REGRESSION and number_of(sample.score) is None:
            return SCORE, shorten(sample.score)
        return None

    def divided(self, seed: int) -> tuple[Self, Self]:
        """See the base class; a sample with a label that no sample left to training has is left to it, too."""
        train, val = super().divided(seed)
        labels = {id(sample): {(sample.task, label) for label in sample.labels} for sample in self.samples}
        count = Counter(label for sample in self.samples for label in labels[id(sample)])
        left = Counter(label for sample in train.samples for label in labels[id(sample)])
        held = set()
        for sample in val.samples:
            own = labels[id(sample)]
            if all(left[label] for label in own):
                held.add(id(sample))
            else:
                left.update(own)
        if not held:
            shared = (sample for sample in self.samples if all(count[label] > 1 for label in labels[id(sample)]))
            if (other := next(shared, None)) is None:
                found = f"{len(self)} {self.item}s, each with a label that no other one has (--data.val gives your own)"
                raise DataError(self.name, f"two {self.item}s of a label, to hold one out for validation", found)
            held = {id(other)}
        chosen = [n for n, sample in enumerate(self.samples) if id(sample) in held]
        rest, part = self.take(sorted(set(range(len(self))) - set(chosen))), self.take(chosen)
        part.name, part.problems = val.name, val.problems
        return rest, part

    def identity(self, sample: TextSample) -> tuple[list[Any], Sequence[Any]]:
        values = [sample.id, sample.text, sample.text_pair, sample.labels, sample.score, sample.task, sample.evidence]
        return values, []

    def inputs(self, sample: TextSample) -> tuple[list[Any], Sequence[Any]]:
        return [sample.task, sample.text, sample.text_pair], []

    def label(self, sample: TextSample) -> str:
        kind = self.kinds.get(sample.task, SINGLE)
        name = sample.labels[0] if kind == SINGLE and sample.labels else ""
        if kind == MULTI:
            name = "|".join(sorted(sample.labels))
        return f"{sample.task}/{name}" if sample.task else name

    def facts(self, sample: TextSample, files: bool = True) -> dict[str, Any]:
        count = len(sample.words) if sample.words is not None else len(sample.text.split())
        found: dict[str, Any] = {"words of the text": count}
        if sample.text_pair is not None:
            found["words of the second text"] = len(sample.text_pair.split())
        if sample.score is not None:
            found["score"] = sample.score
        return found | ({"label": sample.labels} if sample.labels else {})


def _composed(sample: TextSample) -> TextSample:
    """A sample whose labels have composed accents, as those of files have."""
    labels = [nfc(label) if isinstance(label, str) else label for label in sample.labels]
    return sample if labels == sample.labels else replace(sample, labels=labels)


def _sample(row: Row, kind: str, where: str, labeled: bool) -> TextSample:
    """A sample from a row's fields.

    Raises:
        DataError: The row does not have what the kind needs.
    """
    words, pair = row.get("words"), row.get("text_pair")
    if words is not None:
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) and word.strip() for word in words)
            or not words
        ):
            raise DataError(where, "words, a list of texts that are not empty", shorten(words))
        words = [" ".join(word.split()) for word in words]
    elif kind == TAGGING and isinstance(row.get("text"), str):
        words = row["text"].split()
    if kind == TAGGING and pair is not None:
        raise DataError(where, "one text of words with tags", "a pair of texts")
    text = " ".join(words) if kind == TAGGING and words else row.get("text", " ".join(words or []))
    sample = TextSample(row["id"], text, None if pair == "" else pair, words=words if kind == TAGGING else None)
    if kind == TAGGING:
        tags = row.get("tags")
        if tags is None and labeled:
            raise DataError(where, "tags, a label for each word", "none")
        if tags is not None and not isinstance(tags, list):
            raise DataError(where, "tags, a list", shorten(tags))
        return replace(sample, labels=[name_of(tag) for tag in tags or []])
    given = next((row[key] for key in ("label", "labels", "score") if key in row), None)
    if kind == REGRESSION:
        value = row.get("score", given)
        number = None if value in (None, "") else number_of(value)
        if value not in (None, "") and number is None:
            raise DataError(where, SCORE, shorten(value))
        return replace(sample, score=number)
    if kind == MULTI:
        names = [] if given is None else names_of(given)
        known = all(isinstance(name, str) for name in names)  # others are refused by `check`
        return replace(sample, labels=list(dict.fromkeys(names)) if known else names)
    if kind == SINGLE:
        if isinstance(given, (list, tuple)):
            return replace(sample, labels=names_of(given))
        name = None if given is None else name_of(given)
        return replace(sample, labels=[] if name in (None, "") else [name])
    return sample


def kind_of_samples(samples: Sequence[TextSample]) -> str:
    """The kind of samples in memory."""
    if any(sample.words is not None for sample in samples):
        return TAGGING
    if any(sample.score is not None for sample in samples):
        return REGRESSION
    numbers = Counter(len(sample.labels) for sample in samples)
    return TEXT if set(numbers) == {0} else SINGLE if set(numbers) <= {0, 1} else MULTI
