"""Cached decoding of transformers: one cache per layer, and the memory of cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..blocks import Decoder, DecoderLayerCache
from ..cpu import select_rows
from ..masks import Mask


class CachedState:
    """Caches of a stack of layers, and the memory that they attend to.

    The beams of a sentence share the memory, its keys and its values, and are separate queries to it; only if the
    cross-attention kernel has a state does each beam have a row of its own.

    Args:
        caches: One empty cache per layer, from `make_cache`.
        memory: (B, S, kv_dim), the memory of cross-attention; None for a decoder-only model.
        memory_mask: (B, S) bool, True = a real token.
        extra: Other tensors of a model's state, (B, ...) by name.
        prompt_mask: (B, P) bool, True = a real token, of prompts of several lengths, padded at the left.

    A step embeds its tokens at `offset`, attends under `mask`, and adds the number of its tokens to `length`.
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
        self.beams = 1  # rows per sentence
        self.length = 0  # tokens per row so far, padding included
        self.prompt_mask = prompt_mask
        self.plan: list[Any] = []  # what a model prepares for its steps
        self.shared = all(isinstance(c, DecoderLayerCache) and c.cross_attention.state is None for c in caches)

    @property
    def offset(self) -> int | Tensor:
        """Position of the next token, i.e. the number of real tokens so far; (N, 1) if rows differ."""
        return self.length if self.prompt_mask is None else self.length - (~self.prompt_mask).sum(1, keepdim=True)

    def mask(self, new: int) -> Mask:
        """Returns the self-attention mask of that many new tokens: causal, without padding."""
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


class CachedSteps:
    """Decoding, at once or step by step, of a network with a `Decoder` over a memory.

    A network has a stack ``decoder``, a module ``output`` from states to logits, and the method `embed_target`.
    """

    decoder: Decoder
    output: Any

    def embed_target(self, ids: Tensor, offset: int | Tensor = 0) -> Tensor:
        """Returns the decoder's input (B, L, E) for ids (B, L), the first of them at position offset."""
        raise NotImplementedError

    def decode(self, decoder_input_ids: Tensor, memory: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Returns the decoder's causal states (B, L, E) for decoder_input_ids (B, L) and a memory (B, S, kv_dim)."""
        memory_mask = None if key_mask is None else Mask(key_mask)
        return self.decoder(self.embed_target(decoder_input_ids), memory, Mask(is_causal=True), memory_mask)

    def start_from(
        self,
        memory: Tensor,
        key_mask: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
        prompt_mask: Tensor | None = None,
    ) -> CachedState:
        """Makes the state that `step` continues from, of a memory (B, S, kv_dim); see `CachedState`."""
        return CachedState(self.decoder.make_cache(len(memory)), memory, key_mask, extra, prompt_mask)

    def step(self, ids: Tensor, state: CachedState) -> Tensor:
        """Maps new target ids (N, L) to the logits (N, V) of the next one."""
        return self.output(self.advance(ids, state))

    def advance(self, ids: Tensor, state: CachedState) -> Tensor:
        """Maps new target ids (N, L) to the decoder's state (N, E) at the last of them."""
        assert state.memory is not None
        memory_mask = None if state.memory_mask is None else Mask(state.memory_mask)
        x = self.embed_target(ids, state.offset)  # (N, L, E)
        x = self.decoder(x, state.memory, state.mask(ids.shape[1]), memory_mask, state.caches)
        state.length += ids.shape[1]
        return x[:, -1]  # (N, E)
