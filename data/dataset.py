"""Base class of the data sets of all tasks: validated samples from a path or from memory."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from torch.utils.data import Dataset

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.splitting import held_out
from mmattn.data.table import Table, as_table

logger = logging.getLogger(__name__)
S = TypeVar("S")  # a sample: a dataclass with an `id`
Row = tuple[str, S]  # location ("train.csv, line 7") and sample


class SampleDataset(Dataset[S]):
    """A data set of validated samples; an invalid sample is an error, or is excluded, counted and reported.

    A task implements reading a path (`read`), validating a sample (`check`), decoding its media (`decode`), and the
    content of its fingerprint (`identity`).

    Args:
        source: A path in one of the task's formats; samples; or rows with the columns of the task's table, as mappings,
            tuples or a pandas DataFrame.
        on_error: ``raise`` raises at the first invalid item. ``skip`` decodes every item once, excludes the invalid
            ones and reports them in ``skipped`` and in the log; it never substitutes another sample.
        require_labels: Whether an unlabeled item is an error, as in training and evaluation.

    Raises:
        DataError: Names the file and the line or item, what was expected and what was found.
    """

    item: ClassVar[str] = "sample"  # name of a sample in messages
    unique_ids: ClassVar[bool] = True  # two samples of one id are an error
    columns: Sequence[str] = ()  # of the rows that are given as tuples

    def __init__(
        self, source: str | Path | Iterable[Any], *, on_error: str = "raise", require_labels: bool = True
    ) -> None:
        self.problems, self.require_labels = Problems(on_error), require_labels
        self._digest: str | None = None
        self._originals: dict[str, S] = {}
        found: Iterable[Row]
        source = as_table(source, self.columns)
        if isinstance(source, (str, Path, Table)):
            self.name, found = str(source), self.read(source, self.problems)
        else:
            self.name, found = "samples", self._given(source)
        self.keep(list(self._checked(found)))

    # Methods that a task implements -----------------------------------------------------------------------------------

    @abstractmethod
    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[Row]:
        """Yields the samples of a path or table, each with its location; invalid items are added to ``problems``.

        Raises:
            DataError: The path as a whole cannot be read.
        """

    def check(self, sample: S) -> tuple[str, str] | None:
        """Validates a sample: returns (expected, found) for an invalid one, otherwise None.

        Raises:
            DataError: A file that validation needs, e.g. for an image's size, cannot be read.
        """
        return None

    def decode(self, sample: S, where: str) -> None:
        """Reads a sample's media once, to find invalid ones under ``on_error="skip"``.

        Raises:
            DataError: The media cannot be read.
        """

    def identity(self, sample: S) -> tuple[list[Any], Sequence[Any]]:
        """Returns the content of a sample's fingerprint: JSON values, and media (see `content_of`)."""
        raise NotImplementedError

    def inputs(self, sample: S) -> tuple[list[Any], Sequence[Any]]:
        """Returns what a model gets of a sample, as ``identity`` does, to find repeated items: by default its media."""
        values, media = self.identity(sample)
        return ([], media) if media else (values[1:], media)

    def facts(self, sample: S, files: bool = True) -> dict[str, Any]:
        """Returns properties of a sample for a summary of the data: numbers, and names or lists of names.

        Args:
            sample: One of the samples.
            files: Whether to add those for which a file is opened, e.g. an image's size.

        Raises:
            DataError: A file cannot be read.
        """
        return {"label": label} if (label := self.label(sample)) else {}

    def label(self, sample: S) -> str:
        """Returns the label by which a split is stratified; an empty string without labels."""
        names = getattr(sample, "labels", None)
        return str(getattr(sample, "label", "")) if names is None else "|".join(sorted(names))

    # ------------------------------------------------------------------------------------------------------------------

    def _given(self, samples: Iterable[Any]) -> Iterator[Row]:
        for number, sample in enumerate(samples):
            if not hasattr(sample, "id"):
                rows = f" or rows with {', '.join(self.columns)}" if self.columns else ""
                raise DataError(f"sample {number}", f"samples{rows}", shorten(sample))
            yield f"sample {number} (id {sample.id!r})", sample

    def _checked(self, found: Iterable[Row]) -> Iterator[Row]:
        seen: dict[str, str] = {}
        for where, sample in found:
            name: str = sample.id
            try:
                problem = self.check(sample)
                if problem is None and self.unique_ids and name in seen:
                    problem = ("an id of its own", f"{name!r}, which {seen[name]} has already")
                if problem is not None:
                    raise DataError(where, *problem)
                if self.problems.on_error == "skip":
                    self.decode(sample, where)
            except DataError as error:
                self.problems.take(where, error)
                continue
            seen[name] = where
            yield where, sample

    def keep(self, checked: Sequence[Row]) -> None:
        """Sets the samples of the data set, each with its location.

        Raises:
            DataError: There are no samples.
        """
        self.places, self.samples = [where for where, _ in checked], [sample for _, sample in checked]
        self._digest = None
        if self.problems.items:
            logger.warning("%s", self.problems.summary(self.name, len(checked)))
        if not checked:
            found = "none"
            if self.skipped:
                found = f"none ({len(self.skipped)} invalid ones excluded); {': '.join(self.skipped[0])}"
            raise DataError(self.name, f"at least one {self.item}", found)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The excluded items, each with the reason."""
        return self.problems.items

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> S:
        return self.samples[index]

    def filter(self, keep: Callable[[S], bool]) -> Self:
        """Returns the data set restricted to samples for which ``keep`` is true; it may be empty."""
        return self.take([index for index, sample in enumerate(self.samples) if keep(sample)])

    def take(self, indices: Sequence[int]) -> Self:
        """Returns the data set restricted to the samples with these indices."""
        other = copy.copy(self)
        other.places, other.samples = [self.places[i] for i in indices], [self.samples[i] for i in indices]
        other._digest = None
        return other

    def divided(self, seed: int) -> tuple[Self, Self]:
        """Divides the data set into training and validation data; see ``held_out``.

        Raises:
            DataError: There are fewer than two samples, or groups of samples.
        """
        groups = getattr(self, "groups", range(len(self)))
        held = held_out([self.label(sample) for sample in self.samples], groups, seed)
        if not held:
            raise DataError(self.name, f"at least two {self.item}s, to hold one out for validation", f"{len(self)}")
        rest = sorted(set(range(len(self))) - set(held))
        train, val = self.take(rest), self.take(held)
        val.name, val.problems = f"{self.name} (held out)", Problems(self.problems.on_error)
        return train, val

    def preloaded(self, load: Callable[[S, str], S]) -> None:
        """Replaces each sample by ``load(sample, where)``, which decodes it, so that no batch waits for a file.

        The fingerprint remains that of the files. Workers forked afterwards share the memory.
        """
        self.fingerprint()
        self._originals = self._originals or {sample.id: sample for sample in self.samples}  # type: ignore[attr-defined]
        try:
            self.samples = [load(sample, where) for sample, where in zip(self.samples, self.places, strict=True)]
        except DataError as error:
            error.can_skip = self.problems.on_error == "raise"
            raise

    def originals(self) -> list[S]:
        """The samples as they were before they were decoded."""
        return [self._originals.get(sample.id, sample) for sample in self.samples]  # type: ignore[attr-defined]

    def fingerprint(self) -> str:
        """Returns the SHA-256 over all samples (files enter by name and size)."""
        if self._digest is None:
            digest, seen = hashlib.sha256(), set()
            for sample in self.samples:
                values, media = self.identity(sample)
                digest.update(json.dumps(values).encode())
                for medium in media:
                    key = medium if isinstance(medium, (str, Path)) else id(medium)
                    if key not in seen:  # questions of one image
                        seen.add(key)
                        digest.update(content_of(medium))
            self._digest = digest.hexdigest()
        return self._digest


def content_of(medium: Any) -> bytes:
    """Returns the bytes by which a medium enters a fingerprint: a file's name and size, an array's values, or bytes."""
    if isinstance(medium, (str, Path)):
        path = Path(medium)
        return f"{path.name} {os.path.getsize(path) if os.path.exists(path) else -1}".encode()
    if isinstance(medium, bytes) or medium is None:
        return medium or b""
    if hasattr(medium, "fingerprint"):  # a part of a file
        return str(medium.fingerprint()).encode()
    if isinstance(medium, tuple):  # audio samples and their sample rate
        return repr(medium[1:]).encode() + content_of(medium[0])
    array = np.ascontiguousarray(medium)
    return f"{array.dtype} {array.shape}".encode() + array.tobytes()
