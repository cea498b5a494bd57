"""Samples from a path or from memory, checked: what the data sets of all tasks have in common."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from torch.utils.data import Dataset

from mmattn.data.errors import DataError, Problems

logger = logging.getLogger(__name__)
S = TypeVar("S")  # a sample: a dataclass with an `id`
Row = tuple[str, S]  # where it stands ("train.csv, line 7"), and what stands there


class SampleDataset(Dataset[S]):
    """Samples, checked; the bad ones end the reading, or are left out, counted and reported.

    A task says how a path is read (`read`), what is wrong with a sample (`check`), what cannot be decoded (`decode`),
    and what a sample's fingerprint is made of (`identity`).

    Args:
        source: A path in one of the task's formats, or samples.
        on_error: ``raise`` ends at the first bad item. ``skip`` decodes every item once, leaves the bad ones out and
            reports them in ``skipped`` and in the log; it never puts something else in their place.
        require_labels: Whether an unlabelled item is an error, as in training and evaluation.

    Raises:
        DataError: Names the file and the line or item, what was expected and what was found.
    """

    item: ClassVar[str] = "sample"  # what messages call one
    unique_ids: ClassVar[bool] = True  # two samples of one id are an error

    def __init__(
        self, source: str | Path | Iterable[S], *, on_error: str = "raise", require_labels: bool = True
    ) -> None:
        self.problems, self.require_labels = Problems(on_error), require_labels
        self._digest: str | None = None
        found: Iterable[Row]
        if isinstance(source, (str, Path)):
            self.name, found = str(source), self.read(source, self.problems)
        else:
            self.name = "samples"
            found = ((f"sample {n} (id {sample.id!r})", sample) for n, sample in enumerate(source))  # type: ignore[attr-defined]
        self.keep(list(self._checked(found)))

    # What a task provides ---------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, path: str | Path, problems: Problems) -> Iterator[Row]:
        """The samples of a path, each with the place it stands at; problems takes the bad ones.

        Raises:
            DataError: The path as a whole cannot be read.
        """

    def check(self, sample: S) -> tuple[str, str] | None:
        """What was expected of a sample and what was found, where something is wrong with it.

        Raises:
            DataError: What of its files has to be read for that, such as their sizes, cannot be.
        """
        return None

    def decode(self, sample: S, where: str) -> None:
        """Reads a sample's media once, where bad ones are to be left out.

        Raises:
            DataError: They cannot be read.
        """

    def identity(self, sample: S) -> tuple[list[Any], Sequence[Any]]:
        """What makes a sample what it is: values, as JSON takes them, and media (`content_of`)."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------

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
        """Takes these samples, each with the place it stands at, as the data set's own.

        Raises:
            DataError: There are none.
        """
        self.places, self.samples = [where for where, _ in checked], [sample for _, sample in checked]
        self._digest = None
        if self.problems.items:
            logger.warning("%s", self.problems.summary(self.name, len(checked)))
        if not checked:
            left = f"none ({len(self.skipped)} left out as bad)" if self.skipped else "none"
            raise DataError(self.name, f"at least one {self.item}", left)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """What was left out: item and reason."""
        return self.problems.items

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> S:
        return self.samples[index]

    def filter(self, keep: Callable[[S], bool]) -> Self:
        """The data set with only those samples; it may be empty."""
        other = copy.copy(self)
        kept = [pair for pair in zip(self.places, self.samples, strict=True) if keep(pair[1])]
        other.places, other.samples, other._digest = [where for where, _ in kept], [sample for _, sample in kept], None
        return other

    def preloaded(self, load: Callable[[S, str], S]) -> None:
        """Replaces each sample by what ``load(sample, where)`` makes of it: decoded, so that no batch waits for a file.

        The fingerprint stays that of the files. Workers that are forked afterwards share the memory.
        """
        self.fingerprint()
        self.samples = [load(sample, where) for sample, where in zip(self.samples, self.places, strict=True)]

    def fingerprint(self) -> str:
        """SHA-256 over every sample (a file counts by name and size)."""
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
    """The bytes by which a medium counts: a file's name and size, an array's values, bytes as they are."""
    if isinstance(medium, (str, Path)):
        path = Path(medium)
        return f"{path.name} {path.stat().st_size if path.exists() else -1}".encode()
    if isinstance(medium, bytes) or medium is None:
        return medium or b""
    if hasattr(medium, "fingerprint"):  # a part of a file
        return str(medium.fingerprint()).encode()
    if isinstance(medium, tuple):  # samples of sound and their rate
        return repr(medium[1:]).encode() + content_of(medium[0])
    array = np.ascontiguousarray(medium)
    return f"{array.dtype} {array.shape}".encode() + array.tobytes()
