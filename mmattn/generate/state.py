"""What a model keeps between two steps: anything that can keep some rows of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class State(Protocol):
    """What a step function continues from: key-value caches, an LSTM's cell, a list of tokens.

    A batch of B sentences with K beams each is B K rows, beam by beam.
    """

    def select(self, rows: Tensor) -> None:
        """From now on there are B sentences of K beams: beam k of sentence b goes on from what was row rows[b, k].

        Args:
            rows: (B, K) long. All rows of one sentence come from one sentence; sentences that have ended are left out.
        """
        ...


Step = Callable[[Tensor, "State"], Tensor]  # new ids (B K, L), state -> logits of what comes next (B K, V)
