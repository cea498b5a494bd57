"""Readers of text, JSON, CSV, TSV and JSONL files, with errors that name file and line."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.names import find_file
from mmattn.data.table import Table

MARK = b"\xef\xbb\xbf"  # a byte order mark
WIDE = {  # byte order marks and codecs of what is not UTF-8
    "UTF-32": ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), ("utf-32-le", "utf-32-be")),
    "UTF-16": ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), ("utf-16-le", "utf-16-be")),
}
JSON_LINES = (".jsonl", ".ndjson", ".json")  # .json: the name of NeMo's and other manifests of one object a line
TABLES = (*JSON_LINES, ".csv", ".tsv")
CELL = (1 << 31) - 1  # bytes: the longest cell of a CSV
DIGITS = 300  # of an integer in JSON: those of a float
SMALL = 128 * 2**20  # bytes; vocabularies have up to 40 MB
START = 4096  # bytes, by which an encoding is recognized
DELIMITERS = {";": "semicolons", "\t": "tabs", ",": "commas"}


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Turns the errors of opening and reading a file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(str(path), f"a {kind}", "no such file") from None
    except IsADirectoryError:
        inside = sorted(p.name for p in path.iterdir())[:8]
        raise DataError(str(path), f"a {kind}", f"a folder with {', '.join(inside) or 'nothing'} in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(str(path), f"a readable {kind}", shorten(str(error))) from None


def _read_bytes(path: str | Path, kind: str = "file") -> bytes:
    path = find_file(path)
    with _named(path, kind):
        return path.read_bytes()


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


def _refuse_wide(raw: bytes, name: str) -> None:
    """Raises an error that names UTF-16 or UTF-32, with or without a byte order mark."""
    start = raw[:START]
    for encoding, (marks, forms) in WIDE.items():
        if start.startswith(marks) or any(_is_wide(start, form) for form in forms):
            raise DataError(name, "UTF-8 text", f"{encoding} (iconv -f {encoding} -t UTF-8 converts it)")


def _is_wide(start: bytes, form: str) -> bool:
    zeros = start.count(0)
    strayed = 5 * zeros < len(start) and _is_text(start.replace(b"\0", b""), "utf-8")  # into UTF-8
    return zeros > 0 and not strayed and _is_text(start, form)


def _is_text(start: bytes, form: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(form)().decode(start)  # without a last character that is cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _decoded(raw: bytes, name: str) -> str:
    _refuse_wide(raw, name)
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


def stream_lines(path: str | Path, newline: str = "\n", limit: int = -1) -> Iterator[str]:
    """Yields a text file's lines with their ends, so that no more than a line of it is in memory.

    A byte order mark is left out. Bytes that are not UTF-8 become lone surrogates, which ``is_broken`` finds.

    Args:
        path: The file.
        newline: What ends a line; an empty string: line feeds, carriage returns, or both.
        limit: Characters, beyond which a line is yielded in several parts; negative: none.

    Raises:
        DataError: The file is missing, a folder, unreadable, or in UTF-16 or UTF-32.
    """
    path = find_file(path)
    with _named(path, "file"), path.open("rb") as file:
        _refuse_wide(file.peek(START), str(path))
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline)
        yield from text if limit < 0 else iter(lambda: text.readline(limit), "")


def _filled(path: str | Path, lines: Iterable[str]) -> Iterator[str]:
    """Yields lines; without one that is more than white space, the file is empty: a DataError."""
    is_empty = True
    for line in lines:
        is_empty = is_empty and not line.strip()
        yield line
    if is_empty:
        raise DataError(str(path), "a file with content", "an empty file")


def parse_json(text: str | bytes) -> Any:
    """Parses JSON, for all readers.

    Raises:
        json.JSONDecodeError: Invalid JSON; or brackets nested too deeply, or an integer beyond the range of a float.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise json.JSONDecodeError("brackets nested too deeply", text, 0) from None
    except OverflowError as error:
        found = re.search(rf"\d{{{DIGITS + 1}}}", text)
        raise json.JSONDecodeError(str(error), text, found.start() if found else 0) from None


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise OverflowError(f"an integer of {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: As ``read_text``, or invalid JSON (with line and column).
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise DataError(where, "JSON", f"{shorten(text[error.pos : error.pos + 40], 44)} ({error.msg})") from None


def read_rows(path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields the rows of a CSV, TSV or JSONL file, or of a table in memory.

    CSV and TSV need a header. In CSV a quoted cell may contain line breaks; TSV has no quoting: quotation marks are
    literal. Empty lines are ignored. The file is read while its rows are taken, so it may be larger than memory.

    Args:
        path: The file, whose extension decides the format; or the table.
        problems: Collects the invalid lines.

    Yields:
        The row's location (``"train.csv, line 7"``), its line number, and its cells by column or key.

    Raises:
        DataError: The file as a whole cannot be read, or has no valid header.
    """
    for where, line, row in path if isinstance(path, Table) else _file_rows(path, problems):
        bad = next((shorten(value) for value in row.values() if isinstance(value, str) and is_broken(value)), None)
        if bad is None:
            yield where, line, row
        else:
            problems.add(where, "UTF-8 text", bad)


def _file_rows(path: str | Path, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    is_csv = not is_json_lines(path) and Path(path).suffix.lower() != ".tsv"  # its cells may have any line ends
    lines = _filled(path, stream_lines(path, "" if is_csv else "\n"))
    return _jsonl(path, lines, problems) if is_json_lines(path) else _table(path, lines, problems)


def has_rows(path: str | Path, whole: str) -> bool:
    """Whether a .json has one object a line; a file whose first line has the key ``whole`` is one object of its own."""
    first = next((line for line in stream_lines(path) if line.strip()), "")
    try:
        row = parse_json(first)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and whole not in row


def as_path(path: str | Path | Table) -> Any:
    """Returns a path as a ``Path``; a table, which has the attributes that readers of tables need, unchanged."""
    return path if isinstance(path, Table) else Path(path)


def report_missing(
    path: str | Path | Table,
    where: str,
    row: Mapping[str, Any],
    missing: Sequence[str],
    known: Collection[str],
    problems: Problems,
    also: str = "",
) -> None:
    """Reports keys missing from a JSONL row, or raises for columns missing from the header of a CSV or TSV.

    Args:
        path: The file.
        where: Location of the row.
        row: Cells by key or column.
        missing: Keys that the row lacks.
        known: All keys of the format.
        problems: Collects an invalid JSONL row.
        also: What else can be done, behind what was found.

    Raises:
        DataError: The header lacks columns, or ``problems`` raises.
    """
    names = " and ".join(missing)
    unknown = [given for given in row if given not in known]
    near = {name: difflib.get_close_matches(name, unknown, n=1) for name in missing}
    hint = next((f" (did you mean {name!r} instead of {close[0]!r}?)" for name, close in near.items() if close), "")
    found = f"{', '.join(map(str, row)) or 'none'}{hint}{f' ({also})' if also else ''}"
    plural = "s" if len(missing) > 1 else ""
    if is_json_lines(path):
        problems.add(where, f"the key{plural} {names}", found)
        return
    expected = (
        f"the column{plural} {names}" if set(known) & row.keys() else f"a first line with the column names {names}"
    )
    raise DataError(f"{path}, header", expected, found)


def is_json_lines(path: str | Path | Table) -> bool:
    """Whether a file's name ends as that of a file with one JSON object a line; a table counts as one."""
    return as_path(path).suffix.lower() in JSON_LINES


def _jsonl(path: str | Path, lines: Iterable[str], problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for line, content in enumerate(lines, start=1):
        content = content.removesuffix("\n")
        if not content.strip():
            continue
        where = f"{path}, line {line}"
        try:
            row = parse_json(content)
        except json.JSONDecodeError as error:
            found = f"{shorten(content.strip(), 60)} ({error.msg} at column {error.colno})"
            problems.add(where, "a JSON object", found)
        else:
            if isinstance(row, dict):
                yield where, line, row
            else:
                problems.add(where, "a JSON object", shorten(row))


def _table(path: str | Path, lines: Iterable[str], problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else ","
    header: list[str] | None = None
    for line, cells in _tsv(lines) if delimiter == "\t" else _csv(lines):
        where = f"{path}, line {line}"
        if isinstance(cells, csv.Error):
            if header is None:
                raise DataError(where, "a header of column names", shorten(str(cells)))
            found = "a quoted cell that is never closed" if "end of data" in str(cells) else str(cells)
            problems.add(where, f"{len(header)} cells", found)
        elif not any(cell.strip() for cell in cells):
            continue
        elif header is None:
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


def _tsv(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for line, content in enumerate(lines, start=1):
        yield line, content.removesuffix("\n").removesuffix("\r").split("\t")


def _csv(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    reader = csv.reader(lines, strict=True)
    while True:
        line, limit = reader.line_num + 1, csv.field_size_limit(CELL)
        try:
            cells: list[str] | csv.Error = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
        finally:
            csv.field_size_limit(limit)  # that of the process
        yield line, cells
