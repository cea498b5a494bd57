"""Attention kernels by name: an explicit table, and the function that builds from it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from .adaptive_span import AdaptiveSpan
from .additive import Additive
from .base import FEATURES, Cache, Kernel, KVCache
from .cosine import Cosine
from .dense import Dense
from .differential import Differential
from .hard import Hard
from .linear import Linear
from .local import Local
from .low_rank import LowRank
from .lsh import LSH
from .monotonic import Monotonic
from .sigmoid import Sigmoid
from .sliding_window import SlidingWindow
from .sparse import Sparse

KERNELS: dict[str, type[Kernel]] = {
    "adaptive_span": AdaptiveSpan,
    "additive": Additive,
    "cosine": Cosine,
    "dense": Dense,
    "differential": Differential,
    "hard": Hard,
    "linear": Linear,
    "local": Local,
    "low_rank": LowRank,
    "lsh": LSH,
    "monotonic": Monotonic,
    "sigmoid": Sigmoid,
    "sliding_window": SlidingWindow,
    "sparse": Sparse,
}


def kernel_class(kind: str) -> type[Kernel]:
    """Returns the kernel class of a name.

    Raises:
        ValueError: An unknown name; the message has the nearest one.
    """
    if kind not in KERNELS:
        raise ValueError(
            f"unknown attention kind {kind!r}{_nearest(kind, KERNELS)}; the kinds are: {', '.join(sorted(KERNELS))}"
        )
    return KERNELS[kind]


def kernel_options(kind: str) -> dict[str, Any]:
    """Returns the options of a kernel with their defaults (``inspect.Parameter.empty`` for required ones).

    >>> kernel_options("dense")
    {'dropout': 0.0}
    """
    parameters = inspect.signature(kernel_class(kind)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def kinds_supporting(needs: Iterable[str]) -> list[str]:
    """Returns the names of the kernels that support all of needs.

    >>> "monotonic" in kinds_supporting({"self"})
    False
    """
    needs = frozenset(needs)
    return sorted(kind for kind, kernel in KERNELS.items() if needs <= kernel.supports)


def build_kernel(
    kind: str, options: Mapping[str, Any] | None = None, *, num_heads: int, head_dim: int, needs: Iterable[str] = ()
) -> Kernel:
    """Builds a kernel by name; its options are checked against its signature.

    Args:
        kind: A name in KERNELS.
        options: The kernel's own keywords.
        num_heads: h.
        head_dim: d.
        needs: Features, of FEATURES, that will be used; a kernel without them raises here and not in training.

    Raises:
        ValueError: An unknown kind or option (the message has the nearest one), or a need that the kernel lacks.
    """
    kernel = kernel_class(kind)
    needs = frozenset(needs)
    unknown = sorted(needs - set(FEATURES))
    if unknown:
        raise ValueError(f"unknown attention feature {unknown[0]!r}; the features are: {', '.join(FEATURES)}")
    try:
        kernel.require(needs)
    except ValueError as error:
        raise ValueError(f"{error}; kinds that do: {', '.join(kinds_supporting(needs)) or 'none'}") from None
    known = kernel_options(kind)
    for name in options or {}:
        if name not in known:
            owners = [other for other in sorted(KERNELS) if name in kernel_options(other)]
            hint = f" (an option of {', '.join(owners)})" if owners else _nearest(name, known)
            has = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"attention kind '{kind}' has no option {name!r}{hint}; {has}")
    missing = [
        name for name, default in known.items() if default is inspect.Parameter.empty and name not in (options or {})
    ]
    if missing:
        raise ValueError(f"attention kind '{kind}' needs the option {missing[0]!r}")
    return kernel(num_heads, head_dim, **(options or {}))


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


__all__ = [
    "FEATURES",
    "KERNELS",
    "Cache",
    "KVCache",
    "Kernel",
    "build_kernel",
    "kernel_class",
    "kernel_options",
    "kinds_supporting",
]
