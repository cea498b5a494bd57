"""The items that users pass to a predictor: lists, mappings, or bare inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError


def listed(items: Any) -> Sequence[Any]:
    """The items passed to `predict`.

    Raises:
        DataError: A single item was passed instead of a list.
    """
    if isinstance(items, (str, bytes, Path, Mapping)) or not hasattr(items, "__getitem__") or hasattr(items, "shape"):
        raise DataError("predict", "a list of items", "one item: write predict([item]), or call the predictor with it")
    found: Sequence[Any] = items
    return found


def single(item: Any, instead: str) -> Any:
    """The single item passed to a predictor.

    Raises:
        DataError: A list was passed instead of one item.
    """
    if isinstance(item, list):
        raise DataError("predictor", f"one item; for a list write {instead}", f"a list of {len(item)}")
    return item


def mapping_of(item: Any, key: str) -> Mapping[str, Any]:
    """An item as a mapping. A bare input is put under `key`; the id of a path is the path itself."""
    if isinstance(item, Mapping):
        return item
    return {key: item} | ({"id": str(item)} if isinstance(item, (str, Path)) else {})


def name_of(item: Mapping[str, Any], number: int, wanted: Sequence[str]) -> str:
    """The id of an item, or its number if it has none.

    Raises:
        DataError: One of the `wanted` keys is missing; the message names the item.
    """
    name = str(item.get("id", number))
    if any(item.get(key) is None for key in wanted):
        keys = f"the key{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}"
        raise DataError(f"item {name}", keys, ", ".join(sorted(item)) or "none")
    return name
