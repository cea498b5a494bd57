"""Pointing game of translation: whether the attention of each reference word peaks on its aligned source word."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.translation.demo import make, word_kind
from mmattn.tasks.translation.predict import TranslationPrediction


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Pointing game for each kind of word in the built-in test split, on the word-level maps that `explain` plots."""
    game = PointingGame("or an adjacent word")
    for part in in_parts(make("test", limit), 100):
        forced = [TranslationPrediction(sample.id, sample.source, sample.target, 0.0) for sample in part]
        for sample, found in zip(part, predictor.explain_written(part, forced), strict=True):
            peaks, words = found.weights.argmax(1).tolist(), sample.source.split()
            for target, source in sample.alignment:
                distance = abs(peaks[target] - source)
                game.add(word_kind(words[source]), distance == 0, distance <= 1)
    return game
