"""Passages of a corpus, and the file that keeps them on disk, from which they are read by number."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from mmattn.data.errors import DataError, shorten

TEXTS, OFFSETS = "passages.jsonl", "offsets.npy"


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, and where it is from.

    >>> Passage("It rained.", "notes/history.txt", "paragraph 12").source
    'notes/history.txt, paragraph 12'
    """

    text: str
    file: str  # path relative to the corpus, or the name of its only file
    place: str  # in the file: "paragraph 12", "paragraph 12, part 2" or "line 7"
    title: str = ""
    id: str = ""

    @property
    def source(self) -> str:
        """The file, the place in it and the title, by which an answer's source is named."""
        name = self.title or self.id
        return f"{self.file}, {self.place}" + (f" ({name})" if name else "")

    @property
    def searched(self) -> str:
        """What is searched: the title and the text, since a text often does not repeat what it is about."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def write_passages(folder: Path, passages: Iterable[Passage]) -> int:
    """Writes passages one by one; returns their number."""
    offsets = array("q", [0])
    with (folder / TEXTS).open("wb") as file:
        for passage in passages:
            line = json.dumps(astuple(passage), ensure_ascii=False) + "\n"
            offsets.append(offsets[-1] + file.write(line.encode("utf-8", "surrogatepass")))  # names of files may have
    np.save(folder / OFFSETS, np.frombuffer(offsets, np.int64))
    return len(offsets) - 1


class PassageFile:
    """The passages that `write_passages` wrote, none of which is kept in memory.

    Args:
        folder: The folder of the files.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets: np.ndarray = np.load(folder / OFFSETS, mmap_mode="r")
        with (folder / TEXTS).open("rb") as file:
            self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self.offsets.ndim != 1 or self.offsets[-1] != len(self.content):
            raise ValueError(f"{folder}: {OFFSETS} does not fit {TEXTS}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Passage:
        if not 0 <= number < len(self):
            raise IndexError(f"passage {number} of {len(self)}")
        line = self.content[self.offsets[number] : self.offsets[number + 1]]
        try:
            return Passage(*json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, TypeError):
            where = f"{self.folder / TEXTS}, line {number + 1}"
            raise DataError(where, "a passage", f"{shorten(line, 60)}; remove the folder") from None

    def __iter__(self) -> Iterator[Passage]:
        return (self[number] for number in range(len(self)))
