"""The protocol of what happens between the heads, and the decoding states that kernels share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..functional import repeat_heads
from ..masks import Mask

FEATURES = {
    "self": "bidirectional self-attention",
    "causal": "causal attention",
    "cross": "cross-attention",
    "bias": "a position bias",
    "cache": "cached decoding",
    "global": "global tokens",
}


@dataclass
class Cache:
    """The decoding state of one attention: named tensors, batch first, so that it flattens for export."""

    @property
    def length(self) -> int | Tensor:
        """How many tokens have gone in: where the next one stands."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The state by name; the same class called with them as keywords is the same state."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, index: Tensor) -> None:
        """Keeps the rows of the batch that index (N,) names, in that order: beams reordered, finished ones left out."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.index_select(0, index))


@dataclass
class KVCache(Cache):
    """All keys and values so far."""

    keys: Tensor  # (B, h_kv, S, d)
    values: Tensor  # (B, h_kv, S, d_v)

    @property
    def length(self) -> int | Tensor:
        return self.keys.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new keys and values and returns all of them."""
        if torch.is_inference_mode_enabled():  # nothing there needs what was before: written in place, with room ahead
            self.keys, self.values = self._write("keys", k), self._write("values", v)
        else:
            if self.keys.shape[2]:
                k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
            self.keys, self.values = k, v
        return self.keys, self.values

    def __post_init__(self) -> None:
        self._room: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # name -> what has room, and the part of it that was handed out

    def _write(self, name: str, new: Tensor) -> Tensor:
        old = getattr(self, name)
        start, end = old.shape[2], old.shape[2] + new.shape[2]
        room, part = self._room.get(name, (new, new))
        if part is not old or end > room.shape[2]:  # another tensor was put in its place, or it is full
            room = new.new_empty(*new.shape[:2], max(32, 2 * end), new.shape[3])
            room[:, :, :start] = old
        room[:, :, start:end] = new
        part = room[:, :, :end]
        self._room[name] = (room, part)
        return part


class Kernel(nn.Module):
    """What happens between the heads: queries, keys and values in, a weighted sum of values out.

    A subclass names what it supports; its keyword-only constructor arguments are its options. It never ignores what it
    cannot honour: `check` raises.

    Args:
        num_heads: h, query heads.
        head_dim: d, size of a query or key head.
    """

    kind: ClassVar[str]
    supports: ClassVar[frozenset[str]]  # of FEATURES
    shares_qk: ClassVar[bool] = False  # keys are the queries: forward gets k = q, and no k_proj is made
    orderless: ClassVar[bool] = False  # weights depend on contents, mask and bias, not on where in the tensor a key is
    dropout: float = 0.0  # of attention weights, where the kernel has it

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: Any = None) -> Tensor:
        """Attends.

        Args:
            q: (B, h, L, d).
            k: (B, h_kv, S, d), new keys only where there is a cache.
            v: (B, h_kv, S, d_v).
            mask: over all keys, those in the cache included.
            cache: this kernel's own decoding state, updated in place.

        Returns:
            (B, h, L, d_v).
        """
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        """The explicit map W with forward(q, k, v) = finish(W v): (B, h, L, S)."""
        raise NotImplementedError

    def finish(self, out: Tensor) -> Tensor:
        """What follows the weighted sum (B, h, L, d_v), row by row: nothing, but a kernel may normalise."""
        return out

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> Any:
        """An empty decoding state, or None where a cross-attention needs none beside its keys and values.

        Args:
            keys: (B, h_kv, 0, d), none yet: it says sizes, type and device.
            values: (B, h_kv, 0, d_v), likewise.
            cross: for cross-attention, where all keys are given at every call.

        Raises:
            ValueError: the kernel cannot decode with a cache.
        """
        self.require({"cache"})
        return None if cross else KVCache(keys, values)

    @classmethod
    def require(cls, needs: Iterable[str]) -> None:
        """Raises a ValueError that names what of needs the kernel lacks."""
        missing = [FEATURES.get(name, name) for name in sorted(frozenset(needs) - cls.supports)]
        if missing:
            raise ValueError(
                f"attention kind '{cls.kind}' does not support {' or '.join(missing)} "
                f"(it supports: {', '.join(name for name in FEATURES if name in cls.supports)})"
            )

    def check(self, mask: Mask | None, cache: Any = None) -> None:
        """Raises where the kernel cannot honour the mask or the cache."""
        if mask is not None:
            self.require(mask.features)
        if cache is not None:
            self.require({"cache"})


def count_blocks(length: int, block: int) -> int:
    """How many blocks hold a sequence; one more while exporting: a graph made for several refuses to run on one."""
    return (length + block - 1) // block + (0 if isinstance(length, int) else 1)


class ExplicitKernel(Kernel):
    """A kernel that computes its weights in full: a subclass gives `weights`."""

    supports = frozenset({"self", "causal", "cross", "bias", "cache"})

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        if cache is not None:
            k, v = cache.append(k, v)
        weights = self.weights(q, k, mask)  # (B, h, L, S)
        if self.dropout:
            weights = nn.functional.dropout(weights, self.dropout, self.training)
        return weights @ repeat_heads(v, q.shape[1])
