"""The decoding state of transformers: a cache a layer, and what they attend to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..blocks import DecoderLayerCache
from ..kernels.base import select_rows


class CachedState:
    """Caches of a stack of layers, and the memory that they attend to.

    The beams of a sentence share the memory, its keys and its values, and are so many queries to it; only where a
    cross-attention keeps a state of its own has each beam its own row of them.

    Args:
        caches: one a layer, from `make_cache`, empty.
        memory: (B, S, kv_dim), what cross-attention reads; None for a decoder alone.
        memory_mask: (B, S) bool, True = a real token.
        extra: what else a model keeps beside the memory, (B, ...) by name.
    """

    def __init__(
        self,
        caches: list[Any],
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.caches, self.memory, self.memory_mask = caches, memory, memory_mask
        self.extra = dict(extra or {})
        self.beams = 1  # rows a sentence
        self.length = 0  # tokens gone in, a row
        self.shared = all(isinstance(c, DecoderLayerCache) and c.cross_attention.state is None for c in caches)

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
        self.extra = {name: select_rows(tensor, sources) for name, tensor in self.extra.items()}
        self.beams = rows.shape[1]
