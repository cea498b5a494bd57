"""The pointing game of text classification: whether the heaviest word is one of those that decide."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.text_classification.demo import make


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each verdict of the built-in test split.

    The heaviest word is that with the most relevance for the predicted verdict, of either sign. A near hit has one of
    the two heaviest among the deciding words.
    """
    game = PointingGame("by one of two words")
    for part in in_parts(make("test")[:limit], 64):
        for sample, found in zip(part, predictor.explain_all(part), strict=True):
            words = found.words
            best = words.weights.abs().topk(min(2, len(words.spans))).indices.tolist()
            hits = [any(a < words.spans[n][1] and b > words.spans[n][0] for a, b in sample.evidence) for n in best]
            game.add(sample.labels[0], hits[0], any(hits))
    return game
