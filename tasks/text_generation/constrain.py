"""What ends or limits a generated text: stop strings, a regular expression, a choice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmattn.tasks.common.errors import ConfigError


def stopping(stops: Sequence[str], token_bytes: Mapping[int, bytes]) -> Callable[[Tensor], Tensor]:
    """Returns a function that tells whether texts end: their last token completes a stop string.

    As in transformers: the text that is searched includes the prompt, and the last token may go on after the string.

    Args:
        stops: The stop strings.
        token_bytes: The bytes of each token that is not special.
    """
    wanted = [stop.encode() for stop in stops]
    longest = max(map(len, wanted))

    def should_stop(ids: Tensor) -> Tensor:
        found = []
        for row in ids[:, -longest - 1 :].tolist():
            last = token_bytes.get(row[-1], b"")
            text = b"".join(token_bytes.get(token, b"") for token in row)
            before = len(text) - len(last)
            found.append(any(text.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in wanted))
        return torch.tensor(found, device=ids.device)

    return should_stop


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of the stop strings, without it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of a text that begins a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Pattern:
    """A constraint on the next token, by which each text matches a regular expression (Willard and Louf 2023).

    Args:
        pattern: The regular expression.
        token_bytes: The bytes of each token that is not special.
        eos_id: The end token, which is allowed where the text matches.
        prompt: Tokens of the prompts, with padding.
        begun: Ids with which each text has begun, which may be in the prompt.

    Raises:
        ConfigError: The package outlines-core is missing, or the expression is invalid or cannot be matched.
    """

    def __init__(
        self, pattern: str, token_bytes: Mapping[int, bytes], eos_id: int, prompt: int, begun: Sequence[int] = ()
    ) -> None:
        try:
            from outlines_core import Index, Vocabulary
        except ModuleNotFoundError:
            raise ConfigError("--regex: needs the package outlines-core: pip install 'mmattn[constrained]'.") from None
        table: dict[bytes, list[int]] = {}
        for token, value in token_bytes.items():
            if value:
                table.setdefault(value, []).append(token)
        try:
            self.index: Any = Index(pattern, Vocabulary(eos_id, table))
        except Exception as error:  # its own types
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--regex: expected an expression that the model's tokens can match: {reason}.") from None
        self.eos_id, self.prompt = eos_id, prompt
        self.start = self._after(self.index.get_initial_state(), begun)

    def _after(self, state: Any, ids: Sequence[int]) -> Any:
        """The state of the automaton after ids; None: the text is complete."""
        for token in ids:
            state = None if state is None else self.index.get_next_state(state, token)
        return state

    def __call__(self, scores: Tensor, ids: Tensor) -> None:
        """Forbids all other tokens in scores (N, V), after ids (N, T)."""
        for number, row in enumerate(ids[:, self.prompt :].tolist()):
            state = self._after(self.start, row)
            allowed = [self.eos_id] if state is None else (self.index.get_allowed_tokens(state) or [self.eos_id])
            kept = scores[number, allowed].clone()
            scores[number] = -math.inf
            scores[number, allowed] = kept


def of_choices(choices: Sequence[str]) -> str:
    """Returns the regular expression of one of several texts.

    >>> of_choices(["yes", "no."])
    '(yes|no\\\\.)'
    """
    return f"({'|'.join(map(re.escape, choices))})"
