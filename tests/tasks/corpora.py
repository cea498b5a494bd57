"""A small corpus of one file of each kind, for the tests of retrieval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import Problems
from mmattn.data.text.scripts import split_words
from mmattn.tasks.common.retrieval.passages import Passage
from mmattn.tasks.common.retrieval.reading import corpus_files, read_passages


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, on_error: str = "raise", **options: Any) -> tuple[list[Passage], Problems]:
    problems = Problems(on_error)
    return list(read_passages(corpus_files(path), problems, shown=False, **options)), problems


def write_notes(folder: Path) -> Path:
    """Writes the corpus into a folder."""
    write(folder / "history.txt", "\n\nThe mouse ran.\nIt was late.\n \n---\n\nA cat, two cats and a mouse.\r\n")
    write(folder / "deep/er/page.md", "# Rivers\n\nThe Danube is a river.")
    write(folder / "rows.jsonl", '{"text": "A dog barks.", "title": "Dogs", "id": 7}\n\n{"context": "The zebra."}\n')
    write(folder / "cells.csv", 'id,text\nx,"A quoted\nmouse"\n')
    write(folder / "tabs.tsv", 'title\tcontext\nOld  "Rome"\tSeven hills.\n')
    write(folder / "lines.json", '{"text": "one row a line"}\n{"text": "another row"}\n')
    paragraphs = [{"context": "Warsaw lies there.", "qas": []}, {"context": "Warsaw lies there."}, {"context": "Two."}]
    write(folder / "squad.json", json.dumps({"data": [{"title": "Warsaw", "paragraphs": paragraphs}]}, indent=1))
    write(folder / ".hidden/a.txt", "hidden")
    write(folder / "photo.jpg", b"\xff")
    write(folder / "empty.txt", "")
    return folder


class Hashed:
    """Vectors that depend on the words of a text."""

    fingerprint = "hashed"
    calls = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += len(texts)
        vectors = np.zeros((len(texts), 16), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in split_words(text):
                vector += np.random.default_rng(list(word.encode())).standard_normal(16)
        return 3 * vectors  # the index normalizes
