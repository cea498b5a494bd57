"""The measurement of all benchmarks: candidates run interleaved in one process, and are compared round by round.

A machine's clock and load vary; candidates in the same round run under the same conditions. Reported are the median of
same-round ratios and its quartiles. The yardstick is also compared with itself (the A/A row): a difference within the
spread of that row is not significant.
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
from torch import Tensor, nn

Run = Callable[[], Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of this process, summed over threads


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

    The order is rotated by one in each round.
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
    """Peak resident memory of a run in bytes, in addition to the memory before it (Linux)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # return freed blocks, which would be reused by the run unnoticed
    before = resident_memory(reset=True)[0]
    run()
    return max(resident_memory()[1] - before, 0)


def resident_memory(reset: bool = False) -> tuple[int, int]:
    """Resident memory of this process in bytes, and its peak since the last `reset` (Linux)."""
    found = _status("VmRSS"), _status("VmHWM")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    return found


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def arguments(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """Parse the common flags --threads, --rounds, --json FILE and --keep-memory, and one flag for each default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument(
        "--keep-memory", action="store_true", help="let the allocator keep freed blocks, which is not its default"
    )
    for name, value in ({"rounds": 15} | defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    if found.keep_memory:
        # By default glibc returns each block above 32 MB and fetches zeroed pages for the next, which takes up to half
        # of the time with large temporaries. Users have the default; the flag measures the arithmetic alone.
        from mmattn.tasks.common.allocator import keep_freed_memory

        keep_freed_memory()
    return found


def machine() -> str:
    """A description of the machine in one line."""
    kind = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the printed rows as JSON, if a path is given."""
    if path is not None:
        plain = [{k: asdict(v) if isinstance(v, Ratio) else v for k, v in row.items()} for row in rows]
        path.write_text(json.dumps({"machine": machine(), "rows": plain}, indent=1) + "\n")


def make_forward(model: nn.Module, pixels: Tensor) -> Run:
    """One forward pass in evaluation, of a model of pixel values that returns logits."""
    model.eval()

    @torch.no_grad()
    def forward() -> Tensor:
        return model(pixels)

    return forward


def make_step(model: nn.Module, pixels: Tensor, labels: Tensor) -> Run:
    """One training step with AdamW and cross-entropy, of such a model."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
