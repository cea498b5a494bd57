"""N-gram language models over ids with interpolated Kneser-Ney smoothing, e.g. for shallow fusion with CTC."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError, shorten

KEPT = 1 << 22  # numbers in the cache of log-probabilities: 16 MB
HELD_OUT = 10  # every tenth text is held out to estimate a mixture's weight
ROUNDS = 50  # iterations of EM


class Ids(NamedTuple):
    """The vocabulary of a language model."""

    vocab_size: int  # V
    bos: int  # before a text; never predicted
    eos: int  # after a text


class NGramModel(ABC):
    """Base class of n-gram models, usable in CTC beam search (`mmattn.generate.ctc.LanguageModel`).

    Args:
        ids: The vocabulary.
        order: Length n of the longest n-gram, in ids.
    """

    def __init__(self, ids: Ids, order: int) -> None:
        self.ids, self.order = ids, order
        self.vocab_size, self.bos, self.eos = ids
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}  # without the cache, for loader processes

    def log_probs(self, context: Sequence[int]) -> Tensor:
        """Returns log p of each next id, (V,) float32, given the last n - 1 ids of a context that begins with bos."""
        key = tuple(context[max(0, len(context) - self.order + 1) :])
        found = self._known.get(key)
        if found is None:
            if len(self._known) * self.vocab_size >= KEPT:
                self._known.clear()
            found = self._known[key] = self._log_probs(key)
        return found

    @abstractmethod
    def _log_probs(self, context: tuple[int, ...]) -> Tensor:
        """Returns `log_probs` for a context of at most n - 1 ids, (V,)."""

    def scores(self, ids: Sequence[int]) -> list[float]:
        """Returns log p of each id of a text, and of eos."""
        text = [self.bos, *ids, self.eos]
        return [float(self.log_probs(text[:n])[text[n]]) for n in range(1, len(text))]

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Returns the model's arrays by name."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, np.ndarray], ids: Ids) -> Self:
        """Makes the model from the arrays of `state`."""

    def save(self, path: str | Path) -> None:
        """Writes a file that `load_lm` reads."""
        from safetensors.numpy import save_file

        save_file(self.state(), path)

    def fingerprint(self) -> str:
        """Returns the SHA-256 over the model's arrays."""
        digest = hashlib.sha256()
        for value in self.state().values():
            digest.update(value.tobytes())
        return digest.hexdigest()


