"""Mutants of a few kinds of file end in a value or one error; scripts/fuzz.py reads thousands of every kind."""

from __future__ import annotations

import mmap
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from mmattn.data.errors import DataError
from scripts import fuzz
from scripts.fuzz_kinds import KINDS, Kind

SEED, COUNT = 0, 20

FAST = [kind for kind in KINDS if kind.folder not in ("write_runs", "write_public")]  # no model is made


@pytest.mark.parametrize("kind", FAST, ids=[kind.name for kind in FAST])
def test_mutants(kind: Kind, tmp_path: Path) -> None:
    kind.make(tmp_path)
    found = {fuzz.outcome(kind, tmp_path, fuzz.Mutant.make(kind, SEED, n, tmp_path)) for n in range(COUNT)}
    assert found == {"value", "error"}


def test_a_mutant_depends_on_seed_and_index_alone() -> None:
    for ending, content in ((".json", b'{"a": [1, {"b": 2}]}'), (".csv", b"a,b\n1,2\n"), (".wav", bytes(range(256)))):
        found = [[fuzz.changed(random.Random(n), content, ending) for n in range(200)] for _ in range(2)]
        assert found[0] == found[1]
        assert len(set(found[0])) > 100


def write(folder: Path) -> None:
    (folder / "a.txt").write_text("whole")


def read(path: Path, folder: Path, on_error: str) -> Any:
    """Ends each mutant by its content."""
    content = path.read_bytes()
    if content == b"exception":
        raise KeyError("x")
    if content == b"memory":
        with mmap.mmap(-1, 90_000_000) as memory:  # which the allocator cannot have free
            for place in range(0, len(memory), mmap.PAGESIZE):
                memory[place] = 1
    if content in (b"error", b"unnamed"):
        raise DataError(str(path) if content == b"error" else "somewhere", "something", "nothing")
    if content != b"whole" and folder.parent.parent.name == "workers":
        mark = folder.parent.parent / "mark"  # of the process before
        if mark.exists():
            os._exit(3)
        mark.touch()
        time.sleep(60)


FAULTY = Kind("faulty", write, read)
OUTCOMES = {"value": "value", "error": "error", "unnamed": "an error that does not name the file: somewhere: expected"}
OUTCOMES |= {"exception": "KeyError: 'x' (test_fuzz.py:", "memory": "0.1 GB of memory, then: value"}


@pytest.mark.parametrize("content", OUTCOMES)
def test_outcomes(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MEMORY", 50_000_000)
    write(tmp_path)
    path = tmp_path / "a.txt"
    found = fuzz.outcome(FAULTY, tmp_path, fuzz.Mutant(path, b"whole", content.encode(), "raise"))
    assert found.startswith(OUTCOMES[content])
    assert path.read_text() == "whole"


def test_hanging_and_dying_workers_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 2)
    (tmp_path / "workers").mkdir()
    found = fuzz.fuzz(FAULTY, 1, range(2), tmp_path / "workers", workers=1, shown=False)
    assert list(found) == [(0, "more than 2 s"), (1, "the process died, exit code 3")]
