"""The decoding state of transformers: a cache a layer, and what they attend to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..blocks import DecoderLayerCache
from ..cpu import select_rows
from ..masks import Mask


class CachedState:
    """Caches of a stack of layers, and the memory that they attend to.

    The beams of a sentence share the memory, its keys and its values, and are so many queries to it; only where a
    cross-attention keeps a state of its own has each beam its own row of them.

    Args:
        caches: One a layer, from `make_cache`, empty.
        memory: (B, S, kv_dim), what cross-attention reads; None for a decoder alone.
        memory_mask: (B, S) bool, True = a real token.
        extra: What else a model keeps beside the memory, (B, ...) by name.
        prompt_mask: (B, P) bool, True = a real token, of prompts of several lengths, padded at the left.

    A step embeds its tokens at `offset`, attends under `mask`, and adds to `length` how many they were.
    """

    def __init__(
        self,
        caches: list[Any],
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
        prompt_mask: Tensor | None = None,
    ) -> None:
        self.caches, self.memory, self.memory_mask = caches, memory, memory_mask
        self.extra = dict(extra or {})
        self.beams = 1  # rows a sentence
        self.length = 0  # tokens gone in, a row, padding included
        self.prompt_mask = prompt_mask
        self.shared = all(isinstance(c, DecoderLayerCache) and c.cross_attention.state is None for c in caches)

    @property
    def offset(self) -> int | Tensor:
        """Where the next token stands: how many real ones have gone in; (N, 1) where rows differ."""
        return self.length if self.prompt_mask is None else self.length - (~self.prompt_mask).sum(1, keepdim=True)

    def mask(self, new: int) -> Mask:
        """What the self-attention of that many new tokens may attend to: all before them but padding."""
        if self.prompt_mask is None:
            return Mask(is_causal=True)
        behind = self.length + new - self.prompt_mask.shape[1]
        return Mask(F.pad(self.prompt_mask, (0, behind), value=True), is_causal=True)  # (N, S)

    def select(self, rows: Tensor) -> None:
        """See `State.select`."""
        index = rows.flatten()
        sources = rows[:, 0] // self.beams if self.shared else index
        for cache in self.caches:
            if isinstance(cache, DecoderLayerCache):
                cache.self_attention.select(index)
                cache.cross_attention.select(sources)
            else:
                cache.select(index)
        if self.memory is not None:
            self.memory = select_rows(self.memory, sources)
        if self.memory_mask is not None:
            self.memory_mask = select_rows(self.memory_mask, sources)
        if self.prompt_mask is not None:
            self.prompt_mask = select_rows(self.prompt_mask, index)
        self.extra = {name: select_rows(tensor, sources) for name, tensor in self.extra.items()}
        self.beams = rows.shape[1]
