"""Compare a training step of an encoder-decoder with transformers' Marian: same weights, batch, loss and optimizer.

python scripts/bench/training.py [--threads N] [--rounds N] [--sentences N] [--clock wall|cpu] [--json FILE]

Forward, backward and AdamW of d_model 512, 6 + 6 layers, 8 heads, ffn 2048, a vocabulary of 32,000, dropout 0.1, on a
batch of padded sentences of 10 to 40 tokens, as of a wide length bucket. Without dropout both models must give the same
loss and gradient. Required: in float32 at most 1.02 times transformers' time; exit 1 if not. Also reported are bfloat16
by autocast with the fused AdamW, and real target tokens per second. `language_training.py` follows, a language model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import language_training
import torch
from common import CLOCKS, arguments, interleave, machine, ratio, write_rows
from generation import PAD, START, VOCABULARY, random_marian
from torch import Tensor, nn

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.onednn import use_onednn
from mmattn.pretrained.marian import convert_marian
from mmattn.tasks.common.seq2seq.model import token_loss

MUST = 1.02
YARDSTICK, AGAIN = "transformers float32", "transformers again"
DROPOUT = 0.1


class Batch(NamedTuple):
    """A batch of sentence pairs, padded at the right."""

    source: Tensor  # (B, S) long
    source_mask: Tensor  # (B, S) bool
    target: Tensor  # (B, L) long, the decoder's input, beginning with the start token
    labels: Tensor  # (B, L) long
    label_mask: Tensor  # (B, L) bool


def make_batch(sentences: int) -> Batch:
    """Random tokens with lengths distributed as those of sentences; target lengths are close to source lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = (torch.randn(sentences, generator=generator) * 7 + 24).round().long().clamp(10, 40)
    target_lengths = (lengths + torch.randint(-3, 4, (sentences,), generator=generator)).clamp_min(5)

    def draw(lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return torch.randint(3, VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, PAD), mask

    (source, source_mask), (labels, label_mask) = draw(lengths), draw(target_lengths)
    target = torch.cat([torch.full_like(labels[:, :1], START), labels[:, :-1]], dim=1)
    return Batch(source, source_mask, target, labels, label_mask)


def our_loss(model: nn.Module, batch: Batch) -> Tensor:
    return token_loss(model(batch.source, batch.source_mask, batch.target), batch.labels, batch.label_mask)


def their_loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(
        input_ids=batch.source,
        attention_mask=batch.source_mask.long(),
        decoder_input_ids=batch.target,
        labels=batch.labels.masked_fill(~batch.label_mask, -100),
        use_cache=False,
    ).loss


def set_dropout(model: nn.Module, share: float) -> None:
    """Set all dropouts of either model: of embeddings, of sublayer outputs, and in the feed-forward networks."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float) and hasattr(module, "fc1"):
                setattr(module, name, share)
        if hasattr(module, "embed_positions"):
            module.dropout = share


def make_step(loss: Callable[..., Tensor], model: nn.Module, batch: Batch, half: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=half or None)
    context: Any = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()

    def step() -> None:
        with context:
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def same_gradient(theirs: nn.Module, ours: nn.Module, batch: Batch) -> float:
    """The largest relative difference of the losses and of the gradients of the shared embeddings, without dropout."""
    values, gradients = [], []
    for loss, model, table in ((their_loss, theirs, "model.shared.weight"), (our_loss, ours, "embedding.weight")):
        set_dropout(model, 0.0)
        value = loss(model, batch)
        value.backward()
        parameters = dict(model.named_parameters())
        values.append(value.detach())
        gradients.append(parameters[table].grad.clone())
        model.zero_grad()
        set_dropout(model, DROPOUT)
    differences = [(b - a).norm() / a.norm() for a, b in (values, gradients)]
    return float(max(differences))


def main() -> int:
    given = arguments(__doc__, rounds=7, sentences=16, clock="wall")
    batch = make_batch(given.sentences)
    theirs = random_marian().train()
    converted = convert_marian(theirs.config.to_dict(), theirs.state_dict())
    models = []
    for _ in range(2):
        model = Seq2Seq(**converted.keywords).train()
        model.load_state_dict(converted.state)
        models.append(model)
    ours, half = models
    use_onednn(ours)  # as `fit` does
    difference = same_gradient(theirs, ours, batch)
    set_dropout(half, DROPOUT)
    theirs_step = make_step(their_loss, theirs, batch)
    runs = {
        YARDSTICK: theirs_step,
        AGAIN: theirs_step,
        "ours float32": make_step(our_loss, ours, batch),
        "ours bfloat16, fused": make_step(our_loss, half, batch, half=True),
    }
    seconds = interleave(runs, rounds=given.rounds, warmup=1, clock=CLOCKS[given.clock])
    tokens = int(batch.label_mask.sum())
    waste = 1 - tokens / batch.labels.numel()
    print(f"{tokens} target tokens, {waste:.0%} padding; losses and gradients differ by {difference:.1e} at most")
    print(f"time over transformers', median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    rows, broken = [], difference > 1e-4
    for name in runs:
        time = ratio(seconds, name, YARDSTICK)
        must = MUST if name == "ours float32" else None
        row = {"name": name, "time": time, "tokens/s": tokens / min(seconds[name]), "must": must}
        broken |= must is not None and time.median > must
        verdict = "" if must is None else f"; must {must}: {'holds' if time.median <= must else 'FAILS'}"
        print(f"{name:<22} {time}  {row['tokens/s']:7.0f} tokens/s{verdict}")
        rows.append(row)
    more, failed = language_training.measure(given)
    rows, broken = rows + more, bool(broken or failed)
    write_rows(given.json, rows)
    print("a bar fails" if broken else "all bars hold")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
