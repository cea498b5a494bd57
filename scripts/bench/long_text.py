"""Time and memory of a training step of a language model with a sliding window, up to 32,768 tokens.

python scripts/bench/long_text.py [--threads N] [--rounds N] [--clock wall|cpu] [--json FILE]

Forward and backward of two layers of 128, four heads, a window of 256 tokens, a vocabulary of 1,000. Required from
8,192 to 32,768 tokens: exponents of growth of at most 1.15, of time and of peak memory; dense attention has 2 for time.

As in `fit`, the allocator keeps freed memory: otherwise glibc takes arrays above 32 MB from the system in every step,
whose page faults let the time grow faster than the text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import CLOCKS, arguments, growth, interleave, machine, peak_memory, write_rows

from mmattn.backbones.causal import CausalLM
from mmattn.onednn import use_onednn
from mmattn.tasks.common.allocator import keep_freed_memory
from mmattn.tasks.text_generation.model import token_loss

SIZES, MUST = (8192, 16_384, 32_768), 1.15


def make_step(length: int) -> Callable[[], None]:
    torch.manual_seed(0)
    attention = {"kind": "sliding_window", "window": 256}
    model = use_onednn(CausalLM(1000, 128, 2, 4, max_len=length, attention=attention))
    ids = torch.randint(1000, (1, length + 1))
    read, labels = ids[:, :-1], ids[:, 1:]
    counts = torch.ones_like(labels, dtype=torch.bool)

    def step() -> None:
        token_loss(model, model.states(read), labels, counts).backward()  # type: ignore[operator]
        model.zero_grad()

    return step


def main() -> int:
    given = arguments(__doc__, rounds=3, clock="wall")
    print(machine())
    keep_freed_memory()
    runs = {str(length): make_step(length) for length in SIZES}
    seconds = interleave(runs, rounds=given.rounds, warmup=1, clock=CLOCKS[given.clock])
    times = [min(seconds[name]) for name in runs]
    memory = [float(peak_memory(run)) for run in runs.values()]
    rows = [
        {"tokens": length, "seconds": time, "MB": size / 2**20}
        for length, time, size in zip(SIZES, times, memory, strict=True)
    ]
    for row in rows:
        print(f"{row['tokens']:>6} tokens: {row['seconds']:.3f} s, {row['MB']:.0f} MB")
    found = {"time": growth(SIZES, times), "memory": growth(SIZES, memory)}
    broken = [name for name, value in found.items() if value > MUST]
    for name, value in found.items():
        print(f"growth of {name}: length^{value:.2f}; must {MUST}: {'FAILS' if name in broken else 'holds'}")
    write_rows(given.json, [*rows, {"growth": found}])
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
