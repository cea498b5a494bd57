"""Time and peak memory of every kernel from 512 to 16,384 tokens, compared with dense, with growth exponents.

python scripts/bench/kernels.py [--threads N] [--rounds N] [--kinds NAME,NAME] [--seconds N] [--memory GB]
                                [--clock wall|cpu] [--json FILE]

Kernels without projections: forward in evaluation without gradients, and forward and backward in training, with random
inputs and no mask; self-attention, or cross-attention to as many keys for kernels that have no self-attention.

All lengths of all kernels run in every round; short calls are repeated for 0.3 seconds. The exponent p of
time ~ length^p is the least-squares slope through the logarithms, computed in each round from 2,048 tokens on, where
the fixed cost of a call is negligible. Reported are the median over the rounds with its quartiles, and the median over
all lengths. A kernel whose extrapolated time or memory at the next length exceeds --seconds or --memory is stopped,
which its row states; dense always runs. --clock cpu measures the time of this process, summed over threads, for shared
machines, where long calls are interrupted more often than short ones, which would bias the slopes.

Required: forward, and forward with backward, have an exponent of at most 1.2 for each kernel of LINEAR. Exit 1 if not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from common import CLOCKS, Ratio, Run, arguments, growth, interleave, machine, peak_memory, ratio, write_rows

from mmattn import KERNELS, build_kernel

LINEAR = ("sliding_window", "sparse", "linear", "low_rank", "lsh")
BAR = 1.2
AMORTISED = 2048  # minimum length for exponents, in tokens
SAMPLE = 0.3  # seconds for which shorter calls are repeated, so that they are interrupted as often as longer ones
# Options whose defaults do not suit: windows of a usual size, projections as long as the input.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "sliding_window": lambda length: {"window": 128},
    "low_rank": lambda length: {"max_len": length},
}
DENSE, AGAIN = "dense", "dense again"  # the yardstick, twice: the A/A row
MODES = ("forward", "forward+backward")


@dataclass
class Curve:
    """Measurements of one kernel in one mode, by length."""

    runs: dict[int, Run] = field(default_factory=dict)
    once: dict[int, float] = field(default_factory=dict)  # approximate seconds of one run
    memory: dict[int, int] = field(default_factory=dict)  # peak bytes of one run
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by length, one for each round
    stopped: str = ""  # reason for the missing lengths

    def exponent(self, lengths: Sequence[int]) -> Ratio | None:
        """Median and quartiles over rounds of the slope through the given lengths."""
        lengths = [length for length in lengths if length in self.seconds]
        if len(lengths) < 2:
            return None
        slopes = [growth(lengths, times) for times in zip(*(self.seconds[n] for n in lengths), strict=True)]
        low, _, high = statistics.quantiles(slopes, n=4)
        return Ratio(statistics.median(slopes), low, high)


def make_run(kind: str, length: int, mode: str, heads: int, head_dim: int) -> Run:
    """One call of a kernel on (1, heads, length, head_dim)."""
    torch.manual_seed(0)
    options = OPTIONS.get(kind, lambda length: {})(length)
    needs = {"self"} if "self" in KERNELS[kind].supports else {"cross"}
    kernel = build_kernel(kind, options, num_heads=heads, head_dim=head_dim, needs=needs)
    # The memory layout of projections: (1, length, heads, head_dim).
    q, k, v, gradient = (torch.randn(1, length, heads, head_dim).transpose(1, 2) for _ in range(4))
    if kernel.shares_qk:
        k = q
    if mode == "forward":
        kernel.eval()

        @torch.no_grad()
        def forward() -> None:
            kernel(q, k, v)

        return forward
    kernel.train()
    wanted = [x.requires_grad_() for x in ((q, v) if kernel.shares_qk else (q, k, v))] + list(kernel.parameters())

    def both() -> None:
        torch.autograd.grad(kernel(q, k, v), wanted, gradient, allow_unused=True)

    return both


def survey(kinds: Sequence[str], lengths: Sequence[int], mode: str, options: Any) -> dict[str, Curve]:
    """Run every kernel once at every length, to measure its memory and to determine its maximum length."""
    curves = {}
    for kind in kinds:
        curve = curves[kind] = Curve()
        taken: list[tuple[float, float]] = []  # seconds and bytes, by length
        for length in lengths:
            if len(taken) > 1 and kind != DENSE:  # dense always runs
                growing = zip(*taken[-2:], strict=True)
                seconds, size = (now * max(1.0, now / max(before, 1e-9)) for before, now in growing)
                if seconds > options.seconds or size > options.memory * 1e9:
                    curve.stopped = f"{length}: about {seconds:.0f} s and {size / 1e9:.0f} GB a run"
                    break
            run = make_run(kind, length, mode, options.heads, options.head_dim)
            run()  # warm-up, so that one-time allocations are not counted
            start = time.perf_counter(), time.process_time()
            memory = peak_memory(run)
            # The smaller of both clocks: on a shared machine wall time includes that of other processes.
            seconds = min(time.perf_counter() - start[0], time.process_time() - start[1])
            taken.append((seconds, max(memory, 2**20)))
            curve.runs[length], curve.once[length], curve.memory[length] = run, seconds, memory
    return curves


def measure(kinds: Sequence[str], lengths: Sequence[int], mode: str, options: Any) -> dict[str, Curve]:
    """All curves of one mode, timed."""
    curves = survey(kinds, lengths, mode, options)
    curves[AGAIN] = Curve(curves[DENSE].runs, curves[DENSE].once, curves[DENSE].memory)
    times = {(kind, n): max(1, int(SAMPLE / once)) for kind, curve in curves.items() for n, once in curve.once.items()}
    names = {f"{kind} {n}": repeat(curves[kind].runs[n], count) for (kind, n), count in times.items()}
    seconds = interleave(names, options.rounds, warmup=0, clock=CLOCKS[options.clock])
    for (kind, n), count in times.items():
        curves[kind].seconds[n] = [sample / count for sample in seconds[f"{kind} {n}"]]
    return curves


def repeat(run: Run, count: int) -> Run:
    """Repeat a run `count` times."""

    def repeated() -> None:
        for _ in range(count):
            run()

    return repeated


def show(mode: str, curves: dict[str, Curve], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Print the tables of one mode and return their rows."""
    late = [length for length in lengths if length >= AMORTISED]
    width = max(len(kind) for kind in curves)
    head = "".join(f"{length:>10,}" for length in lengths)
    rows: list[dict[str, Any]] = []
    print(f"\n{mode}: milliseconds, and the exponent from {AMORTISED:,} tokens on and over all")
    print(" " * width + head + f"{'exponent':>24}{'over all':>10}")
    for kind, curve in curves.items():
        cells = [f"{1e3 * statistics.median(curve.seconds[n]):.1f}" if n in curve.seconds else "-" for n in lengths]
        exponents = curve.exponent(late), curve.exponent(lengths)
        slope = str(exponents[0]) if exponents[0] else "-"
        overall = f"{exponents[1].median:.2f}" if exponents[1] else "-"
        note = f"  no {curve.stopped}" if curve.stopped else ""
        print(f"{kind:<{width}}" + "".join(f"{cell:>10}" for cell in cells) + f"{slope:>24}{overall:>10}{note}")
        rows.append({"mode": mode, "kind": kind, "exponent": exponents[0], "exponent_all": exponents[1]})
    print(f"\n{mode}: time over that of dense, median of same rounds [quartiles]")
    print(" " * width + "".join(f"{length:>24,}" for length in lengths))
    for row, (kind, curve) in zip(rows, curves.items(), strict=True):
        row["ratios"], cells = {}, []
        for n in lengths:
            shared = n in curve.seconds and n in curves[DENSE].seconds
            found = ratio({kind: curve.seconds[n], "-": curves[DENSE].seconds[n]}, kind, "-") if shared else None
            row["ratios"][n] = found and [found.median, found.low, found.high]
            cells.append(str(found) if found else "-")
        print(f"{kind:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\n{mode}: peak memory in MB, and the exponent from {AMORTISED:,} tokens on")
    print(" " * width + head + f"{'exponent':>12}")
    for row, (kind, curve) in zip(rows, curves.items(), strict=True):
        cells = [f"{curve.memory[n] / 1e6:.1f}" if n in curve.memory else "-" for n in lengths]
        known = [n for n in late if curve.memory.get(n)]
        slope = f"{growth(known, [curve.memory[n] for n in known]):.2f}" if len(known) > 1 else "-"
        print(f"{kind:<{width}}" + "".join(f"{cell:>10}" for cell in cells) + f"{slope:>12}")
        row["seconds"], row["memory"], row["stopped"] = curve.seconds, curve.memory, curve.stopped
    return rows


