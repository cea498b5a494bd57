"""Marian in the format of transformers, e.g. the Opus-MT models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..positions import sinusoidal_1d
from .bart import OTHERS, STACKS, stack_keywords
from .keymap import Converted, read, rename, require


def convert_marian(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Converted:
    """Marian (Junczys-Dowmunt et al. 2018): an encoder-decoder as in Vaswani et al. 2017, post-norm.

    Raises:
        ValueError: Positions that are not sinusoidal.
    """
    require(config, {"normalize_embedding": False, "static_position_embeddings": True})
    ours, names = rename(state, STACKS, prefix="model.", ignore=OTHERS)
    for name in ("positions.weight", "target_positions.weight"):
        if name in ours:  # older versions saved them
            _check_sinusoidal(ours.pop(name), names.pop(name))
    keywords = stack_keywords(config, ours, names) | {"positions": "sinusoidal"}
    if not keywords["shared_embeddings"]:
        keywords["target_vocab_size"] = read(config, "decoder_vocab_size", read(config, "vocab_size"))
    return Converted(keywords, ours, names)


def _check_sinusoidal(table: Tensor, name: str) -> None:
    length, embed_dim = table.shape
    expected = sinusoidal_1d(torch.arange(length, dtype=torch.float64), embed_dim)  # (length, E)
    allowed = 1e-4 if table.dtype in (torch.float32, torch.float64) else 1e-2  # rounding of numbers up to 1
    if not torch.allclose(table.double(), expected, rtol=0.0, atol=allowed):
        raise ValueError(f"{name!r} is not the table of sinusoids that Marian has")
