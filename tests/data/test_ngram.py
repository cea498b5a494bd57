"""The n-gram language model against a naive Kneser-Ney implementation with dictionaries."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mmattn.data.text.ngram import Ids, InterpolatedNGram, NGram, load_lm
from tests.conftest import refused
from tests.data.files import bad_data

BOS, EOS, V = 2, 3, 9
IDS = Ids(V, BOS, EOS)


def texts(count: int, seed: int = 0) -> list[list[int]]:
    """Texts of a second-order Markov chain."""
    stream = random.Random(seed)
    made = []
    for _ in range(count):
        text: list[int] = []
        for _ in range(stream.randrange(0, 9)):
            last = (text[-2:] or [0])[0] + sum(text[-1:])
            text.append(4 + min(last * 7 % 5, stream.randrange(0, 5)))
        made.append(text)
    return made


def score(model: InterpolatedNGram | NGram, given: Sequence[Sequence[int]]) -> float:
    """The total log p of the texts."""
    return sum(sum(model.scores(text)) for text in given)


class Naive:
    """Interpolated Kneser-Ney with three discounts (Chen and Goodman 1999, section 3), as plain sums."""

    def __init__(self, given: Sequence[Sequence[int]], order: int) -> None:
        self.order = order
        grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        for text in given:
            line = (BOS, *text, EOS)
            for n in range(1, order + 1):
                grams[n].update(line[i : i + n] for i in range(len(line) - n + 1))
        self.counts = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        self.counts[order] = grams[order]
        for n in range(1, order):
            before: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in grams[n + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[n] = Counter({g: grams[n][g] if g[0] == BOS else len(before[g]) for g in grams[n]})
        self.counts[1][(BOS,)] = 0
        self.discounts = [self.discount(n) for n in range(order + 1)]

    def discount(self, n: int) -> list[float]:
        many = Counter(self.counts[n].values())
        if not all(many[i] for i in range(1, 5)):
            return [0.0, 0.5, 0.75, 0.75]
        y = many[1] / (many[1] + 2 * many[2])
        raw = [i - (i + 1) * y * many[i + 1] / many[i] for i in (1, 2, 3)]
        return [0.0, *(min(max(d, 0.05), i - 0.05) for i, d in zip((1, 2, 3), raw, strict=True))]

    def p(self, word: int, context: tuple[int, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        lower = self.p(word, context[1:]) if context else (1e-30 if word == BOS else 1 / (V - 1))
        n = len(context) + 1
        rows = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == context}
        total = sum(rows.values())
        if not total:
            return lower
        taken = {w: self.discounts[n][min(c, 3)] for w, c in rows.items()}
        left = sum(taken.values()) / total
        return (rows.get(word, 0) - taken.get(word, 0.0)) / total + left * lower


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [3, 200])
def test_equals_naive_kneser_ney(order: int, count: int) -> None:
    given = texts(count)
    model, naive = NGram.fit(given, order, IDS), Naive(given, order)
    contexts = [(BOS,), (BOS, 4), (BOS, 4, 6), (4, 5, 6), (8, 8, 8, 8), (7,), (BOS, 5, 8, 4, 4, 7), (1, 1)]
    for context in contexts:
        found = model.log_probs(context).exp()
        assert abs(float(found.sum()) - 1) < 1e-5
        for word in range(V):
            if word != BOS:
                assert abs(float(found[word]) - naive.p(word, context)) < 1e-6, (context, word)
    assert model.log_probs((BOS,))[BOS] < -20  # the start token is never predicted


def test_longer_contexts_lower_perplexity() -> None:
    unseen = texts(300, seed=1)
    tokens = sum(len(text) + 1 for text in unseen)
    losses = [-score(NGram.fit(texts(2000), order, IDS), unseen) / tokens for order in (1, 2, 3)]
    assert losses[0] > losses[1] + 0.02 > losses[2] + 0.04
    assert losses[0] < math.log(V)


def test_save_and_load(tmp_path: Path) -> None:
    model = NGram.fit(texts(100), 4, IDS)
    model.save(tmp_path / "n.safetensors")
    again = load_lm(tmp_path / "n.safetensors", IDS)
    assert again.fingerprint() == model.fingerprint() != NGram.fit(texts(101), 4, IDS).fingerprint()
    assert list(map(again.scores, texts(9, 5))) == list(map(model.scores, texts(9, 5)))


def test_interpolation_beats_either_model(tmp_path: Path) -> None:
    own, other = texts(60), [[4, 5, 6, 7, 8] * 3] * 40 + texts(400, seed=3)
    mix = InterpolatedNGram.fit(own, other, 3, IDS)
    assert 0.05 < mix.weight < 0.95
    context = (BOS, 4)
    by_hand = mix.weight * NGram.fit(own, 3, IDS).log_probs(context).exp()
    by_hand += (1 - mix.weight) * NGram.fit(other, 3, IDS).log_probs(context).exp()
    assert torch.allclose(mix.log_probs(context).exp(), by_hand, atol=1e-6)
    unseen = texts(300, seed=1)
    assert score(mix, unseen) > max(score(model, unseen) for model in (mix.own, mix.additional))
    mix.save(tmp_path / "n.safetensors")
    again = load_lm(tmp_path / "n.safetensors", IDS)
    assert again.fingerprint() == mix.fingerprint() != InterpolatedNGram(mix.own, mix.additional, 0.5).fingerprint()
    assert list(map(again.scores, unseen[:9])) == list(map(mix.scores, unseen[:9]))


def test_weight_maximizes_held_out_likelihood() -> None:
    own = texts(100)
    mix = InterpolatedNGram.fit(own, texts(400, seed=3), 3, IDS)
    rest = NGram.fit([text for n, text in enumerate(own) if n % 10], 3, IDS)
    found = {w: score(InterpolatedNGram(rest, mix.additional, w), own[::10]) for w in np.linspace(0, 1, 101)}
    assert abs(max(found, key=lambda w: found[w]) - mix.weight) <= 0.02
    assert InterpolatedNGram.fit([[4]], [[5]], 2, IDS).weight == 0.5  # no held-out texts to estimate it from
    refused("weight=2", InterpolatedNGram, rest, rest, 2.0)


@pytest.mark.parametrize("damage", ["missing", "cut", "no counts", "unsorted", "another vocabulary"])
def test_damaged_file_raises(tmp_path: Path, damage: str) -> None:
    path, model = tmp_path / "n.safetensors", NGram.fit(texts(100), 3, IDS)
    if damage == "unsorted":
        model.keys[1] = model.keys[1][::-1].copy()
    if damage == "no counts":
        save_file({"keys.1": np.arange(3), "keys.2": np.arange(3)}, path)
    elif damage != "missing":
        model.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    ids = Ids(5, BOS, EOS) if damage == "another vocabulary" else IDS
    bad_data(r"n\.safetensors", load_lm, path, ids)


def test_empty_training_data() -> None:
    for given, order, message in (([], 3, "0 texts"), ([[4]], 0, "order=0")):
        refused(message, NGram.fit, given, order, IDS)
    assert abs(float(NGram.fit([[]], 3, IDS).log_probs([BOS]).exp()[EOS]) - 0.78) < 0.1