class NGram(NGramModel):
    """An n-gram model with modified Kneser-Ney smoothing (Chen and Goodman 1999, section 3).

    ``p(w | c) = max(a(c w) - D, 0) / a(c .) + g(c) p(w | c')``, where c' is c without its first id and g the remaining
    mass. For the longest n-grams a is the number of occurrences, for shorter ones the number of distinct ids that
    precede them; D depends on whether a is 1, 2 or more. The recursion ends in the uniform distribution.

    Args:
        ids: The vocabulary.
        keys: Sorted keys of each order 1 .. n: (index of the n-gram's first n - 1 ids) V + its last id.
        counts: Their counts a.

    Raises:
        ValueError: Inconsistent keys and counts.

    >>> model = NGram.fit([[4, 5], [4, 5, 4, 6]], 3, Ids(vocab_size=7, bos=2, eos=3))
    >>> p = model.log_probs([2, 4]).exp()
    >>> int(p.argmax()), round(float(p.sum()), 6)
    (5, 1.0)
    """

    def __init__(self, ids: Ids, keys: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> None:
        super().__init__(ids, len(keys))
        self.keys, self.counts = (
            [np.ascontiguousarray(level, dtype=np.int64) for level in levels] for levels in (keys, counts)
        )
        if not self.keys or [len(k) for k in self.keys] != [len(c) for c in self.counts]:
            raise ValueError("expected keys and counts of as many n-grams, of at least one order")
        sizes = [1, *map(len, self.keys)]
        for n, level in enumerate(self.keys):
            inside = not len(level) or (level[0] >= 0 and level[-1] < sizes[n] * self.vocab_size)
            if not inside or (np.diff(level) <= 0).any():
                raise ValueError(f"the {n + 1}-grams are not sorted, or do not fit those before them")
        # The continuations of an n-gram are adjacent in the next order.
        self.starts = [
            np.searchsorted(level, np.arange(size + 1) * self.vocab_size)
            for level, size in zip(self.keys, sizes, strict=False)
        ]
        self.discounts = [_discounts(level) for level in self.counts]

    @classmethod
    def fit(cls, texts: Iterable[Sequence[int]], order: int, ids: Ids) -> NGram:
        """Counts the n-grams, up to length `order`, of texts given by their ids without bos and eos.

        Raises:
            ValueError: An order below 1, or no text.
        """
        lines = [np.asarray([ids.bos, *text, ids.eos], dtype=np.int64) for text in texts]
        if order < 1 or not lines:
            raise ValueError(f"order={order}, {len(lines)} texts: expected at least 1 of both")
        all_ids = np.concatenate(lines)
        left = np.concatenate([np.arange(len(line), 0, -1) for line in lines])  # ids to the end of the text
        begins = np.concatenate([np.arange(len(line)) == 0 for line in lines])
        keys, counts, opens = list[np.ndarray](), list[np.ndarray](), begins
        place = np.zeros(len(all_ids), dtype=np.int64)  # index of the n-gram that begins at each id
        for n in range(1, order + 1):
            at = np.flatnonzero(left >= n)  # positions at which an n-gram begins
            grams = place[at] * ids.vocab_size + all_ids[at + n - 1]
            found, first, which, count = np.unique(grams, return_index=True, return_inverse=True, return_counts=True)
            if n > 1:  # counts of the order below: distinct preceding ids; a text's beginning has none
                behind = np.bincount(place[at[first] + 1], minlength=len(counts[-1]))
                counts[-1] = np.where(opens, counts[-1], behind)
            place = np.full(len(all_ids), -1, dtype=np.int64)
            place[at] = which
            opens = begins[at[first]]
            keys.append(found)
            counts.append(count)
        counts[0] = np.where(keys[0] == ids.bos, 0, counts[0])
        return cls(ids, keys, counts)

    def _log_probs(self, context: tuple[int, ...]) -> Tensor:
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
                break  # it has no continuation
            taken = self.discounts[n][np.minimum(counts, 3)]
            p *= taken.sum() / total
            p[self.keys[n][low:high] - node * self.vocab_size] += (counts - taken) / total
        return torch.from_numpy(np.log(p)).float()

    def _find(self, ids: Sequence[int]) -> int | None:
        """Returns the index of an n-gram among those of its order."""
        node = 0
        for n, token in enumerate(ids):
            key = node * self.vocab_size + token
            low, high = self.starts[n][node], self.starts[n][node + 1]
            node = low + int(np.searchsorted(self.keys[n][low:high], key))
            if node == high or self.keys[n][node] != key:
                return None
        return node

    def state(self) -> dict[str, np.ndarray]:
        counts = {f"counts.{n}": level.astype(np.int32) for n, level in enumerate(self.counts, 1)}
        return {f"keys.{n}": level for n, level in enumerate(self.keys, 1)} | counts

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], ids: Ids) -> Self:
        orders = range(1, len(state) // 2 + 1)
        return cls(ids, *([state[f"{name}.{n}"] for n in orders] for name in ("keys", "counts")))


class InterpolatedNGram(NGramModel):
    """Linear interpolation of two n-gram models (Jelinek and Mercer 1980).

    ``p(w | c) = weight p_own(w | c) + (1 - weight) p_additional(w | c)``. Joint counts would be dominated by the
    additional texts, which are often far more numerous than the task's.

    Args:
        own: Model of the task's texts.
        additional: Model of additional texts, over the same ids.
        weight: Weight of the first model, 0 to 1.

    Raises:
        ValueError: A weight outside 0 to 1, or models of different ids.
    """

    def __init__(self, own: NGram, additional: NGram, weight: float) -> None:
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight={weight}: expected 0 to 1")
        if own.ids != additional.ids:
            raise ValueError(f"expected models of the same ids, found {own.ids} and {additional.ids}")
        super().__init__(own.ids, max(own.order, additional.order))
        self.own, self.additional, self.weight = own, additional, weight

    @classmethod
    def fit(
        cls, texts: Sequence[Sequence[int]], additional: Iterable[Sequence[int]], order: int, ids: Ids
    ) -> InterpolatedNGram:
        """Counts the task's texts and additional ones, see `NGram.fit`.

        The weight maximizes the likelihood (by EM) of every tenth of the task's texts, held out for this estimate.

        Raises:
            ValueError: As in `NGram.fit`.
        """
        other, weight = NGram.fit(additional, order, ids), 0.5
        rest = [text for n, text in enumerate(texts) if n % HELD_OUT]
        if rest:
            models = (NGram.fit(rest, order, ids), other)
            p = np.exp([[x for text in texts[::HELD_OUT] for x in model.scores(text)] for model in models])  # (2, ids)
            for _ in range(ROUNDS):
                weight = float((weight * p[0] / (weight * p[0] + (1 - weight) * p[1])).mean())
        return cls(NGram.fit(texts, order, ids), other, weight)

    def _log_probs(self, context: tuple[int, ...]) -> Tensor:
        own, additional = (model.log_probs(context).exp() for model in (self.own, self.additional))
        return (self.weight * own + (1.0 - self.weight) * additional).log()

    def state(self) -> dict[str, np.ndarray]:
        parts = {"own": self.own, "further": self.additional}
        found = {f"{part}.{name}": value for part, model in parts.items() for name, value in model.state().items()}
        return found | {"weight": np.array([self.weight])}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], ids: Ids) -> Self:
        models = []
        for part in ("own.", "further."):
            names = [name for name in state if name.startswith(part)]
            models.append(NGram.from_state({name.removeprefix(part): state[name] for name in names}, ids))
        return cls(models[0], models[1], float(state["weight"][0]))


def load_lm(path: str | Path, ids: Ids) -> NGramModel:
    """Reads a model of these ids that `save` wrote.

    Raises:
        DataError: The file is missing, damaged, or of another vocabulary.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        state = load_file(path)
        kind: type[NGramModel] = InterpolatedNGram if "weight" in state else NGram
        return kind.from_state(state, ids)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise DataError(str(path), "keys and counts of n-grams", shorten(str(error), 200)) from None


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns the discounts of counts 0, 1, 2 and 3+: ``D_i = i - (i + 1) Y n_(i + 1) / n_i`` (ibid., eq. 17)."""
    n = [int((counts == i).sum()) for i in range(5)]
    if not all(n[1:]):
        return np.array([0.0, 0.5, 0.75, 0.75])  # too few n-grams for an estimate, e.g. unigrams of characters
    y = n[1] / (n[1] + 2 * n[2])
    found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), i - 0.05) for i, d in enumerate(found, 1))])
