"""Reading of a corpus: plain text, Markdown, rows, SQuAD's paragraphs, and folders of them, one passage at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.files import some_below
from mmattn.data.names import find_file
from mmattn.data.readers import TABLES, has_rows, read_json, read_rows, report_missing, stream_lines
from mmattn.data.text.scripts import split_words
from mmattn.data.text.sentences import Span, split_sentences
from mmattn.tasks.common.progress import progress
from mmattn.tasks.common.retrieval.passages import Passage

TEXTS = (".txt", ".md")
ENDINGS = (*TEXTS, *TABLES)
KEYS = ("text", "context", "title", "id")  # of rows
MAX_WORDS = 200
LONGEST = 1 << 20  # characters of a paragraph in memory; a longer one is taken as several
_BYTE = re.compile("[\udc80-\udcff]")  # one that is not UTF-8, as `stream_lines` has it
_STOP = re.compile(r"(?<=[。！？｡।॥؟۔])\s*")  # full stops that `split_sentences` does not know


def corpus_files(path: str | Path) -> list[tuple[str, Path]]:
    """Returns the files of a corpus, each with its path relative to the corpus.

    Raises:
        DataError: There are none.
        OSError: A folder cannot be read.
    """
    path = find_file(path)
    if path.is_dir():
        return some_below(path, ENDINGS, f"files of texts ({', '.join(ENDINGS)})")
    if not path.is_file():
        found = "a device, pipe or socket" if os.path.exists(path) else "no such file"
        raise DataError(str(path), "a corpus: a file or a folder of files", found)
    if path.suffix.lower() not in ENDINGS:
        raise DataError(str(path), f"a file of texts ({', '.join(ENDINGS)})", f"the ending {path.suffix!r}")
    return [(path.name, path)]


def read_passages(
    files: Sequence[tuple[str, Path]], problems: Problems, max_words: int = MAX_WORDS, shown: bool = True
) -> Iterator[Passage]:
    """Yields the passages of files, in their order.

    In plain text and Markdown a passage is a paragraph, which ends at an empty line; a longer one than `max_words` is
    divided at ends of sentences. In JSONL, CSV and TSV it is a row's `text` or `context`, whole; in SQuAD's JSON a
    paragraph's context, each once. Texts without any word are left out.

    Args:
        files: See `corpus_files`.
        problems: Collects invalid items, and files that cannot be read.
        max_words: Maximum number of words of a paragraph's parts.
        shown: Whether to show a progress bar.
    """
    for name, path in progress(files, len(files), "reading", shown):
        try:
            if path.suffix.lower() in TEXTS:
                yield from _paragraphs(name, path, problems, max_words)
            elif path.suffix.lower() == ".json" and not has_rows(path, "data"):
                yield from _squad(name, path, problems)
            else:
                yield from _rows(name, path, problems)
        except DataError as error:
            problems.take(str(path), error)
        except OSError as error:
            problems.take(str(path), DataError(str(path), "a readable file", error.strerror or shorten(str(error))))


def divide(text: str, max_words: int) -> list[str]:
    """Divides a text into parts of at most `max_words` words, between sentences where these are not longer.

    >>> divide("It rained. We stayed in all day! So what?", 7)
    ['It rained. We stayed in all day!', 'So what?']
    """
    if len(split_words(text)) <= max_words:
        return [text]
    parts, start, end, count = [], 0, 0, 0
    for first, last in _units(text, max_words):
        words = len(split_words(text[first:last]))
        if count + words > max_words and end > start:
            parts.append(text[start:end])
            start, count = first, 0
        end, count = last, count + words
    return [*parts, text[start:end]]


def _units(text: str, max_words: int) -> Iterator[Span]:
    """Yields what is not divided: sentences; of longer ones what is between spaces; of longer ones `max_words` letters.

    The last are sentences in scripts without spaces.
    """
    plain = text.replace("\n", " ")  # the lines of a paragraph end anywhere
    for first, last in split_sentences(plain):
        stops = (first + match.end() for match in _STOP.finditer(plain[first:last]))
        for start, end in pairwise([first, *stops, last]):
            if len(split_words(text[start:end])) <= max_words:
                yield start, end
                continue
            for match in re.finditer(r"\S+", text[start:end]):
                size = max_words if len(split_words(match.group())) > max_words else len(match.group())
                for at in range(start + match.start(), start + match.end(), size):
                    yield at, min(at + size, start + match.end())


def _paragraphs(name: str, path: Path, problems: Problems, max_words: int) -> Iterator[Passage]:
    number, size = 0, 0
    lines: list[tuple[int, str]] = []
    for line, content in enumerate(chain(stream_lines(path), [""]), start=1):  # the end of the file ends a paragraph
        content = content.rstrip()
        if content:
            lines.append((line, content))
            size += len(content)
        if lines and (not content or size > LONGEST):
            number += 1
            yield from _paragraph(name, path, number, lines, problems, max_words)
            lines, size = [], 0


def _paragraph(
    name: str, path: Path, number: int, lines: Sequence[tuple[int, str]], problems: Problems, max_words: int
) -> Iterator[Passage]:
    for line, content in lines:
        if (byte := _BYTE.search(content)) is not None:
            problems.add(f"{path}, line {line}", "UTF-8 text", f"the byte 0x{ord(byte.group()) & 0xFF:02x}")
            return
    parts = [part for part in divide("\n".join(content for _, content in lines), max_words) if split_words(part)]
    for part, text in enumerate(parts, start=1):
        place = f"paragraph {number}" + (f", part {part}" if len(parts) > 1 else "")
        yield Passage(text, name, place)


def _rows(name: str, path: Path, problems: Problems) -> Iterator[Passage]:
    for where, line, row in read_rows(path, problems):
        key = next((key for key in KEYS[:2] if key in row), None)
        if key is None:
            report_missing(path, where, row, KEYS[:1], KEYS, problems)
        elif not isinstance(row[key], str) or is_broken(row[key]) or not row[key].strip():
            problems.add(where, f"a text under {key}", shorten(row[key]))
        elif split_words(row[key]):
            yield Passage(row[key], name, f"line {line}", _label(row, "title"), _label(row, "id"))


def _label(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else " ".join(str(value).split())


def _squad(name: str, path: Path, problems: Problems) -> Iterator[Passage]:
    content = read_json(path)
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise DataError(str(path), "a list of SQuAD's articles under data, or rows, one a line", shorten(content))
    seen: set[str] = set()
    for number, article in enumerate(articles, start=1):
        where = f"article {number}"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            problems.add(f"{path}, {where}", "a list under paragraphs", shorten(article))
            continue
        for count, paragraph in enumerate(paragraphs, start=1):
            place = f"{where}, paragraph {count}"
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            if not isinstance(context, str) or is_broken(context) or not context.strip():
                problems.add(f"{path}, {place}", "a text under context", shorten(paragraph))
            elif context not in seen and split_words(context):
                seen.add(context)
                yield Passage(context, name, place, _label(article, "title"))
