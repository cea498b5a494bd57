"""File formats of parallel text, selected by the file extension.

- a prefix: ``train`` means ``train.en`` and ``train.de``, whose lines are translations of each other;
- ``.tsv``: source, tab, target; a header (``en``, ``de``, or ``source``, ``target``) may select the columns;
- ``.jsonl``: ``{"en": ..., "de": ...}``, or ``source`` and ``target``, or ``text`` and ``translation``; the
  first two may be nested under ``translation``; and ``references``, a list, if a sentence has several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems
from mmattn.data.readers import is_json_lines, read_lines, read_rows
from mmattn.data.table import Table

Fields = dict[str, Any]  # fields of a sample, by name
_Found = Iterator[tuple[str, Fields]]


def read_parallel(
    path: str | Path | Table, languages: tuple[str, str], require_target: bool, problems: Problems
) -> _Found:
    """Read one split.

    Args:
        path: A path in any of the formats, or a table in memory.
        languages: Source and target language.
        require_target: Whether a missing translation is an error.
        problems: Collects invalid lines.

    Yields:
        The file and line, and the fields of the sample.
    """
    if isinstance(path, Table) or is_json_lines(path):
        return _jsonl(path, languages, require_target, problems)
    read = _tsv if Path(path).suffix.lower() == ".tsv" else _two_files
    return read(path, languages, require_target, problems)


def _two_files(path: str | Path, languages: tuple[str, str], _: bool, problems: Problems) -> _Found:
    files = [f"{path}.{language}" for language in languages]
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        place = Path(path)
        names = os.listdir(place.parent) if place.name and place.parent.is_dir() else []
        beside = sorted(name for name in names if name.startswith(place.name))
        found = f"no {missing[0]}" + (f" (similar names: {', '.join(beside[:5])})" if beside else "")
        expected = f"the prefix of two files ending in .{languages[0]} and .{languages[1]}, or a .tsv or .jsonl file"
        raise DataError(str(path), expected, found)
    sides = [read_lines(file) for file in files]
    if len(sides[0]) != len(sides[1]):
        found = f"{len(sides[0]):,} and {len(sides[1]):,}"
        raise DataError(f"{files[0]} and {files[1]}", "the same number of lines in both", found)
    for line, texts in enumerate(zip(*sides, strict=True), start=1):
        side = next((file for file, text in zip(files, texts, strict=True) if not text.strip()), None)
        if side is None:
            yield f"{path}, line {line}", {"id": str(line), "source": texts[0].strip(), "target": texts[1].strip()}
        else:
            problems.add(f"{side}, line {line}", "a sentence", "an empty line")


def _tsv(path: str | Path, languages: tuple[str, str], require_target: bool, problems: Problems) -> _Found:
    """Without quoting: quotation marks are literal, as usual in parallel text."""
    columns = (0, 1)
    width = None
    for line, text in enumerate(read_lines(path), start=1):
        cells, where = text.split("\t"), f"{path}, line {line}"
        if not text.strip():
            continue
        if width is None:
            width = len(cells)
            named = _columns([cell.strip().lower() for cell in cells], languages)
            if named is not None:
                columns = named
                continue
            if width > 2 or (require_target and width < 2):
                expected = f"two columns, or a header with {' and '.join(languages)}, or source and target"
                raise DataError(where, expected, f"{width} columns")
        if len(cells) == width:
            source, target = (cells[n].strip() if n < width else "" for n in columns)
            yield where, {"id": str(line), "source": source, "target": target}
        else:
            problems.add(where, f"{width} columns", f"{len(cells)}")


def _columns(names: Sequence[str], languages: tuple[str, str]) -> tuple[int, int] | None:
    for source, target in (languages, ("source", "target")):
        if source.lower() in names and target.lower() in names:
            return names.index(source.lower()), names.index(target.lower())
    return None


def _jsonl(path: str | Path | Table, languages: tuple[str, str], require_target: bool, problems: Problems) -> _Found:
    expected = f"the keys {' and '.join(languages)}, or source and target"
    if not require_target:
        expected = f"the key {languages[0]} or source, with a string"
    for where, line, row in read_rows(path, problems):
        fields = fields_of(row, str(line), languages)
        if fields is None or (require_target and not (fields["target"] or fields["references"])):
            problems.add(where, expected, f"the keys {', '.join(row)}")
        else:
            yield where, fields


def fields_of(row: Mapping[str, Any], default_id: str, languages: tuple[str, str]) -> Fields | None:
    """The fields of a sample from a mapping; None if it has no source."""
    inner: Any = row.get("translation")
    inner = inner if isinstance(inner, dict) else row
    for source, target in (languages, ("source", "target"), ("text", "translation")):
        if source in inner:
            translated, references = inner.get(target), row.get("references") or []
            return {
                "id": str(row.get("id", default_id)),
                "source": inner[source],
                "target": "" if translated is None else translated,
                "references": references if isinstance(references, list) else [references],
            }
    return None
