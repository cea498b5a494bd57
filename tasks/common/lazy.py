"""Lazy imports of a package's names (PEP 562). It imports the standard library alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, names: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a package.

    Args:
        package: Full name of the package.
        names: Public names of each of its modules.

    >>> names, get = lazy("mmattn.data", {"errors": ("DataError",)})
    >>> names, get("DataError").__module__
    (['DataError'], 'mmattn.data.errors')
    """
    homes = {name: module for module, known in names.items() for name in known}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return sorted(homes), get
