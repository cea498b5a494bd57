"""What ends or limits a generated text: stop strings, a regular expression, a choice."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import shorten
from mmattn.data.text.language import LanguageTokens, token_bytes
from mmattn.tasks.common.errors import ConfigError

SECONDS, MEMORY = 20, 2 << 30  # in which an expression is compiled, since small ones may have billions of states
KEPT = 8  # automata
COMPILER = """
import contextlib, pickle, sys
from outlines_core import Index, Vocabulary
pattern, eos_id, table, memory = pickle.load(sys.stdin.buffer)
with contextlib.suppress(ImportError, OSError, ValueError):  # not every system limits memory
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
try:
    found = Index(pattern, Vocabulary(eos_id, table))
except ValueError as error:
    found = str(error)
pickle.dump(found, sys.stdout.buffer)
"""


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


def between_spaces(text: str) -> str:
    """Returns a text as the bytes of words have it: each that follows an end of line has a space before it, too.

    >>> between_spaces("a \\n\\nb")
    'a\\n\\n b'
    """
    return re.sub(r"\n(?=[^\n])", "\n ", re.sub(r" +\n", "\n", text))


def compiled(pattern: str, token_bytes: Mapping[int, bytes], eos_id: int) -> Any:
    """Compiles a regular expression to the automaton of the tokens (Willard and Louf 2023).

    A process of its own does so, which is ended where it takes too much time or memory.

    Args:
        pattern: The regular expression.
        token_bytes: The bytes of each token that is not special.
        eos_id: The end token.

    Returns:
        An ``outlines_core.Index``.

    Raises:
        ConfigError: The package outlines-core is missing, or the expression is invalid, too large or cannot be matched.
    """
    try:
        import outlines_core  # noqa: F401, for the unpickled automaton
    except ModuleNotFoundError:
        raise ConfigError("--regex: needs the package outlines-core: pip install 'mmattn[constrained]'.") from None
    table: dict[bytes, list[int]] = {}
    for token, value in token_bytes.items():
        if value:
            table.setdefault(value, []).append(token)
    command, given = [sys.executable, "-P", "-c", COMPILER], pickle.dumps((pattern, eos_id, table, MEMORY))
    too_large = (
        f"--regex or --choices: expected an expression that compiles in {SECONDS} seconds and {MEMORY >> 30} GiB"
    )
    too_large += f", found {shorten(pattern)}: use shorter repetitions or fewer alternatives."
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise ConfigError(too_large) from None
    found = pickle.loads(done.stdout)
    if isinstance(found, str):
        reason = found.splitlines()[0].rstrip(".")
        raise ConfigError(f"--regex or --choices: expected texts that the model's tokens can match: {reason}.")
    return found


class Pattern:
    """A constraint on the next token, by which each text matches a regular expression (Willard and Louf 2023).

    Args:
        index: The automaton of the expression, by `compiled`.
        eos_id: The end token, which is allowed where the text matches.
        prompt: Tokens of the prompts, with padding.
    """

    def __init__(self, index: Any, eos_id: int, prompt: int) -> None:
        self.index = index
        self.eos_id, self.prompt = eos_id, prompt
        self.start = self.index.get_initial_state()

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


class Limits:
    """The stop strings and regular expressions of a tokenizer.

    Args:
        tokenizer: The tokenizer of a language model. One of words has spaces between its tokens, but for ends of lines.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.token_bytes = token_bytes(getattr(tokenizer, "_pieces", None) or tokenizer.tokenizer)
        self.has_words = isinstance(tokenizer, LanguageTokens) and tokenizer.kind == "word"
        if self.has_words:
            self.token_bytes = {i: b if b == b"\n" else b" " + b for i, b in self.token_bytes.items()}
        self.automaton = lru_cache(KEPT)(self._automaton)

    def stopping(self, stops: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Returns `stopping` of these stop strings."""
        return stopping([between_spaces(stop) for stop in stops] if self.has_words else stops, self.token_bytes)

    def _automaton(self, pattern: str, eos_id: int) -> Any:
        if not self.has_words:
            return compiled(pattern, self.token_bytes, eos_id)
        try:  # a text of words may begin with the space behind the prompt
            return compiled(f" ?({pattern})", self.token_bytes, eos_id)
        except ConfigError:  # maybe since " a" begins " ab", but "a " does not begin "ab "
            ends = {i: b[1:] + b" " for i, b in self.token_bytes.items() if b != b"\n"}
            return compiled(f"({pattern}) ", ends, eos_id)


def of_choices(choices: Sequence[str]) -> str:
    """Returns the regular expression of one of several texts.

    >>> of_choices(["yes", "no."])
    '(yes|no\\\\.)'
    """
    return f"({'|'.join(map(re.escape, choices))})"
