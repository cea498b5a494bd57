"""Sampling of tokens: temperature, truncation, draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def uniform_draws(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns uniform numbers in [0, 1) of each generator: (B, *shape) float64.

    A generator's numbers come in their order: two draws of 3 are one of 6.
    """
    rows = [torch.rand(shape, generator=one, dtype=torch.float64, device=one.device) for one in generators]
    return torch.stack(rows).to(device)


def sample(
    scores: Tensor,
    config: GenerationConfig,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
) -> Tensor:
    """Samples one token per row.

    Args:
        scores: (N, V) logits.
        config: Temperature, top_k, top_p, min_p; see `filtered`.
        generator: Random generator; None = torch's default.
        uniform: (N,) float64 in [0, 1), drawn in place of the generator's numbers: each row's token depends on its own
            number alone, by the inverse of its cumulative distribution.

    Returns:
        (N,) long.
    """
    scores, places = filtered(scores, config)
    if uniform is None:
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)  # (N, 1)
    else:
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)  # (N, k)
        # The first token above the number has some probability: those with none add nothing.
        drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)  # (N, 1)
        drawn = drawn.clamp_max(scores.shape[-1] - 1)
    return (drawn if places is None else places.gather(1, drawn)).squeeze(1)
