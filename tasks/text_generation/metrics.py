"""Metrics of language models: loss and perplexity per token and word, bits per byte."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class LanguageMetric(Metric):
    """Cross-entropy over all tokens that count, exact in float64.

    `compute()` returns `loss` (nats per token) and `perplexity` (its exponential); where the texts' sizes are known
    `word_perplexity` (per word of white-space separated text, ends of lines counting as words, as for the Penn
    Treebank) and `bits_per_byte` (of UTF-8); and of built-in data `optimal`, the loss of the grammar itself, and
    `excess`, the quotient of the two.

    Args:
        tokens: Number of predicted tokens of the corpus, to which the other numbers belong; 0: unknown.
        words: Number of words.
        size: Bytes.
        optimal: Nats of the whole corpus by the grammar; None: unknown.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, tokens: int = 0, words: int = 0, size: int = 0, optimal: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tokens, self.words, self.size, self.optimal = tokens, words, size, optimal
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: Any) -> LanguageMetric:
        """Keep float64 for any precision of the model."""
        return self

    def update(self, total: float, count: float) -> None:
        """Add the sum of the losses of so many tokens."""
        self.total += total
        self.count += count

    def compute(self) -> dict[str, float]:
        loss = float(self.total / self.count.clamp_min(1))
        found = {"loss": loss, "perplexity": _exp(loss)}
        if self.tokens and self.words:
            found["word_perplexity"] = _exp(loss * self.tokens / self.words)
        if self.tokens and self.size:
            found["bits_per_byte"] = loss * self.tokens / self.size / math.log(2)
        if self.tokens and self.optimal is not None:
            best = -self.optimal / self.tokens
            found |= {"optimal": best, "excess": loss / best}
        return found


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
