"""The pointing game of question answering: whether the heaviest word lies in a supporting fact."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.qa.demo import make


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each kind of question of the built-in test split that has an answer.

    A near hit has one of the three heaviest words in a supporting fact.
    """
    game = PointingGame("by one of three words")
    for part in in_parts([sample for sample in make("test") if sample.evidence][:limit], 64):
        for sample, found in zip(part, predictor.explain_all(part), strict=True):
            best = found.words.weights.topk(min(3, len(found.words.spans))).indices.tolist()
            hits = [_inside(found.words.spans[index], sample.evidence) for index in best]
            game.add(sample.kind.split(" to ")[1], hits[0], any(hits))
    return game


def _inside(word: tuple[int, int], facts: list[tuple[int, int]]) -> bool:
    return any(start <= word[0] and word[1] <= end for start, end in facts)
