"""What the kinds of index have in common: the search, and the choice of the best passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmattn.tasks.common.retrieval.passages import PassageFile

Hit = tuple[int, float]  # number of a passage and its score


class Index(Protocol):
    """An index of passages, which is searched after `load`.

    Attributes:
        sharpness: Number t with which exp(t score) is in proportion to the probability that a passage holds the answer.
    """

    sharpness: float

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the files of `build` depend on, beside the passages: JSON values."""

    def build(self, folder: Path, passages: PassageFile, shown: bool = True) -> None:
        """Fills an empty folder with files that `load` maps into memory.

        Args:
            folder: The folder.
            passages: The passages.
            shown: Whether to show a progress bar.

        Raises:
            DataError: The passages cannot be indexed.
        """

    def load(self, folder: Path) -> None:
        """Opens the files of a folder.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is damaged.
        """

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """Returns at most `k` passages for each question, the best first; of equal ones the first in the corpus."""


def top_k(scores: np.ndarray, k: int, above: float | None = None) -> np.ndarray:
    """Returns the indices of the `k` greatest scores, in descending order; of equal scores the first.

    Args:
        scores: (N,).
        k: Maximum number of indices.
        above: Only scores greater than this.

    >>> top_k(np.array([0.0, 2.0, 1.0, 2.0]), 3, above=0.0).tolist()
    [1, 3, 2]
    """
    found = np.arange(len(scores)) if above is None else np.flatnonzero(scores > above)
    if k < len(found):
        values = scores[found]
        found = found[values >= np.partition(values, -k)[-k]]
    return found[np.argsort(-scores[found], kind="stable")[:k]]
