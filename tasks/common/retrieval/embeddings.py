"""Embeddings of passages, memory-mapped, and their search by cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap

from mmattn.data.errors import DataError
from mmattn.tasks.common.progress import progress
from mmattn.tasks.common.retrieval.index import Hit, top_k
from mmattn.tasks.common.retrieval.passages import PassageFile

VECTORS = "vectors.npy"
BATCH = 1024  # passages that the encoder gets at once, which it sorts by length
BLOCK = 1 << 14  # passages that are compared with questions at once
QUESTIONS = 128  # questions that are compared at once


class Embed(Protocol):
    """What embeds texts; `fingerprint` names its weights and settings, so that an index of other ones is not used."""

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns one vector for each text: (N, E)."""


class EmbeddingIndex:
    """An index by vectors of the passages in half precision; the score is the cosine similarity.

    Args:
        encoder: What embeds passages and questions.

    Raises:
        ValueError: The encoder has no fingerprint.
    """

    vectors: np.ndarray  # (N, E)
    sharpness = 20.0  # with which sentence-transformers trains MiniLM and its like

    def __init__(self, encoder: Embed) -> None:
        if not isinstance(getattr(encoder, "fingerprint", None), str):
            raise ValueError("encoder: expected a text `fingerprint` that names its weights, found none")
        self.encoder = encoder

    @property
    def settings(self) -> dict[str, Any]:
        """See `Index`."""
        return {"encoder": self.encoder.fingerprint}

    def build(self, folder: Path, passages: PassageFile, shown: bool = True) -> None:
        """See `Index`; in memory are the encoder and `BATCH` passages."""
        vectors: np.ndarray | None = None
        texts: list[str] = []
        for number, passage in enumerate(progress(passages, len(passages), "embeddings", shown), start=1):
            texts.append(passage.searched)
            if len(texts) == BATCH or number == len(passages):
                found = embed(self.encoder, texts, None if vectors is None else vectors.shape[1])
                if vectors is None:
                    shape = (len(passages), found.shape[1])
                    vectors = open_memmap(folder / VECTORS, "w+", np.float16, shape)
                vectors[number - len(texts) : number] = found
                texts = []

    def load(self, folder: Path) -> None:
        """See `Index`."""
        self.vectors = np.load(folder / VECTORS, mmap_mode="r")
        if self.vectors.ndim != 2:
            raise ValueError(f"{folder / VECTORS}: expected vectors (N, E), found {self.vectors.shape}")

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Index`."""
        groups = (questions[at : at + QUESTIONS] for at in range(0, len(questions), QUESTIONS))
        return [found for group in groups for found in self._search(group, k)]

    def _search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        asked = embed(self.encoder, questions, self.vectors.shape[1])  # (Q, E)
        numbers = [np.empty(0, np.int64)] * len(questions)  # of the best passages up to here
        best = [np.empty(0, np.float32)] * len(questions)
        for first in range(0, len(self.vectors), BLOCK):
            block = self.vectors[first : first + BLOCK].astype(np.float32)
            for question, scores in enumerate(asked @ block.T):  # (Q, n)
                near = top_k(scores, k)
                values = np.concatenate([best[question], scores[near]])
                order = top_k(values, k)
                numbers[question] = np.concatenate([numbers[question], first + near])[order]
                best[question] = values[order]
        pairs = zip(numbers, best, strict=True)
        return [list(zip(found.tolist(), scores.tolist(), strict=True)) for found, scores in pairs]


def embed(encoder: Embed, texts: Sequence[str], size: int | None = None) -> np.ndarray:
    """Returns the vectors of texts (N, E) of length 1, in single precision.

    Args:
        encoder: What embeds texts.
        texts: N texts.
        size: The expected E.

    Raises:
        DataError: The encoder returns something else than N finite vectors.
    """
    found = np.asarray(encoder(list(texts)), np.float32)
    if found.ndim != 2 or len(found) != len(texts) or found.shape[1] != (size or found.shape[1]):
        raise DataError("encoder", f"vectors ({len(texts)}, {size or 'E'})", f"{found.shape}")
    if not np.isfinite(found).all():
        raise DataError("encoder", "finite vectors", "NaN or infinite numbers")
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
