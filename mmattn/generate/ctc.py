"""Decoding and forced alignment of connectionist temporal classification (CTC; Graves et al. 2006)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def ctc_greedy(log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> list[list[int]]:
    """Best-path decoding: the most probable id of each frame, collapsed, without blanks (Graves et al. 2006, 3.2).

    Args:
        log_p: (B, S, V), log-probabilities or logits.
        mask: (B, S) bool, True = a real frame.
        blank: Id of the blank.

    Returns:
        The ids of each row.

    >>> ctc_greedy(torch.eye(4)[torch.tensor([[0, 2, 2, 0, 2, 3]])])
    [[2, 2, 3]]
    """
    best = log_p.argmax(-1)  # (B, S)
    if mask is not None:
        best = best.masked_fill(~mask, blank)
    new = best != blank
    new[:, 1:] &= best[:, 1:] != best[:, :-1]
    return [row[keep].tolist() for row, keep in zip(best, new, strict=True)]


class LanguageModel(Protocol):
    """Protocol of a language model over ids, such as an n-gram model."""

    order: int  # the context is the last order - 1 ids
    bos: int  # before the first id of a text
    eos: int  # after the last id of a text

    def log_probs(self, context: Sequence[int]) -> Tensor:
        """Returns log p of each next id, (V,); additional ids of the CTC output are never predicted."""
        ...


@dataclass(frozen=True)
class Fusion:
    """Shallow fusion: ``log p_ctc(text) + weight log p_lm(text) + bonus |text|`` (Hannun et al. 2014).

    Args:
        model: Language model.
        weight: Weight of its log-probability.
        bonus: Bonus per id, which compensates the language model's preference for short texts.
    """

    model: LanguageModel
    weight: float = 0.5
    bonus: float = 0.0


def ctc_prefix_beam(
    log_p: Tensor, mask: Tensor | None, beams: int, blank: int = 0, fusion: Fusion | None = None
) -> list[tuple[list[int], float]]:
    """Returns the best hypothesis of CTC prefix beam search for each row; see `ctc_prefix_beams`.

    Returns:
        The ids of each row, and their score: log p, plus the language model's terms.

    >>> log_p = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()  # the best path is empty: 0.36 against 0.64
    >>> ctc_greedy(log_p), ctc_prefix_beam(log_p, None, 4)[0][0]
    ([[]], [1])
    """
    return [found[0] for found in ctc_prefix_beams(log_p, mask, beams, blank, fusion)]


def ctc_prefix_beams(
    log_p: Tensor, mask: Tensor | None, beams: int, blank: int = 0, fusion: Fusion | None = None
) -> list[list[tuple[list[int], float]]]:
    """CTC prefix beam search, which sums over the alignments of each prefix (Hannun et al. 2014, algorithm 1).

    Each prefix has two sums, over alignments that end in a blank and in its last id; the contributions of the same
    prefix and of its parent are added. Pruning follows after all extensions of a frame: with as many beams as there
    are prefixes the sums are exact.

    Args:
        log_p: (B, S, V), log-probabilities.
        mask: (B, S) bool, True = a real frame.
        beams: K, the number of prefixes kept at each frame.
        blank: Id of the blank.
        fusion: Shallow fusion with a language model, applied in pruning and in the final ranking.

    Returns:
        For each row up to K pairs (ids, score), best first; the score is log p, plus the language model's terms.

    Raises:
        ValueError: beams is below 1.
    """
    if beams < 1:
        raise ValueError(f"beams: expected at least 1, found {beams}")
    (B, S, V), device = log_p.shape, log_p.device
    log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
    prefixes = _Prefixes(B, beams)
    added = log_p.new_zeros(B, beams)  # the language model's terms of each prefix
    ends_blank, ends_id = (log_p.new_full((B, beams), -math.inf) for _ in range(2))  # log p of both kinds of alignment
    ends_blank[:, 0] = 0.0
    last, parents = torch.full((2, B, beams), -1, device=device)  # the last id, and the beam of the parent prefix
    for t in range(S):
        frame = log_p[:, t]  # (B, V)
        total = torch.logaddexp(ends_blank, ends_id)  # (B, K)
        repeated = frame.gather(1, last.clamp_min(0))  # (B, K)
        extended = total[:, :, None] + frame[:, None, :]  # (B, K, V): each prefix with one more id
        # A repeated id extends a prefix only after a blank.
        again = torch.where(last >= 0, ends_blank + repeated, extended[:, :, 0])
        extended.scatter_(2, last.clamp_min(0)[:, :, None], again[:, :, None])
        extended[:, :, blank] = -math.inf
        # The extension of one beam may be the prefix of another: its mass is moved there.
        place = (parents.clamp_min(0) * V + last.clamp_min(0)).masked_fill(parents < 0, blank)  # (B, K), blank: none
        joining = extended.flatten(1).gather(1, place)
        extended.view(B, -1).scatter_(1, place, -math.inf)
        stay_blank, stay_id = total + frame[:, blank, None], torch.logaddexp(ends_id + repeated, joining)
        candidates = torch.cat([torch.logaddexp(stay_blank, stay_id), extended.flatten(1)], dim=1)  # (B, K + K V)
        fused = None
        if fusion is not None:
            following = added[:, :, None] + prefixes.following(fusion, V).to(log_p)  # (B, K, V)
            fused = torch.cat([added, following.flatten(1)], dim=1)  # (B, K + K V)
        scores, chosen = (candidates if fused is None else candidates + fused).topk(beams, dim=1)
        stays, source = chosen < beams, torch.where(chosen < beams, chosen, (chosen - beams) // V)
        token = torch.where(stays, last.gather(1, source), (chosen - beams) % V)
        new_blank = stay_blank.gather(1, source).masked_fill(~stays, -math.inf)
        new_id = torch.where(stays, stay_id.gather(1, source), candidates.gather(1, chosen))
        real = None if mask is None else mask[:, t]
        found = prefixes.advance(source, token, stays, scores, real).to(device)
        new = (new_blank, new_id, token, found, added if fused is None else fused.gather(1, chosen))
        if real is not None:
            old = (ends_blank, ends_id, last, parents, added)
            new = tuple(torch.where(real[:, None], a, b) for a, b in zip(new, old, strict=True))  # type: ignore[assignment]
        ends_blank, ends_id, last, parents, added = new
    if fusion is not None:
        added = (
            added + prefixes.following(fusion, V)[:, :, fusion.model.eos].to(log_p) - fusion.bonus
        )  # no bonus: the end is no id
    scores, order = (torch.logaddexp(ends_blank, ends_id) + added).sort(dim=1, descending=True, stable=True)
    rows = zip(scores.tolist(), order.tolist(), strict=True)
    return [
        [(prefixes.ids(b, k), score) for score, k in zip(*row, strict=True) if score > -math.inf or k == row[1][0]]
        for b, row in enumerate(rows)
    ]


class _Prefixes:
    """The prefixes of all rows as trees that number each prefix, so that beams with equal prefixes are found."""

    def __init__(self, rows: int, beams: int) -> None:
        self.numbers: list[dict[tuple[int, int], int]] = [{} for _ in range(rows)]  # (prefix, id) -> prefix
        self.nodes = [[(-1, -1)] for _ in range(rows)]  # parent prefix and last id, by number; 0 = the empty prefix
        self.held = [[0] + [-1] * (beams - 1) for _ in range(rows)]  # by beam, -1 = none

    def following(self, fusion: Fusion, vocab_size: int) -> Tensor:
        """Returns the language model's terms for each id after each beam's prefix: (B, K, V)."""
        model = fusion.model
        rows = [
            torch.stack([model.log_probs(self._context(row, number, model)) for number in held])
            for row, held in enumerate(self.held)
        ]
        found = torch.stack(rows) * fusion.weight + fusion.bonus  # (B, K, its V)
        unknown = found.new_full((*found.shape[:2], vocab_size - found.shape[2]), -math.inf)
        return torch.cat([found, unknown], -1)

    def _context(self, row: int, number: int, model: LanguageModel) -> list[int]:
        """Returns the model's context at a prefix: its last ids, preceded by bos at the beginning."""
        nodes, found = self.nodes[row], list[int]()
        while number > 0 and len(found) < model.order - 1:
            number, token = nodes[number]
            found.append(token)
        return [*([model.bos] if number <= 0 and len(found) < model.order - 1 else []), *found[::-1]]

    def advance(self, source: Tensor, token: Tensor, stays: Tensor, scores: Tensor, real: Tensor | None) -> Tensor:
        """Sets each beam to the prefix of beam source (B, K), extended by token unless it stays.

        Returns:
            (B, K) long: the beam of the parent prefix, -1 if none has it. Rows that are not real are unchanged.
        """
        found = torch.full(source.shape, -1)
        possible = (scores > -math.inf).tolist()
        given = zip(source.tolist(), token.tolist(), stays.tolist(), possible, strict=True)
        for b, row in enumerate(given):
            if real is not None and not real[b]:
                continue
            numbers, nodes, before, held = self.numbers[b], self.nodes[b], self.held[b], []
            for k, new, stay, exists in zip(*row, strict=True):
                number = before[k]
                if not exists:
                    number = -1
                elif not stay:
                    key = (number, new)
                    number = numbers.setdefault(key, len(nodes))
                    if number == len(nodes):
                        nodes.append(key)
                held.append(number)
            where = {number: k for k, number in enumerate(held) if number >= 0}
            self.held[b] = held
            found[b] = torch.tensor([where.get(nodes[number][0], -1) if number > 0 else -1 for number in held])
        return found

    def ids(self, row: int, beam: int) -> list[int]:
        """Returns the prefix of a beam."""
        found, number = [], self.held[row][beam]
        while number > 0:
            number, token = self.nodes[row][number]
            found.append(token)
        return found[::-1]


