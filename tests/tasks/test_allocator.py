"""Freed memory is returned to the system when a process has grown, and not in each step."""

import ctypes
from types import SimpleNamespace

import pytest

from mmattn.tasks.common import allocator
from mmattn.tasks.common.allocator import SPARE, Heap, resident_bytes


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each return of memory is added; nothing is returned."""
    found: list[int] = []
    library = SimpleNamespace(malloc_trim=lambda padding: found.append(padding))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return found


def check_all(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    heap = Heap()
    for size in sizes:
        monkeypatch.setattr(allocator, "resident_bytes", lambda size=size: size)
        heap.check()


def test_steps_of_equal_sizes_return_nothing(monkeypatch: pytest.MonkeyPatch, trims: list[int]) -> None:
    check_all(monkeypatch, [10 * SPARE] * 50)
    assert not trims


def test_growth_returns_memory_once(monkeypatch: pytest.MonkeyPatch, trims: list[int]) -> None:
    check_all(monkeypatch, [SPARE, 2 * SPARE, 2 * SPARE + 1, SPARE, 2 * SPARE])
    assert len(trims) == 1


def test_what_a_large_step_needs_is_kept(monkeypatch: pytest.MonkeyPatch, trims: list[int]) -> None:
    check_all(monkeypatch, [SPARE, *[8 * SPARE] * 20])  # the first step was small: one return, then 8 is the rule
    assert len(trims) == 1


def test_resident_bytes() -> None:
    assert resident_bytes() > 2**20
