"""Pointing game of text generation: whether what a token was read from is what determines it."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.pointing import PointingGame
from mmattn.tasks.text_generation.demo import make, tokens_of
from mmattn.tasks.text_generation.explain import token_relevance


def localisation(predictor: Any, limit: int | None = None) -> PointingGame:
    """Pointing game for verbs, closing brackets and digits of sums in the built-in test split.

    A hit is a peak on one of the tokens that determine the token: the subject, the opening bracket, the digits that are
    added. Tokens of punctuation and "the" are not counted, as in the pictures of words.
    """
    game = PointingGame("or an adjacent token")
    tokenizer, before = predictor.processor.tokenizer, predictor.processor.start_ids
    for sample in make("test", 60 if limit is None else limit):
        ids, tokens = tokenizer.encode(sample.whole), tokens_of(sample.whole)
        if len(ids) != len(tokens):
            continue  # of another tokenizer
        for origin in sample.origins:
            given = [*before, *ids[: origin.token + 1]]
            weights = token_relevance(predictor.model.net, given, [origin.token + len(before)], len(given))
            peak = int(weights[len(before) : len(before) + origin.token].argmax())
            near = min(abs(peak - source) for source in origin.sources)
            game.add(origin.kind, near == 0, near <= 1)
    return game
