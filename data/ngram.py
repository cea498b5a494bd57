"""A language model that counts: interpolated Kneser-Ney over ids, to weigh what CTC hears by what is ever written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError, shorten

KEPT = 1 << 22  # numbers in the answers that are remembered: 16 MB


class NGram:
    """``p(w | c) = max(a(c w) - D, 0) / a(c .) + g(c) p(w | c')``, c' being c less its first id, g what is left over.

    Modified Kneser-Ney smoothing (Chen and Goodman 1999, section 3): of the longest n-grams a counts occurrences, of
    shorter ones how many ids stand before them, and D depends on a being 1, 2 or more. At last all ids are alike.

    Args:
        vocab_size: V.
        bos: What stands before a text, and is never said.
        eos: What ends it.
        keys: Of each order 1 .. n, sorted: (the place of the n-gram's first n - 1 ids) V + its last id.
        counts: The a of each of them.

    Raises:
        ValueError: Keys and counts that are none.

    >>> model = NGram.fit([[4, 5], [4, 5, 4, 6]], vocab_size=7, order=3, bos=2, eos=3)
    >>> p = model.log_probs([2, 4]).exp()
    >>> int(p.argmax()), round(float(p.sum()), 6)
    (5, 1.0)
    """

    def __init__(
        self, vocab_size: int, bos: int, eos: int, keys: Sequence[np.ndarray], counts: Sequence[np.ndarray]
    ) -> None:
        self.vocab_size, self.bos, self.eos, self.order = vocab_size, bos, eos, len(keys)
        self.keys = [np.ascontiguousarray(level, dtype=np.int64) for level in keys]
        self.counts = [np.ascontiguousarray(level, dtype=np.int64) for level in counts]
        if not self.keys or [len(k) for k in self.keys] != [len(c) for c in self.counts]:
            raise ValueError("expected keys and counts of as many n-grams, of at least one order")
        sizes = [1, *map(len, self.keys)]
        for n, level in enumerate(self.keys):
            inside = not len(level) or (level[0] >= 0 and level[-1] < sizes[n] * vocab_size)
            if not inside or (np.diff(level) <= 0).any():
                raise ValueError(f"the {n + 1}-grams are not sorted, or do not fit those before them")
        # What follows a node of one order are neighbours in the next.
        self.starts = [
            np.searchsorted(level, np.arange(size + 1) * vocab_size)
            for level, size in zip(self.keys, sizes, strict=False)
        ]
        self.discounts = [_discounts(level) for level in self.counts]
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}  # to loaders' processes

    @classmethod
    def fit(cls, texts: Iterable[Sequence[int]], vocab_size: int, order: int, bos: int, eos: int) -> NGram:
        """Counts.

        Args:
            texts: Ids of each, neither bos nor eos among them.
            vocab_size: V.
            order: Ids of the longest n-gram, n.
            bos: What stands before a text.
            eos: What ends it.

        Raises:
            ValueError: An order below 1, or no text.
        """
        lines = [np.asarray([bos, *ids, eos], dtype=np.int64) for ids in texts]
        if order < 1 or not lines:
            raise ValueError(f"order={order}, {len(lines)} texts: expected at least 1 of both")
        ids = np.concatenate(lines)
        left = np.concatenate([np.arange(len(line), 0, -1) for line in lines])  # ids up to the text's end
        begins = np.concatenate([np.arange(len(line)) == 0 for line in lines])
        keys, counts, opens = list[np.ndarray](), list[np.ndarray](), begins
        place = np.zeros(len(ids), dtype=np.int64)  # of the n-gram that begins at each id
        for n in range(1, order + 1):
            at = np.flatnonzero(left >= n)  # where an n-gram begins
            found, first, which, count = np.unique(
                place[at] * vocab_size + ids[at + n - 1], return_index=True, return_inverse=True, return_counts=True
            )
            if n > 1:  # what is counted of the order below is how many ids stand before, of a text's beginning none do
                behind = np.bincount(place[at[first] + 1], minlength=len(counts[-1]))
                counts[-1] = np.where(opens, counts[-1], behind)
            place = np.full(len(ids), -1, dtype=np.int64)
            place[at] = which
            opens = begins[at[first]]
            keys.append(found)
            counts.append(count)
        counts[0] = np.where(keys[0] == bos, 0, counts[0])
        return cls(vocab_size, bos, eos, keys, counts)

    def log_probs(self, context: Sequence[int]) -> Tensor:
        """log p of each next id, (V,) float32; of what stood before, bos first, the last n - 1 ids count."""
        key = tuple(context[max(0, len(context) - self.order + 1) :])
        found = self._known.get(key)
        if found is None:
            if len(self._known) * self.vocab_size >= KEPT:
                self._known.clear()
            found = self._known[key] = torch.from_numpy(np.log(self._probs(key))).float()
        return found

    def _probs(self, context: tuple[int, ...]) -> np.ndarray:
        p = np.full(self.vocab_size, 1.0 / (self.vocab_size - 1))
        p[self.bos] = 1e-30
        for n in range(min(len(context), self.order - 1) + 1):
            node = self._find(context[len(context) - n :])
            if node is None:
                break
            low, high = self.starts[n][node], self.starts[n][node + 1]
            counts = self.counts[n][low:high]
            total = counts.sum()
            if not total:
                break  # nothing ever followed it
            taken = self.discounts[n][np.minimum(counts, 3)]
            p *= taken.sum() / total
            p[self.keys[n][low:high] - node * self.vocab_size] += (counts - taken) / total
        return p

    def _find(self, ids: Sequence[int]) -> int | None:
        """The place of an n-gram among those of its order."""
        node = 0
        for n, token in enumerate(ids):
            key = node * self.vocab_size + token
            low, high = self.starts[n][node], self.starts[n][node + 1]
            node = low + int(np.searchsorted(self.keys[n][low:high], key))
            if node == high or self.keys[n][node] != key:
                return None
        return node

    def score(self, ids: Sequence[int]) -> float:
        """log p of a text with its end."""
        text = [self.bos, *ids, self.eos]
        return sum(float(self.log_probs(text[:n])[text[n]]) for n in range(1, len(text)))

    def save(self, path: str | Path) -> None:
        """Writes its counts."""
        from safetensors.numpy import save_file

        counts = {f"counts.{n}": level.astype(np.int32) for n, level in enumerate(self.counts, 1)}
        save_file({f"keys.{n}": level for n, level in enumerate(self.keys, 1)} | counts, path)

    @classmethod
    def load(cls, path: str | Path, vocab_size: int, bos: int, eos: int) -> NGram:
        """Reads what `save` wrote.

        Args:
            path: The file.
            vocab_size: V.
            bos: What stands before a text.
            eos: What ends it.

        Raises:
            DataError: Missing, damaged, or of another vocabulary.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            state = load_file(path)
            orders = range(1, len(state) // 2 + 1)
            keys, counts = ([state.pop(f"{name}.{n}") for n in orders] for name in ("keys", "counts"))
            return cls(vocab_size, bos, eos, keys, counts)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(str(path), "keys and counts of n-grams", shorten(str(error), 200)) from None

    def fingerprint(self) -> str:
        """SHA-256 over its counts."""
        digest = hashlib.sha256()
        for level in (*self.keys, *self.counts):
            digest.update(level.tobytes())
        return digest.hexdigest()


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off counts of 0, 1, 2, 3 and more: ``D_i = i - (i + 1) Y n_(i + 1) / n_i`` (ibid., eq. 17)."""
    n = [int((counts == i).sum()) for i in range(5)]
    if not all(n[1:]):
        return np.array([0.0, 0.5, 0.75, 0.75])  # too few n-grams for an estimate, as of single characters
    y = n[1] / (n[1] + 2 * n[2])
    found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), i - 0.05) for i, d in enumerate(found, 1))])
