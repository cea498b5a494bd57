"""Sentences of a text, and of the files of other tasks, from which n-gram language models are estimated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems
from mmattn.data.readers import TABLES, read_json, read_rows, read_text

Span = tuple[int, int]  # start and end character
# A sentence ends at . ! ? and spaces before anything but a lower-case letter, or at the end of a line.
_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?![a-z])|\n\s*")
_ABBREVIATION = re.compile(r"\b(?:[A-Za-z]|no|Mr|Mrs|Ms|Dr|St|vs)\.$")
_LOOK_BACK = 5  # characters: the longest abbreviation, and the character before it
# JSONL, CSV and TSV: speech and texts, summarization, captions. JSON at any depth: SQuAD's paragraphs, captions.
ROW_KEYS: tuple[str, ...] = ("text", "document", "caption")
JSON_KEYS: tuple[str, ...] = ("context", "caption")


def split_sentences(text: str) -> list[Span]:
    """Returns the spans of a text's sentences, without the white space between them.

    >>> text = "It rained. We stayed at no. 5 all day!  So what?"
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['It rained.', 'We stayed at no. 5 all day!', 'So what?']
    """
    spans, start = [], 0
    for match in _BREAK.finditer(text):
        before = text[max(start, match.start() - _LOOK_BACK) : match.start()]  # the whole prefix would be quadratic
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
    """Reads the sentences of a file, in its order.

    Texts are the values of the first of ``ROW_KEYS`` in each row of JSONL, CSV and TSV, the values of ``JSON_KEYS`` at
    any depth of JSON, each text once, and the lines of any other file.

    Raises:
        DataError: The file cannot be read, or contains no text.
    """
    kind = Path(path).suffix.lower()
    keys: tuple[str, ...] = ()
    if kind == ".json":
        texts, keys = list(dict.fromkeys(_under(read_json(path)))), JSON_KEYS
    elif kind in TABLES:
        rows, keys = (row for _, _, row in read_rows(path, Problems())), ROW_KEYS
        texts = [next((row[key] for key in ROW_KEYS if isinstance(row.get(key), str)), "") for row in rows]
    else:
        texts = read_text(path).splitlines()
    sentences = [text[start:end] for text in texts for start, end in split_sentences(text)]
    if not sentences:
        raise DataError(str(path), f"texts under {' or '.join(keys)}" if keys else "texts", "none")
    return sentences


def _under(found: Any) -> Iterator[str]:
    waiting = [("", found)]
    while waiting:
        key, part = waiting.pop()
        if isinstance(part, str):
            if key in JSON_KEYS:
                yield part
        elif isinstance(part, list):
            waiting.extend(("", value) for value in reversed(part))
        elif isinstance(part, dict):
            waiting.extend(reversed(part.items()))
