"""Errors whose message is meant for the user: the dispatcher prints it alone, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, what was expected and what was found."""

    user_error = True


class ConfigError(UserError):
    """A key or a value of the configuration is wrong."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign, or does not fit the model."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or holds another run."""


class NonFiniteLossError(UserError):
    """Training stopped because the loss is not a finite number."""


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`" (did you mean 'kind'?)"`, or nothing when no known name is close."""
    import difflib

    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
