"""The pointing game of classification: whether relevance peaks on the circle or on the square."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.classification.demo import make
from mmattn.tasks.common.pointing import PointingGame, in_parts


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each class of the built-in test split."""
    game = PointingGame("within half a cell")
    for part in in_parts(make("test", limit), 120):
        for sample, found in zip(part, predictor.explain_all(part), strict=True):
            game.add_peak(sample.labels[0], found.relevance, sample.regions)
    return game
