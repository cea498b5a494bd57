"""Errors whose message is shown to the user without a traceback. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid input of the user; the message names it, the expected value and the value found."""


class ConfigError(UserError):
    """An invalid key or value of the configuration."""


class DataError(UserError):
    """Invalid data; the message names the location, the expected content and the content found.

    Args:
        where: The file with its line or item, e.g. ``"train.csv, line 7"``; or, alone, the complete message.
        expected: Content that the format requires.
        found: Content of the data.

    >>> print(DataError("train.csv, line 7", "a non-empty question", "''"))
    train.csv, line 7: expected a non-empty question, found ''
    """

    can_skip = False  # whether `on_error: skip` leaves out the item that the error is about

    def __init__(self, where: str, expected: str | None = None, found: str | None = None) -> None:
        where = str(where)
        if where.startswith("Caught DataError in "):
            # A DataLoader worker's error is raised again as type(error)(text of its traceback). The message is the
            # last part of that text.
            where = where.rsplit(f"{__name__}.DataError: ", 1)[-1].strip()
        message = where
        if expected is not None:
            message += f": expected {expected}"
        if found is not None:
            message += f", found {found}" if expected is not None else f": {found}"
        super().__init__(message)


@contextmanager
def located(where: object) -> Iterator[None]:
    """Puts a location before the message of a data error that does not name it."""
    try:
        yield
    except DataError as error:
        if str(where) in str(error):
            raise
        raise DataError(f"{where}: {error}") from None


def is_user_error(error: BaseException) -> bool:
    """Whether an error is shown to the user by its message alone, without a traceback."""
    return isinstance(error, (UserError, OSError))


def shorten(value: object, limit: int = 80) -> str:
    """Returns ``repr`` of a value, truncated so that an error fits on one line."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_broken(text: str) -> bool:
    """Whether a string contains lone surrogates, from bytes that are not UTF-8 or from invalid escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'kind'?)`` for a misspelt name, or an empty string if no known name is close."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Problems:
    """Collects the invalid items that a reader finds: raises each as an error, or records it.

    Args:
        on_error: ``raise`` or ``skip``.
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
        self.on_error = on_error
        self.items: list[tuple[str, str]] = []  # (item, reason)

    def add(self, where: str, expected: str, found: str) -> None:
        """Raises a ``DataError``, or records it, so that the reader continues without the item."""
        self.take(where, DataError(where, expected, found))

    def take(self, where: str, error: DataError) -> None:
        """Raises an item's error, or records it."""
        if self.on_error == "raise":
            error.can_skip = True
            raise error
        _, there, reason = str(error).partition(f"{where}: ")  # also after "image "
        self.items.append((where, reason if there else str(error)))

    def summary(self, name: str, kept: int) -> str:
        """Returns the number of excluded items and the first few reasons."""
        lines = [f"{name}: excluded {len(self.items):,} bad item{'s' if len(self.items) > 1 else ''}, kept {kept:,}"]
        lines += [f"  {item}: {reason}" for item, reason in self.items[:5]]
        if len(self.items) > 5:
            lines.append(f"  ... and {len(self.items) - 5:,} more")
        return "\n".join(lines)