def ctc_align(log_p: Tensor, ids: list[int], blank: int = 0) -> list[tuple[int, int]]:
    """Forced alignment: the most probable alignment of ids to frames, by the Viterbi algorithm.

    Over the states ``blank, y_1, blank, y_2, .., blank``, a path stays, advances by one, or skips a blank between two
    different ids (Graves et al. 2006, section 4.1, with a maximum in place of the sum).

    Args:
        log_p: (S, V), log-probabilities.
        ids: The transcript's ids, without blanks.
        blank: Id of the blank.

    Returns:
        The first and the last frame of each id, both inclusive.

    Raises:
        ValueError: Too few frames for the ids (a repeated id needs a blank in between), or a blank among the ids.

    >>> ctc_align(torch.eye(4)[torch.tensor([0, 2, 2, 0, 2, 3])].mul(9).log_softmax(-1), [2, 2, 3])
    [(1, 2), (4, 4), (5, 5)]
    """
    S, n = len(log_p), len(ids)
    repeats = sum(a == b for a, b in itertools.pairwise(ids))
    if blank in ids:
        raise ValueError(f"expected ids without the blank, {blank}, found it at position {ids.index(blank)}")
    if n + repeats > S:
        raise ValueError(f"{S} frames have no room for {n} ids with {repeats} repetitions, which need a blank between")
    if not n:
        return []
    log_p = log_p.detach().to(torch.promote_types(log_p.dtype, torch.float32)).cpu()
    labels = torch.full((2 * n + 1,), blank)
    labels[1::2] = torch.tensor(ids)
    emitted = log_p[:, labels]  # (S, N), N = 2 n + 1
    leaps = torch.zeros(len(labels), dtype=torch.bool)
    leaps[3::2] = labels[3::2] != labels[1:-2:2]
    score = torch.full((len(labels),), -math.inf, dtype=log_p.dtype)
    score[:2] = emitted[0, :2]
    came = torch.zeros(S, len(labels), dtype=torch.long)  # by how many states each path advanced
    for t in range(1, S):
        one = torch.cat([score.new_full((1,), -math.inf), score[:-1]])
        two = torch.cat([score.new_full((2,), -math.inf), score[:-2]]).masked_fill(~leaps, -math.inf)
        score, came[t] = torch.stack([score, one, two]).max(0)
        score = score + emitted[t]
    state = len(labels) - 1 if score[-1] > score[-2] else len(labels) - 2
    steps, path = came.tolist(), [state]
    for t in range(S - 1, 0, -1):
        state -= steps[t][state]
        path.append(state)
    path.reverse()
    spans: list[tuple[int, int]] = []
    for t, state in enumerate(path):
        if state % 2 and (t == 0 or path[t - 1] != state):
            spans.append((t, t))
        elif state % 2:
            spans[-1] = (spans[-1][0], t)
    return spans
