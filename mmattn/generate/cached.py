"""The decoding state of transformers: a cache a layer, and beams that share the rows of their sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..masks import Mask


class CachedState:
    """Caches of a stack, the memory it attends to, and which beam goes on from which.

    Where the attention allows it (`merged`), all beams of a sentence append to one row of the cache, and each sees
    what its ancestors wrote: reordering beams then reorders a mask of (B, K, slots), and no key or value moves. The
    memory's keys and values are kept once a sentence as well. Elsewhere a beam is a row, and rows are copied.

    Args:
        caches: one a layer, from `make_cache`, empty.
        merged: whether the attention looks at contents and mask alone, not at where in the cache a key stands.
        memory: (B, S, kv_dim), what cross-attention reads; None for a decoder alone.
        memory_mask: (B, S) bool, True = a real token.
        extra: what else a model keeps for each sentence, (B, ...) by name.
    """

    def __init__(
        self,
        caches: list[Any],
        *,
        merged: bool,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.caches, self.merged = caches, merged
        self.memory, self._memory_mask = memory, memory_mask
        self.extra = dict(extra or {})
        self.beams = 1  # K, rows a sentence
        self.length = 0  # tokens gone in, a row
        self.seen: Tensor | None = None  # (B, K, slots) bool: what each beam descends from; None = all there is
        self.slots: list[int] = []  # at which position each entry of the cache stands

    @property
    def memory_mask(self) -> Mask | None:
        """For the cross-attentions."""
        return None if self._memory_mask is None else Mask(self._memory_mask)

    def advance(self, ids: Tensor) -> tuple[Tensor, Mask]:
        """Takes in new ids (B K, L); L is 1 where there are beams.

        Returns:
            The ids as the stack gets them, (B, K) where merged, and the mask of its self-attention. All of them stand
            at the positions from `length` - L on.
        """
        L, K = ids.shape[1], self.beams if self.merged else 1
        ids = ids.reshape(-1, K * L)  # (B, K) or (B K, L)
        self.slots += [self.length + i for i in range(L) for _ in range(K)]
        self.length += L
        if K == 1 and self.seen is None:
            return ids, Mask(is_causal=True)
        own = torch.eye(K, dtype=torch.bool, device=ids.device).expand(len(ids), K, K)
        self.seen = torch.cat([self._seen(len(ids), K, len(self.slots) - K, ids.device), own], dim=2)  # (B, K, slots)
        return ids, Mask(attn_mask=self.seen[:, None])

    def select(self, rows: Tensor) -> None:
        """See `State.select`."""
        if not self.merged:
            self._keep(rows.flatten())
        else:
            sentences, slots, size = rows[:, 0] // self.beams, len(self.slots), self._size()
            if self.beams > 1 or rows.shape[1] > 1:
                seen = self._seen(size, self.beams, slots, rows.device)[sentences]
                self.seen = seen.gather(1, (rows % self.beams)[:, :, None].expand(-1, -1, slots))  # (B, K, slots)
            if not torch.equal(sentences, torch.arange(size, device=rows.device)):
                self._keep(sentences)
        self.beams = rows.shape[1]

    def _size(self) -> int:
        return next(iter(self.caches[0].tensors().values())).shape[0]

    def _seen(self, sentences: int, beams: int, slots: int, device: torch.device) -> Tensor:
        if self.seen is not None:
            return self.seen
        return torch.ones(sentences, beams, slots, dtype=torch.bool, device=device)

    def _keep(self, index: Tensor) -> None:
        for cache in self.caches:
            cache.select(index)
        if self.memory is not None:
            self.memory = self.memory.index_select(0, index)
        if self._memory_mask is not None:
            self._memory_mask = self._memory_mask.index_select(0, index)
        self.extra = {name: tensor.index_select(0, index) for name, tensor in self.extra.items()}
