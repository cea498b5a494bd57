"""Names of a package that are imported when they are first used (PEP 562). Standard library alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a package.

    Args:
        package: its full name.
        homes: the module below it in which each name lies.

    >>> names, get = lazy("mmattn.tasks.common", {"nearest": "errors"})
    >>> names, get("nearest").__module__
    (['nearest'], 'mmattn.data.errors')
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return sorted(homes), get
