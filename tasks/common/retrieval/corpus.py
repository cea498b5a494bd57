"""A corpus whose passages are searched by questions: `open_corpus`.

The passages and their index are kept in the folder of caches, in ``corpora/FINGERPRINT``. The fingerprint is that of
the options and of the files' names and content. Modification times would be faster to compare, but copies and checkouts
change them while the content stays, and a file that is edited twice within their resolution does not; hashing reads
about a gigabyte a second, while indexing reads a few megabytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmattn.data.errors import DataError, Problems, located, nearest, shorten
from mmattn.data.files import is_hidden
from mmattn.data.readers import read_settings
from mmattn.tasks.common.errors import require
from mmattn.tasks.common.files import atomic_folder
from mmattn.tasks.common.retrieval.embeddings import Embed, EmbeddingIndex
from mmattn.tasks.common.retrieval.index import Index
from mmattn.tasks.common.retrieval.passages import Passage, PassageFile, write_passages
from mmattn.tasks.common.retrieval.reading import MAX_WORDS, corpus_files, read_passages
from mmattn.tasks.common.weights import cache_folder

logger = logging.getLogger(__name__)
KINDS = ("bm25", "embeddings")
FORMAT = 1  # of the cache
ABOUT = "corpus.json"  # written last in an entry of the cache
INDEX = "index"  # folder
ENCODER = "minilm"


class Found(NamedTuple):
    """A passage that was found, and its score: the greater, the better."""

    passage: Passage
    score: float


class Corpus:
    """A corpus and its index; `open_corpus` makes it.

    Args:
        name: The corpus in messages.
        folder: Its entry in the cache.
        passages: The passages.
        index: Their index.
        skipped: The invalid items that were left out, each with the reason.
    """

    def __init__(
        self, name: str, folder: Path, passages: PassageFile, index: Index, skipped: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.name, self.folder, self.passages, self.index = name, folder, passages, index
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, number: int) -> Passage:
        return self.passages[number]

    def search(self, questions: Sequence[str], k: int = 5) -> list[list[Found]]:
        """Finds the best passages for each question.

        Args:
            questions: The questions.
            k: Maximum number of passages; BM25 finds fewer if fewer contain a word of the question.

        Returns:
            For each question the passages, the best first.

        Raises:
            DataError: A question is not a string, or the cache is damaged.
            ValueError: `k` is not positive.
        """
        if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
            raise DataError("questions", "a list of texts", shorten(questions))
        if k < 1:
            raise ValueError(f"k: expected at least 1, found {k}")
        hits = self.index.search(questions, k)
        return [[Found(self[number], score) for number, score in found] for found in hits]

    def log_prior(self, found: Sequence[Found]) -> np.ndarray:
        """Returns the logarithms of the passages' probabilities before they are read, a softmax of scores: (k,).

        Args:
            found: The passages that were found for a question.
        """
        scores = self.index.sharpness * np.array([one.score for one in found])
        return scores - np.logaddexp.reduce(scores)


def open_corpus(
    path: str | Path,
    kind: str = "bm25",
    encoder: Embed | str | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Corpus:
    """Opens a corpus: reads and indexes it, or takes both from the cache if files and options are the same.

    Args:
        path: A file or a folder of files: .txt, .md, .jsonl, .csv, .tsv, or SQuAD's .json; see `read_passages`.
        kind: `bm25`, by words, or `embeddings`, by the similarity of meaning.
        encoder: What embeds texts, for `embeddings`: a callable, or a source for `read_encoder`; None: MiniLM.
        on_error: `raise` raises at the first invalid item; `skip` leaves invalid items out, counts and reports them.
        progress: Whether to show progress bars.

    Raises:
        DataError: The corpus is missing or without passages, or an item is invalid; names the file and the item.
        CheckpointError: There is no such encoder.
        ModuleNotFoundError: bm25s is not installed.
        ValueError: The kind is unknown, or the encoder has no fingerprint.
        OSError: The cache cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}{nearest(str(kind), KINDS)}")
    problems = Problems(on_error)
    files = corpus_files(path)
    index = _index(kind, encoder)
    settings = {"format": FORMAT, "kind": kind, "on_error": on_error, "max_words": MAX_WORDS, **index.settings}
    folder = cache_folder() / "corpora" / _fingerprint(files, settings)
    corpus = _cached(path, folder, index)
    if corpus is None:
        about = {"path": os.path.abspath(path), "settings": settings}

        def fill(entry: Path) -> None:
            if not write_passages(entry, read_passages(files, problems, shown=progress)):
                first = "".join(f"; {item}: {reason}" for item, reason in problems.items[:1])
                raise DataError(str(path), "at least one passage", f"none{first}")
            (entry / INDEX).mkdir()
            with located(path):
                index.build(entry / INDEX, PassageFile(entry), progress)
            sizes = {str(file.relative_to(entry)): file.stat().st_size for file in entry.rglob("*") if file.is_file()}
            written = json.dumps(
                about | {"skipped": problems.items, "sizes": sizes}, indent=1
            )  # ASCII, whatever the names
            (entry / ABOUT).write_text(written, encoding="utf-8")

        atomic_folder(folder, fill)
        _remove_older(folder, about)
        corpus = _read(path, folder, index)
    if corpus.skipped:
        problems.items = corpus.skipped
        logger.warning("%s", problems.summary(str(path), len(corpus)))
    return corpus


