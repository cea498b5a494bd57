"""Connectionist temporal classification (Graves et al. 2006): what its frames say, and when they say it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def ctc_greedy(log_p: Tensor, mask: Tensor | None = None, blank: int = 0) -> list[list[int]]:
    """The likeliest id of each frame, repetitions once, without blanks (Graves et al. 2006, section 3.2).

    Args:
        log_p: (B, S, V), log-probabilities or logits.
        mask: (B, S) bool, True = a real frame.
        blank: The id that says nothing.

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
    """What knows how likely ids follow others, such as counts of n-grams."""

    order: int  # it looks at so many ids less one
    bos: int  # before the first id of a text
    eos: int  # behind its last

    def log_probs(self, context: Sequence[int]) -> Tensor:
        """log p of each next id, (V,); where CTC has more ids, the last ones are never written."""
        ...


@dataclass(frozen=True)
class Fusion:
    """What a search adds to CTC's ``log p`` of a text: ``weight log p_lm(text) + bonus |text|`` (Hannun et al. 2014).

    Args:
        model: Tells how likely a text is to be written at all.
        weight: Of its log p.
        bonus: For each id, since every id makes a text less likely to the model.
    """

    model: LanguageModel
    weight: float = 0.5
    bonus: float = 0.0


def ctc_prefix_beam(
    log_p: Tensor, mask: Tensor | None, beams: int, blank: int = 0, fusion: Fusion | None = None
) -> list[tuple[list[int], float]]:
    """The likeliest ids of each row, summed over their alignments, among those that a beam search keeps.

    See `ctc_prefix_beams`, which gives them all.

    Returns:
        The ids of each row, and their log p; with what a language model adds.

    >>> log_p = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()  # the likeliest path says nothing: 0.36 against 0.64
    >>> ctc_greedy(log_p), ctc_prefix_beam(log_p, None, 4)[0][0]
    ([[]], [1])
    """
    return [found[0] for found in ctc_prefix_beams(log_p, mask, beams, blank, fusion)]


