"""Sentences: of a text, and of the files that tasks are trained on, for a language model of another task to count."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems
from mmattn.data.readers import read_json, read_rows, read_text

Span = tuple[int, int]  # characters, from and up to
# A sentence ends at . ! ? and blanks, where no small letter follows; or at the end of a line.
_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?![a-z])|\n\s*")
_ABBREVIATION = re.compile(r"\b(?:[A-Za-z]|no|Mr|Mrs|Ms|Dr|St|vs)\.$")
_LOOK_BACK = 5  # characters: the longest of them, and the one before it
# Of JSONL, CSV and TSV: speech and texts, summarization, captions. Of JSON at any depth: SQuAD's paragraphs, captions.
ROW_KEYS: tuple[str, ...] = ("text", "document", "caption")
JSON_KEYS: tuple[str, ...] = ("context", "caption")


def split_sentences(text: str) -> list[Span]:
    """Where the sentences of a text stand, white space between them left out.

    >>> text = "It rained. We stayed at no. 5 all day!  So what?"
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['It rained.', 'We stayed at no. 5 all day!', 'So what?']
    """
    spans, start = [], 0
    for match in _BREAK.finditer(text):
        before = text[max(start, match.start() - _LOOK_BACK) : match.start()]  # all of it would be quadratic
        if match.group().startswith("\n") or not _ABBREVIATION.search(before):
            spans.append((start, match.end()))
            start = match.end()
    spans.append((start, len(text)))
    trimmed = []
    for first, last in spans:
        inner = text[first:last]
        if inner.strip():
            trimmed.append((first + len(inner) - len(inner.lstrip()), last - len(inner) + len(inner.rstrip())))
    return trimmed


def read_sentences(path: str | Path) -> list[str]:
    """The sentences of a file, in its order.

    JSONL, CSV and TSV give what stands under the first of ``ROW_KEYS`` that a line has, JSON what stands under
    ``JSON_KEYS`` at any depth, each text once; any other file holds a text a line.

    Raises:
        DataError: It cannot be read, or there is no text in it.
    """
    kind = Path(path).suffix.lower()
    keys: tuple[str, ...] = ()
    if kind == ".json":
        texts, keys = list(dict.fromkeys(_under(read_json(path)))), JSON_KEYS
    elif kind in (".jsonl", ".ndjson", ".csv", ".tsv"):
        rows, keys = (row for _, _, row in read_rows(path, Problems())), ROW_KEYS
        texts = [next((row[key] for key in ROW_KEYS if isinstance(row.get(key), str)), "") for row in rows]
    else:
        texts = read_text(path).splitlines()
    sentences = [text[start:end] for text in texts for start, end in split_sentences(text)]
    if not sentences:
        raise DataError(str(path), f"texts under {' or '.join(keys)}" if keys else "texts", "none")
    return sentences


def _under(found: Any) -> Iterator[str]:
    if isinstance(found, list):
        for part in found:
            yield from _under(part)
    elif isinstance(found, dict):
        for key, value in found.items():
            if key in JSON_KEYS and isinstance(value, str):
                yield value
            else:
                yield from _under(value)
