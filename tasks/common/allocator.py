"""Memory: freed blocks are kept, since every training step allocates the same ones; no collection while data load."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed blocks in the process instead of returning them to the system (glibc only; otherwise a no-op).

    By default glibc maps each block above a threshold separately, and the system provides zeroed pages every time,
    which took 15 % of a small model's training step on the CPU. The process stays as large as its largest step.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the collector of cyclic garbage while many objects are made that all remain, which it would visit often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
