"""Protocol of decoding states, which can select rows of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class State(Protocol):
    """The decoding state of a step function: key-value caches, an LSTM's cell, a list of tokens.

    A batch of B sentences with K beams each has B K rows, beam by beam.
    """

    def select(self, rows: Tensor) -> None:
        """Reorders the state to B sentences of K beams: beam k of sentence b continues row rows[b, k].

        Args:
            rows: (B, K) long. All rows of a sentence come from one sentence; finished sentences are absent.
        """
        ...


Step = Callable[[Tensor, "State"], Tensor]  # new ids (B K, L), state -> logits of the next id (B K, V)
