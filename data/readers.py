"""Readers of text, JSON, CSV, TSV and JSONL files, with errors that name file and line."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, is_broken, shorten

MARK = b"\xef\xbb\xbf"  # a byte order mark
SMALL = 128 * 2**20  # bytes; vocabularies have up to 40 MB
DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas"}


def _read_bytes(path: str | Path, kind: str = "file") -> bytes:
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), f"a {kind}", "no such file") from None
    except IsADirectoryError:
        inside = sorted(p.name for p in path.iterdir())[:8]
        raise DataError(str(path), f"a {kind}", f"a folder with {', '.join(inside) or 'nothing'} in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(str(path), f"a readable {kind}", shorten(str(error))) from None


def check_small(path: str | Path) -> None:
    """Checks a file of settings or a vocabulary before it is read: a pipe or device may never end.

    Raises:
        DataError: The path is neither a regular file nor a folder, or the file is too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return  # the reader names the reason
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise DataError(str(path), "a regular file", "a pipe, device or socket")
    if found.st_size > SMALL:
        raise DataError(str(path), f"a file of at most {SMALL:,} bytes", f"{found.st_size:,} bytes")


def read_settings(path: str | Path) -> Any:
    """Reads a JSON file of settings, which belongs to a model and not to the data.

    Raises:
        DataError: As ``read_json`` and ``check_small``.
    """
    check_small(path)
    return read_json(path)


def _content(path: str | Path) -> bytes:
    raw = _read_bytes(path)
    if not raw.strip():
        raise DataError(str(path), "a file with content", "an empty file")
    return raw.removeprefix(MARK)


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}", "UTF-8 text", f"the byte 0x{raw[error.start]:02x}") from None


def read_text(path: str | Path) -> str:
    """Reads a text file, UTF-8 with or without a byte order mark.

    Raises:
        DataError: The file is missing, a folder, unreadable, empty, or not UTF-8 (with the line).
    """
    return _decoded(_content(path), str(path))


def read_lines(path: str | Path) -> list[str]:
    """Reads a text file's lines, UTF-8 with or without a byte order mark, separated by line feeds alone.

    Raises:
        DataError: The file is missing, a folder, unreadable, or not UTF-8 (with the line).
    """
    return decode_lines(_read_bytes(path, "text file"), str(path))


def decode_lines(raw: bytes, name: str) -> list[str]:
    """Decodes bytes as ``read_lines`` does.

    >>> decode_lines(b"a\\r\\nb\\x85c\\n".replace(b"\\x85", "\\x85".encode()), "x")
    ['a', 'b\\x85c']
    """
    lines = _decoded(raw.removeprefix(MARK), name).split("\n")  # splitlines() also splits at U+0085, U+2028 and others
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: As ``read_text``, or invalid JSON (with line and column).
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise DataError(where, "JSON", f"{shorten(text[error.pos : error.pos + 40], 44)} ({error.msg})") from None
    except RecursionError:
        raise DataError(str(path), "JSON", "brackets nested too deeply") from None


def read_rows(path: str | Path, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields the rows of a CSV, TSV or JSONL file.

    CSV and TSV need a header; a quoted cell may contain line breaks. Empty lines are ignored.

    Args:
        path: The file; its extension decides the format.
        problems: Collects the invalid lines.

    Yields:
        The row's location (``"train.csv, line 7"``), its line number, and its cells by column or key.

    Raises:
        DataError: The file as a whole cannot be read, or has no valid header.
    """
    text = _content(path).decode("utf-8", errors="surrogateescape")
    rows = _jsonl(path, text, problems) if _is_jsonl(path) else _csv(path, text, problems)
    for where, line, row in rows:
        bad = next((shorten(value) for value in row.values() if isinstance(value, str) and is_broken(value)), None)
        if bad is None:
            yield where, line, row
        else:
            problems.add(where, "UTF-8 text", bad)


def report_missing(
    path: str | Path,
    where: str,
    row: Mapping[str, Any],
    missing: Sequence[str],
    known: Collection[str],
    problems: Problems,
) -> None:
    """Reports keys missing from a JSONL row, or raises for columns missing from the header of a CSV or TSV.

    Args:
        path: The file.
        where: Location of the row.
        row: Cells by key or column.
        missing: Keys that the row lacks.
        known: All keys of the format.
        problems: Collects an invalid JSONL row.

    Raises:
        DataError: The header lacks columns, or ``problems`` raises.
    """
    names = " and ".join(missing)
    unknown = [given for given in row if given not in known]
    near = {name: difflib.get_close_matches(name, unknown, n=1) for name in missing}
    hint = next((f" (did you mean {name!r} instead of {close[0]!r}?)" for name, close in near.items() if close), "")
    found = f"{', '.join(map(str, row)) or 'none'}{hint}"
    plural = "s" if len(missing) > 1 else ""
    if _is_jsonl(path):
        problems.add(where, f"the key{plural} {names}", found)
        return
    expected = (
        f"the column{plural} {names}" if set(known) & row.keys() else f"a first line with the column names {names}"
    )
    raise DataError(f"{path}, header", expected, found)


def _is_jsonl(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".jsonl", ".ndjson")


def _jsonl(path: str | Path, text: str, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        where = f"{path}, line {line}"
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            found = f"{shorten(content.strip(), 60)} ({error.msg} at column {error.colno})"
            problems.add(where, "a JSON object", found)
        except RecursionError:
            problems.add(where, "a JSON object", "brackets nested too deeply")
        else:
            if isinstance(row, dict):
                yield where, line, row
            else:
                problems.add(where, "a JSON object", shorten(row))


def _csv(path: str | Path, text: str, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        where = f"{path}, line {line}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise DataError(where, "a header of column names", shorten(str(error))) from None
            found = "a quoted cell that is never closed" if "end of data" in str(error) else str(error)
            problems.add(where, f"{len(header)} cells", found)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            if len(header) == 1 and (other := next((s for s in DELIMITERS if s != delimiter and s in header[0]), None)):
                expected = (
                    "tab-separated cells"
                    if delimiter == "\t"
                    else "comma-separated cells (or tab-separated, in a .tsv)"
                )
                raise DataError(where, expected, f"{shorten(cells[0])}, cells separated by {DELIMITERS[other]}")
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise DataError(where, "unique column names", f"{', '.join(twice)} more than once")
        elif len(cells) != len(header):
            problems.add(where, f"{len(header)} cells ({', '.join(header)})", f"{len(cells)}")
        else:
            yield where, line, dict(zip(header, cells, strict=True))
