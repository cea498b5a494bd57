"""The pointing game of detection: whether the position that a query reads most lies in the object that it found."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.detection.demo import SIDE, make
from mmattn.tasks.detection.matching import match

NEAR = 1.0  # pixels from a box that still count as near


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each box of the built-in test split that is right at an IoU of 0.5."""
    game = PointingGame(f"or {NEAR:g} pixel of {SIDE} beside it")
    least = predictor.processor.thresholds
    for part in in_parts(make("test", limit), 50):
        batch = predictor.processor.collate(part).to(predictor.device)
        for (found, readings), truth in zip(predictor.read(batch), batch.truths, strict=True):
            kept = found.scores >= found.scores.new_tensor(least)[found.labels]
            objects = match(found._replace(boxes_xyxy=found.boxes_xyxy.cpu()), truth)[0]
            for k in (kept.cpu() & (objects >= 0)).nonzero()[:, 0].tolist():
                x, y = readings[k].peak()
                x1, y1, x2, y2 = truth.boxes_xyxy[int(objects[k])].tolist()
                hits = [x1 - near <= x <= x2 + near and y1 - near <= y <= y2 + near for near in (0.0, NEAR)]
                game.add(predictor.processor.labels[int(found.labels[k])], *hits)
    return game
