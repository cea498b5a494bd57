"""Compare a training step of GPT-2's shape with nanoGPT's formulation: same weights, batch, loss and optimizer.

python scripts/bench/language_training.py [--threads N] [--rounds N] [--rows N] [--length N] [--layers N] [--json FILE]

nanoGPT's formulation is written here in a few lines: one map for queries, keys and values, torch's fused attention, the
output tied to the embeddings, and logits of all tokens at once. Both models must give the same loss and gradient, and
are trained as `fit` does: by the fused AdamW, and with an allocator that keeps freed memory.
Required: at most 0.97 of its time in float32, and in bfloat16 by autocast where the processor computes in it; at most
0.7 of its peak memory at a vocabulary of 50,257. `training.py` runs it, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from common import CLOCKS, arguments, interleave, machine, peak_memory, ratio, write_rows
from torch import Tensor, nn

from mmattn.backbones.causal import CausalLM
from mmattn.cpu import computes_bfloat16
from mmattn.onednn import use_onednn
from mmattn.tasks.common.allocator import keep_freed_memory
from mmattn.tasks.text_generation.model import token_loss

V, E, HEADS = 50_257, 768, 12
MUST_TIME, MUST_MEMORY = 0.97, 0.7


class Block(nn.Module):
    """A layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(E), nn.LayerNorm(E)
        self.c_attn, self.c_proj = nn.Linear(E, 3 * E), nn.Linear(E, E)
        self.fc, self.proj = nn.Linear(E, 4 * E), nn.Linear(4 * E, E)

    def forward(self, x: Tensor) -> Tensor:
        B, L, _ = x.shape
        parts = self.c_attn(self.ln_1(x)).split(E, dim=2)
        q, k, v = (part.view(B, L, HEADS, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, L, E))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class Plain(nn.Module):
    """GPT-2 in nanoGPT's formulation."""

    def __init__(self, layers: int, length: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, E), nn.Embedding(length, E)
        self.h, self.ln_f = nn.ModuleList(Block() for _ in range(layers)), nn.LayerNorm(E)
        self.lm_head = nn.Linear(E, V, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, V), labels.view(-1))


def same_weights(plain: Plain, layers: int, length: int) -> CausalLM:
    """Our model with the weights of the other one."""
    options: dict[str, Any] = {"positions": "learned", "norm": "layer", "activation": "gelu", "gated": False}
    ours = CausalLM(V, E, layers, HEADS, max_len=length, bias=True, ffn_bias=True, **options)
    state = {
        "embedding.weight": plain.wte.weight,
        "positions.weight": plain.wpe.weight,
        "output.weight": plain.wte.weight,
    }
    state |= {f"decoder.norm.{name}": value for name, value in plain.ln_f.named_parameters()}
    for n, block in enumerate(plain.h):
        names = {"ln_1": "attention_residual.norm", "ln_2": "ffn_residual.norm", "c_proj": "attention.out_proj"}
        names |= {"fc": "ffn.fc1", "proj": "ffn.fc2"}
        for theirs, mine in names.items():
            for part in ("weight", "bias"):
                state[f"decoder.layers.{n}.{mine}.{part}"] = getattr(getattr(block, theirs), part)
        for part in ("weight", "bias"):
            for name, value in zip("qkv", getattr(block.c_attn, part).chunk(3), strict=True):
                state[f"decoder.layers.{n}.attention.{name}_proj.{part}"] = value
    ours.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    return ours


def make_step(model: nn.Module, loss: Callable[[], Tensor], half: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    context: Any = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()

    def step() -> None:
        with context:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(given: argparse.Namespace, rows: int = 4, length: int = 512, layers: int = 12) -> tuple[list[Any], int]:
    """Prints the table; returns its rows, and how many bars fail."""
    keep_freed_memory()
    torch.manual_seed(0)
    plain = Plain(layers, length)
    ours = use_onednn(same_weights(plain, layers, length))
    ids = torch.randint(V, (rows, length + 1))
    read, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    counts = torch.ones_like(labels, dtype=torch.bool)

    def their_loss() -> Tensor:
        return plain(read, labels)

    def our_loss() -> Tensor:
        return token_loss(ours, ours.states(read), labels, counts)  # type: ignore[operator]

    values, gradients = [], []
    for model, loss, table in ((plain, their_loss, plain.wte), (ours, our_loss, ours.embedding)):
        value = loss()
        value.backward()
        values.append(value.detach())
        gradients.append(table.weight.grad.clone())  # type: ignore[union-attr]
        model.zero_grad()
    difference = max(float((b - a).norm() / a.norm()) for a, b in (values, gradients))
    print(f"losses and gradients differ by {difference:.1e} at most")
    print(f"time over nanoGPT's, median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    found, broken = [], int(difference > 1e-4)
    for half in (False, True) if computes_bfloat16() else (False,):
        kind = "bfloat16" if half else "float32"
        theirs = make_step(plain, their_loss, half)
        runs = {"nanoGPT": theirs, "nanoGPT again": theirs, "ours": make_step(ours, our_loss, half)}
        seconds = interleave(runs, rounds=given.rounds, warmup=1, clock=CLOCKS[given.clock])
        memory = {name: peak_memory(run) / 2**20 for name, run in runs.items()}
        for name in runs:
            time, share = ratio(seconds, name, "nanoGPT"), memory[name] / max(memory["nanoGPT"], 1)
            must = name == "ours"
            holds = not must or (time.median <= MUST_TIME and share <= MUST_MEMORY)
            broken += not holds
            row = {"precision": kind, "name": name, "time": time, "MB": memory[name], "memory": share, "holds": holds}
            row["tokens/s"] = labels.numel() / min(seconds[name])
            verdict = f"; must {MUST_TIME} and {MUST_MEMORY}: {'holds' if holds else 'FAILS'}" if must else ""
            text = f"{kind:<9} {name:<14} {time} {row['tokens/s']:6.0f} tokens/s, {memory[name]:6.0f} MB ({share:.2f})"
            print(text + verdict, flush=True)
            found.append(row)
    return found, broken


def main() -> int:
    given = arguments(__doc__, rounds=5, clock="wall", rows=4, length=512, layers=12)
    rows, broken = measure(given, given.rows, given.length, given.layers)
    write_rows(given.json, rows)
    print("a bar fails" if broken else "all bars hold")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
