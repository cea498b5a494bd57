"""The pointing game of video classification: whether the heaviest frame lies in the event, and its peak on the actors.

In space, the peak is that of the heaviest frame among those of the event.
"""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.video.demo import make


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game in time and in space on the built-in test split."""
    game = PointingGame("within half a cell")
    for part in in_parts(make("test", limit), 100):
        for sample, found in zip(part, predictor.explain_all(part), strict=True):
            shown = [[box for begin, end, box in sample.regions if begin <= time < end] for time in found.times]
            event = [bool(boxes) for boxes in shown]
            heaviest = int(found.weights.argmax())
            game.add("time", event[heaviest], event[heaviest])
            weights = [float(weight) if inside else -1.0 for weight, inside in zip(found.weights, event, strict=True)]
            place = max(range(len(weights)), key=weights.__getitem__)
            game.add_peak("space", found.maps[place], shown[place])
    return game
