"""Memory: freed blocks are kept, and returned when they pile up; no collection while data load."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPARE = 2**29  # bytes of growth that are not returned


def keep_freed_memory() -> None:
    """Keep freed blocks in the process instead of returning them to the system (glibc only; otherwise a no-op).

    By default glibc maps each block above a threshold separately, and the system provides zeroed pages every time,
    which took 15 % of a small model's training step on the CPU. The process stays as large as its largest step.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Heap:
    """Returns freed memory to the system when a process has grown (glibc on Linux only; otherwise a no-op).

    Batches of many lengths leave holes between the blocks that last, such as oneDNN's compiled products of each length,
    and no later block fits into them: fine-tuning MiniLM on batches of equal numbers of tokens grew by 30 MB a step.
    """

    def __init__(self) -> None:
        self.limit: int | None = None

    def check(self) -> None:
        """Return freed memory if the process has grown by a quarter, and at least SPARE bytes; called after each step.

        Growth is counted from the step that follows a return: its memory is what one step needs, so that steps of equal
        sizes return nothing.
        """
        size = resident_bytes()
        if self.limit is None:
            self.limit = size + max(SPARE, size // 4)
        elif size > self.limit:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            self.limit = None


def resident_bytes() -> int:
    """Memory of this process in bytes; 0 where Linux's /proc is missing."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


HEAP = Heap()  # of the process


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