def main() -> int:
    options = arguments(
        __doc__,
        rounds=5,
        heads=2,
        head_dim=64,
        shortest=512,
        longest=16384,
        kinds="",
        seconds=8,
        memory=6,
        clock="wall",
    )
    chosen = [name for name in options.kinds.split(",") if name] or sorted(KERNELS)
    unknown = sorted(set(chosen) - set(KERNELS))
    if unknown:
        print(f"unknown kind {unknown[0]!r}; the kinds are: {', '.join(sorted(KERNELS))}", file=sys.stderr)
        return 2
    if options.clock not in CLOCKS:
        print(f"unknown clock {options.clock!r}; expected one of: {', '.join(CLOCKS)}", file=sys.stderr)
        return 2
    kinds = [DENSE, *(kind for kind in chosen if kind != DENSE)]
    lengths = [options.shortest]
    while lengths[-1] < options.longest:
        lengths.append(min(2 * lengths[-1], options.longest))
    print(f"{machine()}; batch 1, {options.heads} heads of {options.head_dim}, {options.rounds} rounds, ", end="")
    print(f"{options.clock} clock")
    required = [kind for kind in LINEAR if kind in chosen or not options.kinds]  # a missing kernel fails
    rows, broken = [], []
    for mode in MODES:
        curves = measure(kinds, lengths, mode, options)
        rows += show(mode, curves, lengths)
        for kind in required:
            found = curves[kind].exponent([n for n in lengths if n >= AMORTISED]) if kind in curves else None
            if found is None or not found.median <= BAR or lengths[-1] not in curves[kind].seconds:
                broken.append(f"{kind}, {mode}: {found.median if found else 'not measured'}")
    write_rows(options.json, rows)
    print(f"\nexponent at most {BAR} in {', '.join(required) or 'none of these'}: " + ("; ".join(broken) or "holds"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
