"""Compare sliding-window attention, 128 tokens per side, with other implementations: time, growth and peak memory.

All candidates get the same queries, keys and values in the memory layout of projections, (B, L, h d); projections are
not timed. All attend to the same band, 128 tokens to each side and the token itself, and their outputs are compared
before they are timed:

ours        mmattn's kernel `sliding_window`
longformer  transformers' LongformerSelfAttention, attention_window 256, its projections replaced by the given tensors;
            it divides queries in place, so that they are copied, as its own projection's output would be
local       local-attention's LocalAttention, window_size 128 with one window back and forward, without rotary
            positions; exact_windowsize=True, without which it attends to all of three windows
dense       scaled_dot_product_attention with the band as a boolean mask, which is built beforehand

With --globals N, N tokens of each sample attend to all and are attended to by all; local-attention does not support
them and is excluded. A ratio is another candidate's time over ours in the same round; printed are the median and
[quartiles]; A/A is ours over ours. Memory is the peak of a run in addition to its inputs, including output and
gradients.

python scripts/bench/window.py [--longest 16384] [--rounds 11] [--threads N] [--json FILE]

Exits with 1 if a requirement is not met. Requirements against Longformer and local-attention are checked if their
lengths are measured, with 128 tokens per side and no global tokens.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from common import Ratio
from torch import Tensor, nn

from mmattn import Mask, build_kernel

SHORTEST = 512
YARDSTICK = "ours"
BARS = (  # direction, length, candidate, required ratio, desired ratio
    ("forward", 16384, "longformer", 4.5, 6.0),
    ("forward", 16384, "local", 2.7, 3.5),
    ("forward+backward", 8192, "longformer", 4.5, 6.0),
    ("forward+backward", 8192, "local", 1.3, 1.6),
)
MEMORY_BAR = 5.0  # times less memory than longformer, at the same two lengths
DENSE_FROM = 1024  # length from which on it must be faster than dense
GROWTH_BAR = 1.2

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, L, h d) three times to (B, L, h d)


class Given(nn.Module):
    """Replaces a projection of Longformer: returns the given tensor, sequence first."""

    def __init__(self, copy: bool = False) -> None:
        super().__init__()
        self.copy = copy
        self.tensor: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.tensor is not None
        tensor = self.tensor.transpose(0, 1)
        return tensor.clone() if self.copy else tensor


def candidates(
    batch: int, length: int, heads: int, head_dim: int, window: int, num_globals: int
) -> dict[str, Attention]:
    """The candidates, by name."""
    from local_attention import LocalAttention
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, head_dim)).transpose(1, 2)  # (B, h, L, d)

    def join(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (B, L, h d)

    global_mask = torch.zeros(batch, length, dtype=torch.bool)
    for sample in range(batch):
        generator = torch.Generator().manual_seed(sample)
        global_mask[sample, torch.randperm(length, generator=generator)[:num_globals]] = True
    mask = Mask(global_mask=global_mask) if num_globals else None

    kernel = build_kernel("sliding_window", {"window": window}, num_heads=heads, head_dim=head_dim)
    config = LongformerConfig(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        attention_window=[2 * window],
        attention_probs_dropout_prob=0.0,
    )
    theirs = LongformerSelfAttention(config, 0).eval()
    query, key, value = Given(copy=True), Given(), Given()
    theirs.query, theirs.key, theirs.value = query, key, value
    theirs.query_global, theirs.key_global, theirs.value_global = nn.Identity(), key, value
    signs = global_mask.float()  # Longformer's mask: 0 local, positive global, negative masked
    masked = torch.zeros_like(global_mask)

    def longformer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        query.tensor, key.tensor, value.tensor = q, k, v
        return theirs(q, signs, masked, global_mask, num_globals > 0)[0]

    found: dict[str, Attention] = {
        "ours": lambda q, k, v: join(kernel(split(q), split(k), split(v), mask)),
        "longformer": longformer,
    }
    if not num_globals:
        local_attention = LocalAttention(window, exact_windowsize=True, use_rotary_pos_emb=False)
        found["local"] = lambda q, k, v: join(local_attention(split(q), split(k), split(v)))
    place = torch.arange(length)
    band = (place[:, None] - place).abs() <= window
    if num_globals:
        band = band | global_mask[:, None, :, None] | global_mask[:, None, None, :]
    found["dense"] = lambda q, k, v: join(F.scaled_dot_product_attention(split(q), split(k), split(v), band))
    return found


def make_run(attention: Attention, inputs: list[Tensor], grad: Tensor | None) -> common.Run:
    """One forward pass, or one forward and backward pass if a gradient of the output is given."""

    def forward() -> Any:
        with torch.no_grad():
            return attention(*inputs)

    def both() -> Any:
        return torch.autograd.grad(attention(*inputs), inputs, grad)

    return forward if grad is None else both


def main() -> int:
    flags = common.arguments(
        __doc__, rounds=11, batch=1, heads=12, head_dim=64, window=128, globals=0, longest=16384, dense_up_to=4096
    )
    print(f"{common.machine()}; {flags.heads} heads of {flags.head_dim}, batch {flags.batch}, {flags.rounds} rounds")
    rows, lengths = [], [SHORTEST]
    while lengths[-1] * 2 <= flags.longest:
        lengths.append(lengths[-1] * 2)
    for direction in ("forward", "forward+backward"):
        print(f"\n{direction}: others' time over ours; peak memory in MB")
        for length in lengths:
            rows.append(measure(direction, length, flags))
            print(line(rows[-1]), flush=True)
    verdicts = judge(rows, bars=BARS if flags.window == 128 and not flags.globals else ())
    print("\nmust")
    for text, holds in verdicts:
        print(f"  {'holds ' if holds else 'FAILS '} {text}")
    common.write_rows(flags.json, rows)
    return 0 if all(holds for _, holds in verdicts) else 1


def measure(direction: str, length: int, flags: Any) -> dict[str, Any]:
    """One row: seconds, ratios and bytes of each candidate."""
    backward = direction != "forward"
    generator = torch.Generator().manual_seed(0)
    shape = (flags.batch, length, flags.heads * flags.head_dim)
    inputs = [torch.randn(shape, generator=generator).requires_grad_(backward) for _ in range(3)]
    grad = torch.randn(shape, generator=generator) if backward else None
    found = candidates(flags.batch, length, flags.heads, flags.head_dim, flags.window, flags.globals)
    if length > flags.dense_up_to:
        del found["dense"]
    with torch.no_grad():
        ours = found[YARDSTICK](*inputs)
        for name, attention in found.items():
            torch.testing.assert_close(attention(*inputs), ours, rtol=1e-3, atol=1e-4, msg=f"{name} differs from ours")
        del ours
    runs = {name: make_run(attention, inputs, grad) for name, attention in found.items()}
    runs["A/A"] = runs[YARDSTICK]
    seconds = common.interleave(runs, flags.rounds)
    ratios = {name: common.ratio(seconds, name, YARDSTICK) for name in runs if name != YARDSTICK}
    memory = {name: common.peak_memory(runs[name]) for name in found}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"direction": direction, "length": length, "seconds": medians, "memory": memory, **ratios}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    ratios = "  ".join(f"{name} {value}" for name, value in row.items() if isinstance(value, Ratio))
    memory = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in row["memory"].items())
    return f"{row['length']:6d}  {1e3 * row['seconds'][YARDSTICK]:8.1f} ms  {ratios}  MB: {memory}"


def judge(rows: list[dict[str, Any]], bars: tuple[tuple[str, int, str, float, float], ...]) -> list[tuple[str, bool]]:
    """The requirements, and whether they are met."""
    verdicts = []
    for direction, length, name, must, aim in bars:
        for row in rows:
            if (row["direction"], row["length"]) != (direction, length) or name not in row:
                continue
            value = row[name].median
            text = f"{direction} at {length:,}: {value:.2f}x {name} (at least {must}, aim {aim})"
            verdicts.append((text, value >= must))
            if name == "longformer":
                less = row["memory"][name] / max(row["memory"][YARDSTICK], 1)
                text = f"{direction} at {length:,}: 1/{less:.1f} of {name}'s peak memory (at most 1/{MEMORY_BAR:.0f})"
                verdicts.append((text, less >= MEMORY_BAR))
    for direction in ("forward", "forward+backward"):
        mine = [row for row in rows if row["direction"] == direction]
        beside = {row["length"]: row["dense"].median for row in mine if "dense" in row and row["length"] >= DENSE_FROM}
        if beside:
            least, longest = min(beside.values()), max(beside)
            text = f"{direction} from {DENSE_FROM:,} to {longest:,}: at least {least:.2f}x dense (above 1)"
            verdicts.append((text, least > 1))
        if len(mine) > 1:
            exponents = {
                name: common.growth([row["length"] for row in mine], [row["seconds"][name] for row in mine])
                for name in mine[0]["seconds"]
                if all(name in row["seconds"] for row in mine) and name != "A/A"
            }
            others = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items() if name != YARDSTICK)
            text = f"{direction} grows as length^{exponents[YARDSTICK]:.2f} (at most {GROWTH_BAR}; {others})"
            verdicts.append((text, exponents[YARDSTICK] <= GROWTH_BAR))
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
