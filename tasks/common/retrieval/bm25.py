"""BM25 by the library bm25s, indexed in bounded memory."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.lib.format import open_memmap

from mmattn.data.text.scripts import split_words
from mmattn.tasks.common.progress import progress
from mmattn.tasks.common.retrieval.index import Hit, top_k
from mmattn.tasks.common.retrieval.passages import PassageFile

BLOCK = 1 << 20  # words of the passages that are counted at once
SCRATCH = "scratch"  # folder


class BM25Index:
    """An index by the words of the passages (Robertson & Zaragoza 2009), in Lucene's variant of the formula.

    The score of a passage d for a question is the sum, over the words w of the question that it contains, of
    ``log(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|))``: tf is how often d
    contains w, df how many of the N passages do. Passages without a word of the question are not found.

    Args:
        k1: The greater, the more counts how often a word occurs.
        b: From 0 to 1: how much a word counts less in a longer passage.

    Raises:
        ValueError: An option is invalid.
    """

    model: bm25s.BM25
    sharpness = 1.0  # a sum of logarithms

    def __init__(self, k1: float = 1.5, b: float = 0.75) -> None:
        if not 0 <= k1 < math.inf:
            raise ValueError(f"k1: expected a number of at least 0, found {k1}")
        if not 0 <= b <= 1:
            raise ValueError(f"b: expected a number from 0 to 1, found {b}")
        self.k1, self.b = float(k1), float(b)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Index`."""
        return {"k1": self.k1, "b": self.b}

    def build(self, folder: Path, passages: PassageFile, shown: bool = True) -> None:
        """See `Index`; in memory are the vocabulary, `BLOCK` words, and a few numbers a passage."""
        scratch = folder / SCRATCH
        scratch.mkdir()
        counts = Counts(scratch)
        counts.fill(split_words(passage.searched) for passage in progress(passages, len(passages), "BM25", shown))
        model = BlockwiseBM25(k1=self.k1, b=self.b)
        model.index(counts, create_empty_token=False, show_progress=False)
        model.save(folder)
        del model  # and its memory maps of the files
        shutil.rmtree(scratch)

    def load(self, folder: Path) -> None:
        """See `Index`."""
        self.model = bm25s.BM25.load(folder, mmap=True)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Index`."""
        return [self._search(question, k) for question in questions]

    def _search(self, question: str, k: int) -> list[Hit]:
        scores = self.model.get_scores_from_ids(self.model.get_tokens_ids(split_words(question)))  # (N,)
        return [(int(number), float(scores[number])) for number in top_k(scores, k, above=0.0)]


class Counts:
    """How often passages contain words, in blocks on disk.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vocab: dict[str, int] = {}
        self.lengths = array("i")  # words of each passage
        self.blocks: list[Path] = []

    @property
    def ids(self) -> Counts:
        """What bm25s passes to `BlockwiseBM25` as the passages."""
        return self

    def fill(self, passages: Iterable[list[str]]) -> None:
        """Counts the words of all passages."""
        ids, first = array("i"), 0
        for words in passages:
            ids.extend([self.vocab.setdefault(word, len(self.vocab)) for word in words])
            self.lengths.append(len(words))
            if len(ids) >= BLOCK:
                self._write(ids, first)
                ids, first = array("i"), len(self.lengths)
        if ids:
            self._write(ids, first)

    def _write(self, ids: array[int], first: int) -> None:
        """Writes the counts of the passages from `first`: words, passages and counts (3, n), sorted by word."""
        lengths = np.frombuffer(self.lengths, np.int32)[first:]
        passages = np.repeat(np.arange(first, first + len(lengths)), lengths)
        pairs = np.frombuffer(ids, np.int32).astype(np.int64) << 32 | passages
        pairs, counts = np.unique(pairs, return_counts=True)
        self.blocks.append(self.folder / f"{len(self.blocks)}.npy")
        np.save(self.blocks[-1], np.stack([pairs >> 32, pairs & 0xFFFFFFFF, counts]).astype(np.int32))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.load(block) for block in self.blocks)


class BlockwiseBM25(bm25s.BM25):  # type: ignore[misc]
    """bm25s, which computes all scores in memory, with scores computed block by block into memory maps."""

    def build_index_from_ids(
        self, unique_token_ids: Sequence[int], corpus_token_ids: Counts, *_: Any, **__: Any
    ) -> dict[str, Any]:
        """Computes the matrix of scores (N, V), by columns; the method that the library provides to be replaced."""
        counts, lengths = corpus_token_ids, np.frombuffer(corpus_token_ids.lengths, np.int32)
        containing = np.zeros(len(unique_token_ids), np.int64)  # (V,): how many passages contain a word
        for words, _passages, _counts in counts:
            containing += np.bincount(words, minlength=len(containing))
        idf = np.log1p((len(lengths) - containing + 0.5) / (containing + 0.5))  # (V,)
        damping = self.k1 * (1 - self.b + self.b * lengths / lengths.mean())  # (N,)
        starts = np.concatenate([[0], containing.cumsum()])  # (V + 1,)
        scores = open_memmap(counts.folder / "scores.npy", "w+", np.float32, (int(starts[-1]),))
        rows = open_memmap(counts.folder / "rows.npy", "w+", np.int32, scores.shape)
        self.nonoccurrence_array = None  # which other variants of the formula have
        filled = starts[:-1].copy()
        for words, passages, times in counts:
            begins = np.flatnonzero(np.diff(words, prepend=-1))  # of each word's passages
            sizes = np.diff(begins, append=len(words))
            at = np.arange(len(words)) + np.repeat(filled[words[begins]] - begins, sizes)
            scores[at] = idf[words] * times / (times + damping[passages])
            rows[at] = passages
            filled[words[begins]] += sizes
        return {"data": scores, "indices": rows, "indptr": starts, "num_docs": len(lengths)}
