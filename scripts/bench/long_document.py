"""A training step of the summarizer on long documents: seconds and memory by length, and their growth.

python scripts/bench/long_document.py [--threads N] [--rounds N] [--longest 16384] [--json FILE]

Batches of one document with a summary of 128 tokens; forward, backward and an optimizer step. The encoder's
self-attention is `sliding_window` (128 tokens on each side) with the first token of every sentence global (sentences of
256 tokens). Required: the step at 16,384 tokens needs less than 16 GB, and time grows linearly from 4,096 tokens on,
with an exponent of at most 1.15. `dense` is measured up to 4,096 tokens for comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import arguments, growth, interleave, machine, peak_memory, write_rows

from mmattn.tasks.common.seq2seq.model import token_loss
from mmattn.tasks.summarization.model import SummarizationModel

SIZES: dict[str, Any] = {
    "embed_dim": 256,
    "num_heads": 4,
    "ffn_dim": 1024,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "hierarchical": False,
}
VOCABULARY, SUMMARY, SENTENCE, WINDOW = 8000, 128, 256, 128
LIMIT, EXPONENT = 16e9, 1.15
DENSE_UP_TO = 4096


def step(kind: str, length: int) -> Callable[[], None]:
    """One training step on a document of `length` tokens."""
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if kind == "sliding_window":
        options = {"attention": {"kind": kind, "window": WINDOW}, "global_tokens": "sentences"}
    model = SummarizationModel(VOCABULARY, **SIZES, dropout=0.1, **options)
    optimizer = torch.optim.AdamW(model.parameters())
    source, target = torch.randint(4, VOCABULARY, (1, length)), torch.randint(4, VOCABULARY, (1, SUMMARY))
    mask, starts = torch.ones_like(source, dtype=torch.bool), torch.arange(0, length, SENTENCE)[None]

    def run() -> None:
        logits = model(source, mask, target, starts).logits
        token_loss(logits, target, torch.ones_like(target, dtype=torch.bool)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> int:
    given = arguments(__doc__, rounds=3, longest=16384)
    lengths = [length for length in (1024, 2048, 4096, 8192, 16384, 32768) if length <= given.longest]
    print(f"a training step, one document; medians of {given.rounds} rounds; {machine()}")
    rows: list[dict[str, Any]] = []
    for kind in ("sliding_window", "dense"):
        for length in lengths:
            if kind == "dense" and length > DENSE_UP_TO:
                continue
            run = step(kind, length)
            run()
            memory = peak_memory(run)
            seconds = sorted(interleave({kind: run}, rounds=given.rounds, warmup=0)[kind])[given.rounds // 2]
            rows.append({"kind": kind, "tokens": length, "seconds": seconds, "bytes": memory})
            print(f"{kind:<16} {length:>6} tokens {seconds:>8.2f} s {memory / 1e9:>7.2f} GB", flush=True)
    failed = []
    windowed = [row for row in rows if row["kind"] == "sliding_window"]
    if windowed[-1]["bytes"] > LIMIT:
        failed.append(f"{windowed[-1]['tokens']} tokens need more than {LIMIT / 1e9:.0f} GB")
    long = [row for row in windowed if row["tokens"] >= 4096]
    if len(long) > 1:
        exponent = growth([row["tokens"] for row in long], [row["seconds"] for row in long])
        print(f"time grows with tokens^{exponent:.2f} from 4,096 on")
        rows.append({"kind": "exponent", "tokens": long[-1]["tokens"], "exponent": exponent})
        if exponent > EXPONENT:
            failed.append(f"an exponent of {exponent:.2f}, expected at most {EXPONENT}")
    write_rows(given.json, rows)
    print("; ".join(failed) or "both hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
