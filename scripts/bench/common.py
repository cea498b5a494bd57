"""How all benchmarks measure: candidates run interleaved in one process, and are compared round by round.

A machine's clock drifts and its neighbours wake up; two candidates that ran within the same round met the same
conditions, so the median of same-round ratios is what is stated, with its quartiles. The yardstick also runs against
itself (the A/A row): a difference within that row's spread is no difference.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of this process alone, over its threads


@dataclass(frozen=True)
class Ratio:
    """Same-round times of one candidate over those of the yardstick."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    def __str__(self) -> str:
        return f"{self.median:6.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    runs: Mapping[str, Run], rounds: int = 15, warmup: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round.

    The order within a round turns by one each time, so that no candidate always follows the same other.
    """
    names = list(runs)
    for _ in range(warmup):
        for name in names:
            runs[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect(0)
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, yardstick: str) -> Ratio:
    """Median and quartiles of name's time over yardstick's, round by round."""
    quotients = [a / b for a, b in zip(seconds[name], seconds[yardstick], strict=True)]
    low, _, high = statistics.quantiles(quotients, n=4)
    return Ratio(statistics.median(quotients), low, high)


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of values ~ sizes^p: the slope of the least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def peak_memory(run: Run) -> int:
    """Bytes of resident memory that run needs at its height beyond what was there before (Linux)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # give back what the allocator kept, or it would hide what run takes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    run()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def arguments(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The flags that benchmarks share: --threads, --rounds, --json FILE, --keep-memory, and one for each default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument(
        "--keep-memory", action="store_true", help="the allocator keeps what was freed, instead of its default"
    )
    for name, value in ({"rounds": 15} | defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    if found.keep_memory:
        # By default glibc gives each block above 32 MB back and fetches zeroed pages for the next: up to half of the
        # time of what needs large temporaries. Users meet the default; with the flag, the arithmetic alone is measured.
        from mmattn.tasks.common.allocator import keep_freed_memory

        keep_freed_memory()
    return found


def machine() -> str:
    """What ran it, in one line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """The printed rows as JSON, where a path was given."""
    if path is not None:
        plain = [{k: asdict(v) if isinstance(v, Ratio) else v for k, v in row.items()} for row in rows]
        path.write_text(json.dumps({"machine": machine(), "rows": plain}, indent=1) + "\n")
