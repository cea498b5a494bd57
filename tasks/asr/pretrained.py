"""What a recogniser can begin with: a model of ours, whatever its alphabet."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data.asr import ASRProcessor
from tasks.common.pretrained import Parts

TOKEN_ROWS = ("ctc.weight", "ctc.bias", "embedding.weight", "output.weight")


def adopt(start: Parts, fresh: ASRProcessor) -> Parts:
    """The model with a processor for other data: sound as the model knows it, texts as the data have them.

    Where the model's alphabet has all that the data's texts need, it stays. Else what it knows of each token goes to
    the same token's new place, and tokens that it does not know begin anew.

    Args:
        start: what was found.
        fresh: made from the data.
    """
    known: ASRProcessor = start.processor
    wanted, had = (p.tokenizer.tokenizer.get_vocab() for p in (fresh, known))
    if known.units == fresh.units and wanted.keys() <= had.keys():
        tokenizer, units, state = known.tokenizer, known.units, start.state
    else:
        tokenizer, units = fresh.tokenizer, fresh.units
        state = _moved(start.state, [had.get(token) for token in sorted(wanted, key=wanted.__getitem__)])
        shared = len(wanted.keys() & had.keys())
        sys.stderr.write(f"{start.where}: of {len(wanted)} tokens it knows {shared}; the others begin anew.\n")
    own = {name: getattr(known, name) for name in ("normalize", "mean", "std")}
    processor = ASRProcessor(known.mel, tokenizer, units, max_seconds=fresh.max_seconds, **own)
    return dataclasses.replace(start, state=state, processor=processor)


def _moved(state: Mapping[str, Tensor], order: list[int | None]) -> dict[str, Tensor]:
    """Weights with a row a token, in another order; a new token gets the mean of all."""
    moved = dict(state)
    for name, value in state.items():
        if name.endswith(TOKEN_ROWS):
            mean = value.float().mean(0).to(value.dtype)
            moved[name] = torch.stack([mean if place is None else value[place] for place in order])
    return moved


def fitted(start: Parts, sizes: Mapping[str, Any]) -> Parts:
    """What training begins with, for data of these sizes."""
    return dataclasses.replace(start, keywords={**start.keywords, **sizes})
