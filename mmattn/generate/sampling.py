"""Sampling of tokens: temperature, truncation, draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import GenerationConfig


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Sets all but the smallest set of tokens with total probability top_p to minus infinity.

    Nucleus sampling (Holtzman et al. 2020, section 3.1).

    Args:
        scores: (N, V), sorted, largest first.
        top_p: Above 0.
    """
    probabilities = scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # total probability of more probable tokens
    outside = before >= top_p
    outside[:, 0] = False
    return scores.masked_fill(outside, -math.inf)


def keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    """Sets tokens below min_p times the largest probability to minus infinity (Nguyen et al. 2024)."""
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def filtered(scores: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor | None]:
    """Returns the logits from which a token is sampled: after temperature, top_k, top_p and min_p, in this order.

    Args:
        scores: (N, V) logits.
        config: The options.

    Returns:
        Logits (N, k), minus infinity for tokens that are left out; their tokens (N, k), or None for all V in order.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    # The greatest is zero, which no temperature makes infinite.
    scores = (scores - scores.amax(-1, keepdim=True)) / config.temperature
    places = None
    if config.top_p < 1.0 or 0 < config.top_k < scores.shape[-1]:
        k = min(config.top_k or scores.shape[-1], scores.shape[-1])
        scores, places = scores.topk(k, dim=-1)  # sorted: the following steps process k tokens, not V
    if config.top_p < 1.0:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p:
        scores = keep_min_p(scores, config.min_p)
    return scores, places


def sample(scores: Tensor, config: GenerationConfig, generator: torch.Generator | None = None) -> Tensor:
    """Samples one token per row.

    Args:
        scores: (N, V) logits.
        config: Temperature, top_k, top_p, min_p; see `filtered`.
        generator: Random generator; None = torch's default.

    Returns:
        (N,) long.
    """
    scores, places = filtered(scores, config)
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)  # (N, 1)
    return (drawn if places is None else places.gather(1, drawn)).squeeze(1)
