"""Errors that are meant for the person at the keyboard: one message, and no traceback. Standard library alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, what was expected and what was found."""


class ConfigError(UserError):
    """A key or a value of the configuration is wrong."""


class DataError(UserError):
    """Bad data: one message that names the place, what was expected there and what was found.

    Args:
        where: The file with its line or item, e.g. ``"train.csv, line 7"``; or a whole sentence when given alone.
        expected: What the format asks for.
        found: What stands there.

    >>> print(DataError("train.csv, line 7", "a non-empty question", "''"))
    train.csv, line 7: expected a non-empty question, found ''
    """

    def __init__(self, where: str, expected: str | None = None, found: str | None = None) -> None:
        where = str(where)
        if where.startswith("Caught DataError in "):
            # A DataLoader worker's error is raised again as type(error)(text of its traceback). A person wants the
            # message, which is the last part of that text.
            where = where.rsplit(f"{__name__}.DataError: ", 1)[-1].strip()
        message = where
        if expected is not None:
            message += f": expected {expected}"
        if found is not None:
            message += f", found {found}" if expected is not None else f": {found}"
        super().__init__(message)


def is_user_error(error: BaseException) -> bool:
    """Whether the message of an error is meant for the user, so that a traceback would only bury it."""
    return isinstance(error, (UserError, OSError))


def shorten(value: object, limit: int = 80) -> str:
    """``repr`` of a value, cut so that an error stays one readable line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_broken(text: str) -> bool:
    """Whether a string holds lone surrogates: bytes that were no UTF-8, or an escape that stands for no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`` (did you mean 'kind'?)`` for a misspelt name, or nothing when no known name is close."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Problems:
    """Where a reader takes what is wrong: raises it, or counts it.

    Args:
        on_error: ``raise`` or ``skip``.
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
        self.on_error = on_error
        self.items: list[tuple[str, str]] = []  # (item, reason)

    def add(self, where: str, expected: str, found: str) -> None:
        """Raises the ``DataError``, or notes it and lets the reader go on without the item."""
        self.take(where, DataError(where, expected, found))

    def take(self, where: str, error: DataError) -> None:
        """Raises an error about an item, or notes it."""
        if self.on_error == "raise":
            raise error
        self.items.append((where, str(error).removeprefix(f"{where}: ")))

    def summary(self, name: str, kept: int) -> str:
        """How many were left out, and the first few reasons."""
        lines = [f"{name}: left out {len(self.items):,} bad item{'s' if len(self.items) > 1 else ''}, kept {kept:,}"]
        lines += [f"  {item}: {reason}" for item, reason in self.items[:5]]
        if len(self.items) > 5:
            lines.append(f"  ... and {len(self.items) - 5:,} more")
        return "\n".join(lines)
