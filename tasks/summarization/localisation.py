"""Pointing game of summarization: whether each word of the reference summary peaks on its source."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.summarization.demo import make
from mmattn.tasks.summarization.predict import SummarizationPrediction


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Pointing game for each kind of word in the built-in test split, on the plotted maps, joined by words."""
    game = PointingGame("or eight characters off")
    for part in in_parts(make("test")[:limit], 50):
        forced = [SummarizationPrediction(sample.id, sample.target, 0.0) for sample in part]
        for sample, found in zip(part, predictor.explain_written(part, forced), strict=True):
            for word, places in sample.origins:
                peak, text = found.peak(word)[0], sample.target[slice(*word)]
                kind = "number" if text.isdigit() else "name" if text[0].isupper() else "thing"
                near = any(a - 8 <= peak < b + 8 for a, b in places)
                game.add(kind, any(a <= peak < b for a, b in places), near)
    return game
