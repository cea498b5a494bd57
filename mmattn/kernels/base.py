"""The protocol of what happens between the heads, and the decoding states that kernels share."""

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
        """How many tokens have gone in: where the next one stands."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The state by name; the same class called with them as keywords is the same state."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, index: Tensor) -> None:
        """Keeps the rows of the batch that index (N,) names, in that order: beams reordered, finished ones left out."""
        for name, tensor in self.tensors().items():
            setattr(self, name, select_rows(tensor, index))


@dataclass
class KVCache(Cache):
    """All keys and values so far."""

    keys: Tensor  # (B, h_kv, S, d)
    values: Tensor  # (B, h_kv, S, d_v)

    @property
    def length(self) -> int | Tensor:
        return self.keys.shape[2]

    def __post_init__(self) -> None:
        self._keys, self._values = GrowableBuffer(), GrowableBuffer()

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new keys and values and returns all of them."""
        self.keys, self.values = self._keys.append(self.keys, k), self._values.append(self.values, v)
        return self.keys, self.values

    def select(self, index: Tensor) -> None:
        self.keys, self.values = self._keys.select(self.keys, index), self._values.select(self.values, index)


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
            mask: Over all keys, those in the cache included.
            cache: This kernel's own decoding state, updated in place.

        Returns:
            (B, h, L, d_v).
        """
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        """The explicit map W with forward(q, k, v) = finish(W v): (B, h, L, S)."""
        raise NotImplementedError

    def finish(self, out: Tensor) -> Tensor:
        """What follows the weighted sum (B, h, L, d_v), row by row: nothing, but a kernel may normalize."""
        return out

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> Any:
        """An empty decoding state, or None where a cross-attention needs none beside its keys and values.

        Args:
            keys: (B, h_kv, 0, d), none yet: it says sizes, type and device.
            values: (B, h_kv, 0, d_v), likewise.
            cross: For cross-attention, where all keys are given at every call.

        Raises:
            ValueError: The kernel cannot decode with a cache.
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

    def check_causal(self, is_causal: bool, L: int) -> None:
        """Raises where some of L queries beside a cache would have to see keys that come after them."""
        if not is_causal and not (isinstance(L, int) and L == 1):
            raise ValueError(f"attention kind {self.kind!r} decodes with a cache causally; set is_causal in the mask")

    def check_square(self, L: int, S: int) -> None:
        """Raises where there are not as many keys as queries."""
        if not same_size(L, S):
            raise ValueError(f"attention kind {self.kind!r} needs as many keys as queries, found {S} and {L}")


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
