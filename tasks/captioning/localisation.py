"""The pointing game of captioning: whether the attention of each content word peaks on the object that it names."""

from __future__ import annotations

from typing import Any

from mmattn.data.image.shapes import COLORS, SHAPES, SIZES, plural
from mmattn.tasks.captioning.demo import NUMBERS, make
from mmattn.tasks.captioning.predict import CaptioningPrediction
from mmattn.tasks.common.pointing import PointingGame, in_parts

KINDS = {"size": SIZES, "colour": COLORS, "shape": (*SHAPES, *map(plural, SHAPES)), "number": NUMBERS}


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each kind of word in the captions of the built-in test split."""
    game = PointingGame("within half a cell")
    for part in in_parts(make("test", limit), 100):
        forced = [
            CaptioningPrediction(sample.id, sample.captions[n % len(sample.captions)], 0.0)
            for n, sample in enumerate(part)
        ]
        for n, (sample, found) in enumerate(zip(part, predictor.explain_written(part, forced), strict=True)):
            maps = dict(zip(found.spans, found.attention, strict=True))
            for span, boxes in sample.groundings[n % len(sample.captions)]:
                word = found.prediction.caption[slice(*span)]
                kind = next((kind for kind, words in KINDS.items() if word in words), None)
                if kind is not None:
                    game.add_peak(kind, maps[span], boxes)
    return game
