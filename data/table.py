"""Rows in memory in place of a file: mappings, tuples, or a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, shorten


class Table:
    """Rows that are read as those of a file of JSON lines; paths in them are relative to the working directory.

    Args:
        rows: The cells of each row, by key.
    """

    suffix, name, parent = ".jsonl", "in memory", Path()  # as of a path

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    def __str__(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yields the location, the number from 1, and the cells of each row; missing cells of a frame are left out."""
        for number, row in enumerate(self.rows, start=1):
            cells = {str(key): value for key, value in row.items() if not _is_missing(value)}
            yield f"{self.name}, row {number}", number, cells


def as_table(source: Any, columns: Sequence[str]) -> Any:
    """Returns mappings, tuples or a frame as a ``Table``; a path or a list of samples unchanged.

    Args:
        source: A path; or samples, mappings, tuples, or a pandas DataFrame.
        columns: The keys of a tuple's values.

    Raises:
        DataError: The source is none of these, its items are of different kinds, or a tuple has another length.
    """
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        rows = source.to_dict("records")
        return Table([{str(key).strip().lower(): value for key, value in row.items()} for row in rows])
    if isinstance(source, (str, Path, Table)):
        return source
    if not isinstance(source, Iterable):
        raise DataError("samples", "a path, samples, rows or a DataFrame", shorten(source))
    items = list(source)
    if not any(isinstance(item, (Mapping, tuple, list)) for item in items):
        return items
    return Table([_row(f"{Table.name}, row {n}", item, columns) for n, item in enumerate(items, start=1)])


def is_media(value: Any) -> bool:
    """Whether a cell holds an image or a recording itself: neither a path nor missing."""
    return value is not None and not isinstance(value, (str, Path, bool, int, float))


def _row(where: str, item: Any, columns: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, (tuple, list)) and len(item) == len(columns):
        return dict(zip(columns, item, strict=True))
    raise DataError(where, f"a mapping, or a tuple ({', '.join(columns)})", shorten(item))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # NaN
