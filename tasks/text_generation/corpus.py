"""Corpora as arrays of token ids, in memory or mapped from a file, and the blocks that models are trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from mmattn.tasks.common.files import atomic_folder
from mmattn.tasks.text_generation.data import TextSample

LARGE = 1 << 25  # tokens, from which a corpus is kept in a file
FOLDER = "tokens"  # of the cache
IDS, STARTS = "ids.npy", "starts.npy"  # of a corpus in it
LAYOUT = 2  # of these files


@dataclass
class Corpus:
    """Documents as one array of ids: an end token, then each document with its end token."""

    ids: np.ndarray  # (N,) of the smallest unsigned type that holds the vocabulary
    starts: np.ndarray  # (D,) int64, the index of each document's first token
    bytes: int = 0  # of the documents in UTF-8
    words: int = 0  # of the documents, separated by white space; ends of lines count, see `count_words`
    log_p: float | None = None  # of all documents, by the grammar of built-in data
    lead: int = 0  # tokens before each document that it begins with in generation, too: the end of the one before

    def __len__(self) -> int:
        return len(self.ids)

    def documents(self, start: int, end: int) -> np.ndarray:
        """Returns the number of the document of each token from start to end."""
        return np.searchsorted(self.starts, np.arange(start, end) + self.lead, side="right")


@dataclass
class Block:
    """A part of a corpus: ids to read, the ids that follow them, and how many of the first are not predicted."""

    id: str
    corpus: Corpus = field(repr=False)
    start: int
    size: int  # L: the ids are those from start to start + L, the labels one later
    context: int = 0  # the first labels that do not count
    room: int = 0  # tokens by which the block may begin later, in training

    def ids(self, shift: int = 0) -> np.ndarray:
        """Returns (L + 1,) int64."""
        first = self.start + shift
        return np.asarray(self.corpus.ids[first : first + self.size + 1], dtype=np.int64)


class Blocks(Sequence[Block]):
    """The blocks of a corpus, made when they are read.

    Args:
        corpus: The corpus.
        size: Tokens of a block, L.
        context: Tokens that a block repeats of those before it, without being measured on them again; in evaluation.
        streams: Training in order: the corpus is divided into so many parts, and block t S + s is the t-th of part s.
            None: blocks are independent.
    """

    def __init__(self, corpus: Corpus, size: int, context: int = 0, streams: int | None = None) -> None:
        self.corpus, self.size, self.context, self.streams = corpus, size, context, streams
        self.targets = max(len(corpus) - 1, 0)
        if streams is not None:
            self.part = max(1, self.targets // streams)
            self.total = streams * -(-self.part // size)
        else:
            rest = max(self.targets - size, 0)
            self.total = 1 + -(-rest // (size - context))

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = str(index)
        if self.streams is not None:
            turn, stream = divmod(index, self.streams)
            start = stream * self.part + turn * self.size
            return Block(name, self.corpus, start, min(self.size, (stream + 1) * self.part - start))
        end = min(self.size + index * (self.size - self.context), self.targets)  # the last label
        start = max(0, end - self.size)
        before = 0 if not index else self.size + (index - 1) * (self.size - self.context)
        room = max(0, min(self.size, self.targets - self.size - start))
        return Block(name, self.corpus, start, end - start, before - start if index else 0, room)


def encode_corpus(
    samples: Iterable[TextSample], encode: Callable[[str], list[int]], ends: tuple[list[int], int], vocab_size: int
) -> Iterator[tuple[np.ndarray, TextSample | None]]:
    """Yields arrays of ids, and with the last of each document its sample.

    Args:
        samples: The documents.
        encode: Maps a text to ids.
        ends: Ids before each document, and the id after it.
        vocab_size: Number of ids.
    """
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    before, end = ends
    yield np.array([end], kind), None
    for sample in samples:
        if before:
            yield np.array(before, kind), None
        for piece in sample.pieces():
            yield np.array(encode(piece), kind), None
        yield np.array([end], kind), sample


def make_corpus(
    samples: Sequence[TextSample],
    encode: Callable[[str], list[int]],
    ends: tuple[list[int], int],
    vocab_size: int,
    key: str,
    large: int = LARGE,
) -> Corpus:
    """Encodes documents. Large corpora are written to a folder of the cache, which is mapped and used again.

    Args:
        samples: The documents.
        encode: Maps a text to ids.
        ends: See `encode_corpus`.
        vocab_size: Number of ids.
        key: What the ids depend on: the fingerprints of the documents and of the tokenizer.
        large: Tokens from which files are written.
    """
    folder = cache_folder() / hashlib.sha256(f"{LAYOUT} {key}".encode()).hexdigest()[:32]
    sizes, words = 0, 0
    for sample in samples:
        for piece in sample.pieces():
            sizes += len(piece.encode())
            words += count_words(piece)
    known = [sample.log_p for sample in samples]
    log_p = None if None in known or not known else float(sum(value for value in known if value is not None))
    if (found := _read(folder)) is not None:
        return Corpus(*found, sizes, words, log_p)
    total, starts, parts, file = 0, [1], list[np.ndarray](), None
    try:
        for part, done in encode_corpus(samples, encode, ends, vocab_size):
            parts.append(part)
            total += len(part)
            if done is not None:
                starts.append(total)  # where the next document begins
            if total > large and file is None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                file = open(folder.with_name(f"{folder.name}.{os.getpid()}.raw"), "wb")  # noqa: SIM115
            if file is not None:
                np.concatenate(parts).tofile(file)
                parts = []
        first = np.array(starts[:-1], np.int64)
        if file is None:
            return Corpus(np.concatenate(parts), first, sizes, words, log_p)
        file.close()
        raw = np.memmap(file.name, dtype=np.uint16 if vocab_size <= 1 << 16 else np.uint32, mode="r")

        def write(into: Path) -> None:
            np.save(into / STARTS, first)
            mapped = np.lib.format.open_memmap(into / IDS, mode="w+", dtype=raw.dtype, shape=raw.shape)
            for place in range(0, len(raw), large):
                mapped[place : place + large] = raw[place : place + large]
            mapped.flush()

        atomic_folder(folder, write)
        found = _read(folder)
        assert found is not None
        return Corpus(*found, sizes, words, log_p)
    finally:
        if file is not None:
            file.close()
            Path(file.name).unlink(missing_ok=True)


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The ids of a corpus in the cache, mapped, and the starts of its documents."""
    if not (folder / IDS).exists():
        return None
    return np.load(folder / IDS, mmap_mode="r", allow_pickle=False), np.load(folder / STARTS, allow_pickle=False)


def count_words(text: str) -> int:
    """Returns the number of words of a text, separated by white space; an end of line counts as a word.

    >>> count_words("to be\\nor not\\n")
    6
    """
    return len(text.split()) + text.count("\n")


def cache_folder() -> Path:
    """Returns the folder of token files, in `$MMATTN_CACHE` or the user's cache."""
    from mmattn.tasks.common.weights import cache_folder as cache

    return cache() / FOLDER
