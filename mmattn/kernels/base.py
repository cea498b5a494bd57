"""The base class of attention kernels, and the decoding states that they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from ..cpu import GrowableBuffer, select_rows
from ..functional import repeat_heads
from ..masks import Mask, same_size

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
        """Number of tokens so far, i.e. the position of the next one."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors by name; calling the class with them as keywords restores the state."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, index: Tensor) -> None:
        """Selects the rows of the batch given by index (N,), in that order, e.g. to reorder or remove beams."""
        for name, tensor in self.tensors().items():
            setattr(self, name, select_rows(tensor, index))


@dataclass
class KVCache(Cache):
    """A cache of all keys and values so far."""

    keys: Tensor  # (B, h_kv, S, d)
    values: Tensor  # (B, h_kv, S, d_v)

    @property
    def length(self) -> int | Tensor:
        return self.keys.shape[2]

    def __post_init__(self) -> None:
        self._keys, self._values = GrowableBuffer(), GrowableBuffer()

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends new keys and values and returns all of them."""
        self.keys, self.values = self._keys.append(self.keys, k), self._values.append(self.values, v)
        return self.keys, self.values

    def select(self, index: Tensor) -> None:
        self.keys, self.values = self._keys.select(self.keys, index), self._values.select(self.values, index)


class Kernel(nn.Module):
    """Base class of kernels, which map queries, keys and values of all heads to weighted sums of values.

    A subclass declares the features that it supports; its keyword-only constructor arguments are its options. An
    unsupported mask or cache is never ignored: `check` raises.

    Args:
        num_heads: h, query heads.
        head_dim: d, size of a query or key head.
    """

    kind: ClassVar[str]
    supports: ClassVar[frozenset[str]]  # of FEATURES
    shares_qk: ClassVar[bool] = False  # keys are the queries: forward gets k = q, and there is no k_proj
    dropout: float = 0.0  # of attention weights, if the kernel supports it

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: Any = None) -> Tensor:
        """Computes attention.

        Args:
            q: (B, h, L, d).
            k: (B, h_kv, S, d), with a cache the new keys only.
            v: (B, h_kv, S, d_v).
            mask: Mask over all keys, including those in the cache.
            cache: This kernel's decoding state, updated in place.

        Returns:
            (B, h, L, d_v).
        """
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        """Returns the explicit map W with forward(q, k, v) = finish(W v): (B, h, L, S)."""
        raise NotImplementedError

    def finish(self, out: Tensor) -> Tensor:
        """Transforms the weighted sum (B, h, L, d_v) row by row: identity by default, a norm in some kernels."""
        return out

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> Any:
        """Makes an empty decoding state, or None if a cross-attention needs none beside its keys and values.

        Args:
            keys: (B, h_kv, 0, d), empty, which determines sizes, type and device.
            values: (B, h_kv, 0, d_v), likewise.
            cross: Whether it is for cross-attention, which gets all keys at every call.

        Raises:
            ValueError: The kernel does not support cached decoding.
        """
        self.require({"cache"})
        return None if cross else KVCache(keys, values)

    @classmethod
    def require(cls, needs: Iterable[str]) -> None:
        """Raises a ValueError that names the needs that the kernel lacks."""
        missing = [FEATURES.get(name, name) for name in sorted(frozenset(needs) - cls.supports)]
        if missing:
            raise ValueError(
                f"attention kind '{cls.kind}' does not support {' or '.join(missing)} "
                f"(it supports: {', '.join(name for name in FEATURES if name in cls.supports)})"
            )

    def check(self, mask: Mask | None, cache: Any = None) -> None:
        """Raises a ValueError if the kernel does not support the mask or the cache."""
        if mask is not None:
            self.require(mask.features)
        if cache is not None:
            self.require({"cache"})

    def check_causal(self, is_causal: bool, L: int) -> None:
        """Raises a ValueError if, with a cache, some of L queries would attend to later keys."""
        if not is_causal and not (isinstance(L, int) and L == 1):
            raise ValueError(f"attention kind {self.kind!r} decodes with a cache causally; set is_causal in the mask")

    def check_square(self, L: int, S: int) -> None:
        """Raises a ValueError unless there are as many keys as queries."""
        if not same_size(L, S):
            raise ValueError(f"attention kind {self.kind!r} needs as many keys as queries, found {S} and {L}")


def count_blocks(length: int, block: int) -> int:
    """Returns the number of blocks of a sequence; one more for export, as a graph of several does not run on one."""
    return (length + block - 1) // block + (0 if isinstance(length, int) else 1)


class ExplicitKernel(Kernel):
    """A kernel that computes its weights explicitly: a subclass implements `weights`."""

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