def ctc_prefix_beams(
    log_p: Tensor, mask: Tensor | None, beams: int, blank: int = 0, fusion: Fusion | None = None
) -> list[list[tuple[list[int], float]]]:
    """Beam search over prefixes, each with the sum of all its alignments (Hannun et al. 2014, algorithm 1).

    A prefix keeps two sums, of the alignments that end in a blank and of those that end in its last id; what reaches it
    by staying and what reaches it from a shorter prefix are added. No prefix is left out before the frame's best are
    known: with as many beams as there are prefixes the sums are exact.

    Args:
        log_p: (B, S, V), log-probabilities.
        mask: (B, S) bool, True = a real frame.
        beams: K, prefixes kept at each frame.
        blank: The id that says nothing.
        fusion: A language model that has a say in what is kept, and at last in which is best.

    Returns:
        Of each row, up to K of (ids, log p), best first; with a language model, log p and what it adds.

    Raises:
        ValueError: Fewer beams than one.
    """
    if beams < 1:
        raise ValueError(f"beams={beams}: a search keeps at least 1")
    (B, S, V), device = log_p.shape, log_p.device
    log_p = log_p.to(torch.promote_types(log_p.dtype, torch.float32))
    prefixes = _Prefixes(B, beams)
    added = log_p.new_zeros(B, beams)  # what the language model says of each prefix
    ends_blank, ends_id = (log_p.new_full((B, beams), -math.inf) for _ in range(2))  # log p of either kind
    ends_blank[:, 0] = 0.0
    last, parents = torch.full((2, B, beams), -1, device=device)  # the last id, the beam that holds the prefix before
    for t in range(S):
        frame = log_p[:, t]  # (B, V)
        total = torch.logaddexp(ends_blank, ends_id)  # (B, K)
        repeated = frame.gather(1, last.clamp_min(0))  # (B, K)
        going_on = total[:, :, None] + frame[:, None, :]  # (B, K, V): a prefix and one id more
        # The same id once more is one id more only behind a blank.
        again = torch.where(last >= 0, ends_blank + repeated, going_on[:, :, 0])
        going_on.scatter_(2, last.clamp_min(0)[:, :, None], again[:, :, None])
        going_on[:, :, blank] = -math.inf
        # What a beam reaches by going on may be held by another already.
        place = (parents.clamp_min(0) * V + last.clamp_min(0)).masked_fill(parents < 0, blank)  # (B, K), blank: nothing
        joining = going_on.flatten(1).gather(1, place)
        going_on.view(B, -1).scatter_(1, place, -math.inf)
        stay_blank, stay_id = total + frame[:, blank, None], torch.logaddexp(ends_id + repeated, joining)
        candidates = torch.cat([torch.logaddexp(stay_blank, stay_id), going_on.flatten(1)], dim=1)  # (B, K + K V)
        offers = None
        if fusion is not None:
            further = added[:, :, None] + prefixes.following(fusion, V).to(log_p)  # (B, K, V)
            offers = torch.cat([added, further.flatten(1)], dim=1)  # (B, K + K V)
        scores, chosen = (candidates if offers is None else candidates + offers).topk(beams, dim=1)
        stays, source = chosen < beams, torch.where(chosen < beams, chosen, (chosen - beams) // V)
        token = torch.where(stays, last.gather(1, source), (chosen - beams) % V)
        new_blank = stay_blank.gather(1, source).masked_fill(~stays, -math.inf)
        new_id = torch.where(stays, stay_id.gather(1, source), candidates.gather(1, chosen))
        real = None if mask is None else mask[:, t]
        found = prefixes.advance(source, token, stays, scores, real).to(device)
        new = (new_blank, new_id, token, found, added if offers is None else offers.gather(1, chosen))
        if real is not None:
            old = (ends_blank, ends_id, last, parents, added)
            new = tuple(torch.where(real[:, None], a, b) for a, b in zip(new, old, strict=True))  # type: ignore[assignment]
        ends_blank, ends_id, last, parents, added = new
    if fusion is not None:
        added = added + prefixes.following(fusion, V)[:, :, fusion.model.eos].to(log_p) - fusion.bonus  # no id ends it
    scores, order = (torch.logaddexp(ends_blank, ends_id) + added).sort(dim=1, descending=True, stable=True)
    rows = zip(scores.tolist(), order.tolist(), strict=True)
    return [
        [(prefixes.ids(b, k), score) for score, k in zip(*row, strict=True) if score > -math.inf or k == row[1][0]]
        for b, row in enumerate(rows)
    ]


class _Prefixes:
    """The prefixes of all rows as trees, in which each has one number: so beams that hold the same one are found."""

    def __init__(self, rows: int, beams: int) -> None:
        self.numbers: list[dict[tuple[int, int], int]] = [{} for _ in range(rows)]  # (prefix, id) -> prefix
        self.nodes = [[(-1, -1)] for _ in range(rows)]  # the prefix before and the last id, by number; 0 = empty
        self.held = [[0] + [-1] * (beams - 1) for _ in range(rows)]  # by beam, -1 = none

    def following(self, fusion: Fusion, vocab_size: int) -> Tensor:
        """What a language model adds for each id behind each beam's prefix: (B, K, V)."""
        model = fusion.model
        rows = [
            torch.stack([model.log_probs(self._context(row, number, model)) for number in held])
            for row, held in enumerate(self.held)
        ]
        found = torch.stack(rows) * fusion.weight + fusion.bonus  # (B, K, its V)
        unknown = found.new_full((*found.shape[:2], vocab_size - found.shape[2]), -math.inf)
        return torch.cat([found, unknown], -1)

    def _context(self, row: int, number: int, model: LanguageModel) -> list[int]:
        """The last ids of a prefix, as many as the model looks at; before the first one its beginning."""
        nodes, found = self.nodes[row], list[int]()
        while number > 0 and len(found) < model.order - 1:
            number, token = nodes[number]
            found.append(token)
        return [*([model.bos] if number <= 0 and len(found) < model.order - 1 else []), *found[::-1]]

    def advance(self, source: Tensor, token: Tensor, stays: Tensor, scores: Tensor, real: Tensor | None) -> Tensor:
        """What each beam holds now: what source (B, K) held, and token behind it unless it stays.

        Returns:
            (B, K) long: the beam that holds the prefix before, -1 where none does. Rows that are not real stay.
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
        """The prefix that a beam holds."""
        found, number = [], self.held[row][beam]
        while number > 0:
            number, token = self.nodes[row][number]
            found.append(token)
        return found[::-1]


def ctc_align(log_p: Tensor, ids: list[int], blank: int = 0) -> list[tuple[int, int]]:
    """When each id is said: the likeliest alignment of ids to frames, by the Viterbi recursion.

    Over the states ``blank, y_1, blank, y_2, .., blank``: a path stays, goes on by one, or leaps over a blank between
    two ids that differ (Graves et al. 2006, section 4.1, with a maximum for the sum).

    Args:
        log_p: (S, V), log-probabilities.
        ids: What is said, without blanks.
        blank: The id that says nothing.

    Returns:
        The first and the last frame of each id, both counted in.

    Raises:
        ValueError: More ids than the frames have room for (a repeated id needs a blank between), or a blank among them.

    >>> ctc_align(torch.eye(4)[torch.tensor([0, 2, 2, 0, 2, 3])].mul(9).log_softmax(-1), [2, 2, 3])
    [(1, 2), (4, 4), (5, 5)]
    """
    S, n = len(log_p), len(ids)
    repeats = sum(a == b for a, b in itertools.pairwise(ids))
    if blank in ids:
        raise ValueError(f"ids hold the blank, {blank}, at place {ids.index(blank)}: give what is said alone")
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
    came = torch.zeros(S, len(labels), dtype=torch.long)  # by how many states each path went on
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
