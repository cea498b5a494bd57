"""Translation: the file formats of parallel text, each with errors that name file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.readers import read_rows
from mmattn.tasks.common.seq2seq.data import PairDataset, PairSample

TABLES = (".tsv", ".jsonl", ".ndjson")
Row = tuple[str, PairSample]  # where it stands, and what stands there


@dataclass
class TranslationSample(PairSample):
    """A sentence and its translation."""

    alignment: list[tuple[int, int]] = field(default_factory=list)  # words of target and source that mean the same


class TranslationDataset(PairDataset):
    """Parallel text from files or from samples in memory, checked.

    Formats, by the path's ending:

    - a prefix: ``train`` stands for ``train.en`` and ``train.de``, whose lines i translate each other;
    - ``.tsv``: source, tab, target; a first line of names (``en``, ``de``, or ``source``, ``target``) may choose;
    - ``.jsonl``: ``{"en": ..., "de": ...}``, or ``source`` and ``target``, or either under ``translation``; and
      ``references``, a list, where a sentence has several.

    Args:
        source: A path, or samples.
        source_lang: The language read, the ending of its file.
        target_lang: The language written.
        on_error: ``raise`` ends at the first bad line, ``skip`` leaves bad lines out and reports them.
        require_target: Whether a missing translation is an error.

    Raises:
        DataError: Names the file and the line, what was expected and what was found.
    """

    def __init__(
        self,
        source: str | Path | Iterable[PairSample],
        source_lang: str = "en",
        target_lang: str = "de",
        on_error: str = "raise",
        require_target: bool = True,
    ) -> None:
        problems = Problems(on_error)
        name, found = "samples", source
        if isinstance(source, (str, Path)):
            name, found = str(source), read_parallel(source, (source_lang, target_lang), problems, require_target)
        super().__init__(found, name, problems, require_target)  # type: ignore[arg-type]


def read_parallel(
    path: str | Path, languages: tuple[str, str], problems: Problems, require_target: bool = True
) -> Iterator[Row]:
    """The pairs of a path in any of the formats; see ``TranslationDataset``."""
    suffix = Path(path).suffix.lower()
    if suffix == ".tsv":
        return _tsv(path, languages, problems, require_target)
    if suffix in TABLES:
        return _jsonl(path, languages, problems, require_target)
    return _two_files(path, languages, problems)


def read_lines(path: str | Path) -> list[str]:
    """A text file's lines, UTF-8 with or without a byte order mark; what splits them is the line feed alone.

    Raises:
        DataError: Missing, a folder, unreadable, or not UTF-8 (with the line).
    """
    return decode_lines(_bytes(path), str(path))


def decode_lines(raw: bytes, name: str) -> list[str]:
    """As ``read_lines``, from bytes.

    >>> decode_lines(b"a\\r\\nb\\x85c\\n".replace(b"\\x85", "\\x85".encode()), "x")
    ['a', 'b\\x85c']
    """
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}", "UTF-8 text", f"the byte 0x{raw[error.start]:02x}") from None
    lines = text.split("\n")  # not splitlines(), which also splits at U+0085, U+2028 and others
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), "a text file", "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(str(path), "a readable text file", shorten(str(error))) from None


def _two_files(path: str | Path, languages: tuple[str, str], problems: Problems) -> Iterator[Row]:
    files = [f"{path}.{language}" for language in languages]
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        beside = sorted(p.name for p in Path(path).parent.glob(f"{Path(path).name}*")) if Path(path).name else []
        found = f"no {missing[0]}" + (f" (there are: {', '.join(beside[:5])})" if beside else "")
        expected = f"the prefix of two files ending in .{languages[0]} and .{languages[1]}, or a .tsv or .jsonl file"
        raise DataError(str(path), expected, found)
    sides = [read_lines(file) for file in files]
    if len(sides[0]) != len(sides[1]):
        found = f"{len(sides[0]):,} and {len(sides[1]):,}"
        raise DataError(f"{files[0]} and {files[1]}", "as many lines in both", found)
    for line, (source, target) in enumerate(zip(*sides, strict=True), start=1):
        side = next((file for file, text in zip(files, (source, target), strict=True) if not text.strip()), None)
        if side is not None:
            problems.add(f"{side}, line {line}", "a sentence", "an empty line")
            continue
        yield f"{path}, line {line}", TranslationSample(str(line), source.strip(), target.strip())


def _tsv(path: str | Path, languages: tuple[str, str], problems: Problems, require_target: bool) -> Iterator[Row]:
    """No quoting: a quotation mark is one, as everywhere in parallel text."""
    columns = (0, 1)
    width = None
    for line, text in enumerate(read_lines(path), start=1):
        cells, where = text.split("\t"), f"{path}, line {line}"
        if not text.strip():
            continue
        if width is None:
            width = len(cells)
            names = [cell.strip().lower() for cell in cells]
            named = _columns(names, languages)
            if named is not None:
                columns = named
                continue
            if width > 2 or (require_target and width < 2):
                expected = f"two columns, or a first line that names {' and '.join(languages)}, or source and target"
                raise DataError(where, expected, f"{width} columns")
        if len(cells) != width:
            problems.add(where, f"{width} columns", f"{len(cells)}")
            continue
        source, target = cells[columns[0]].strip(), cells[columns[1]].strip() if width > 1 else ""
        yield where, TranslationSample(str(line), source, target)


def _columns(names: Sequence[str], languages: tuple[str, str]) -> tuple[int, int] | None:
    for source, target in (languages, ("source", "target")):
        if source.lower() in names and target.lower() in names:
            return names.index(source.lower()), names.index(target.lower())
    return None


def _jsonl(path: str | Path, languages: tuple[str, str], problems: Problems, require_target: bool) -> Iterator[Row]:
    for where, line, row in read_rows(path, problems):
        sample = sample_of(row, str(line), languages)
        if sample is None or (require_target and not (sample.target or sample.references)):
            expected = f"the keys {languages[0]} and {languages[1]}, or source and target"
            problems.add(where, expected, f"the keys {', '.join(row)}")
        else:
            yield where, sample


def sample_of(row: Any, default_id: str, languages: tuple[str, str]) -> TranslationSample | None:
    """A sample from a mapping, or None where it has no source."""
    inner = row.get("translation") if isinstance(row.get("translation"), dict) else row
    for source, target in (languages, ("source", "target"), ("text", "translation")):
        if source in inner:
            translated = inner.get(target)
            references = row.get("references") or []
            if not isinstance(references, list):
                references = [references]
            row_id = str(row.get("id", default_id))
            return TranslationSample(row_id, inner[source], "" if translated is None else translated, references)
    return None