def recall_at_k(
    corpus: Corpus, questions: Sequence[str], contexts: Sequence[str], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Returns for each k the share of questions for which one of the first k passages contains the context.

    Args:
        corpus: The corpus.
        questions: The questions.
        contexts: The text that answers each question; white space does not matter.
        ks: Numbers of passages.
    """
    ranks: list[float] = []
    for found, context in zip(corpus.search(questions, max(ks)), contexts, strict=True):
        wanted = " ".join(context.split())
        right = (rank for rank, one in enumerate(found, start=1) if wanted in " ".join(one.passage.text.split()))
        ranks.append(next(right, float("inf")))
    return {k: sum(rank <= k for rank in ranks) / max(1, len(ranks)) for k in ks}


def _index(kind: str, encoder: Embed | str | None) -> Index:
    if kind == "bm25":
        require("bm25s")
        from mmattn.tasks.common.retrieval.bm25 import BM25Index

        return BM25Index()
    if encoder is None or isinstance(encoder, str):
        from mmattn.tasks.common.retrieval.encoder import read_encoder

        encoder = read_encoder(encoder or ENCODER)
    return EmbeddingIndex(encoder)


def _fingerprint(files: Sequence[tuple[str, Path]], settings: Mapping[str, Any]) -> str:
    """The SHA-256 over the settings, and over the names and contents of the files."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, path in files:
        content = "unreadable"  # which reading reports
        with suppress(OSError), path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([name, content]).encode())
    return digest.hexdigest()


def _cached(path: str | Path, folder: Path, index: Index) -> Corpus | None:
    """Returns what the cache has of a corpus; None without an entry, or with a damaged one, which is reported."""
    if not folder.exists():
        return None
    try:
        return _read(path, folder, index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        logger.warning("%s: a damaged index in the cache is made again (%s)", path, error)
        return None


def _read(path: str | Path, folder: Path, index: Index) -> Corpus:
    about = read_settings(folder / ABOUT)
    for name, size in about["sizes"].items():
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{folder / name}: expected {size:,} bytes, found {found:,}")
    index.load(folder / INDEX)
    skipped = [(str(item), str(reason)) for item, reason in about["skipped"]]
    return Corpus(str(path), folder, PassageFile(folder), index, skipped)


def _remove_older(folder: Path, about: Mapping[str, Any]) -> None:
    """Removes entries of the same corpus and settings, whose files have changed since."""
    for other in folder.parent.iterdir():
        if other == folder or is_hidden(other.name):  # that of another process that is not finished
            continue
        with suppress(OSError, ValueError):
            found = read_settings(other / ABOUT)
            if isinstance(found, dict) and all(found.get(key) == value for key, value in about.items()):
                shutil.rmtree(other)
