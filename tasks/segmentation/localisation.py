"""The pointing game of segmentation: whether the relevance for a class peaks on its objects."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import max_pool2d

from mmattn.tasks.common.pointing import PointingGame, in_parts
from mmattn.tasks.segmentation.demo import NAMES, THINGS, make


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Play the pointing game for each object class of the built-in test split; near is one pixel beside an object."""
    game = PointingGame("or a pixel beside it")
    for part in in_parts(make("test", limit), 50):
        batch = predictor.processor.collate(part)
        for name in THINGS:
            true = batch.labels == NAMES.index(name)  # (B, H, W)
            there = true.flatten(1).any(1)
            pixels, true = batch.pixel_values[there].to(predictor.device), true[there].float()
            _, relevance = predictor.relevance(pixels, [NAMES.index(name)] * len(pixels))
            peaks = relevance.flatten(1).argmax(1).cpu()
            near = max_pool2d(true[:, None], 3, 1, 1)[:, 0]
            hits = [m.flatten(1)[torch.arange(len(m)), peaks].sum() for m in (true, near)]
            game.add(name, hits[0], hits[1], len(pixels))
    return game
