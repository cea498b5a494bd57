"""The pointing game of VQA: whether a question's attention peaks in the region that determines its answer."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.vqa.demo import make


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each question family of the built-in test split."""
    game = PointingGame("within half a cell")
    for part in in_parts([sample for sample in make("test") if sample.regions][:limit], 360):
        for sample, found in zip(part, predictor.explain_all(part), strict=True):
            game.add_peak(sample.question_type, found.attention, sample.regions)
    return game
