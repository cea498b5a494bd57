"""Shipped models that consist of public weights and an update, which alone is in their folder.

Their config.json names the public weights, `"base": {"name": "minilm", "sha256": ...}` (`mmattn weights`). The weights
file then has the weights that differ from these: whole, or, where the difference is of low rank, as its factors under
the names of a LoRA layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import shorten
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.weights import TABLE

WEIGHT, LORA_A, LORA_B = "weight", "lora_a", "lora_b"  # last parts of the names
NOISE = 1e-4  # singular values of rounding errors, relative to the largest of the update


def describe_base(name: str) -> dict[str, str]:
    """The entry `base` of config.json for named public weights."""
    return {"name": name, "sha256": TABLE[name].sha256}


def check_base(base: Any) -> str:
    """The name of the public weights in an entry `base` of config.json.

    Raises:
        CheckpointError: There are none of that name, or others.
    """
    name = base.get("name") if isinstance(base, dict) else None
    if not isinstance(name, str) or name not in TABLE:
        raise CheckpointError(f"base: expected the name and sha256 of {' or '.join(TABLE)}, found {shorten(base)}.")
    if base.get("sha256") != TABLE[name].sha256:
        expected = f"{name} with the SHA-256 {TABLE[name].sha256}"
        raise CheckpointError(f"base: expected {expected}, found {shorten(base.get('sha256'))}.")
    return name


def subtract_base(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reduces a model's weights to what must be stored beside those of its base.

    Args:
        state: The model's weights.
        base: Weights of the base under the model's names.

    Returns:
        Tensors that the base does not have, in full. Matrices (out, in) that differ from the base's by a matrix of low
        rank: its factors (rank, in) and (out, rank).
    """
    kept = {}
    for name, value in state.items():
        given = base.get(name)
        if given is None or given.shape != value.shape:
            kept[name] = value
        elif not torch.equal(given, value):
            factors = _factors(value - given) if name.endswith(f".{WEIGHT}") and value.ndim == 2 else None
            if factors is None:
                kept[name] = value
            else:
                stem = name.removesuffix(WEIGHT)
                kept[stem + LORA_A], kept[stem + LORA_B] = factors
    return kept


def add_base(update: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `subtract_base`.

    Raises:
        CheckpointError: The factors are not those of a weight of the base; names it.
    """
    state = {**base, **{name: value for name, value in update.items() if not name.endswith((f".{LORA_A}", LORA_B))}}
    for name, a in update.items():
        if not name.endswith(f".{LORA_A}"):
            continue
        stem = name.removesuffix(LORA_A)
        b, given = update.get(stem + LORA_B), base.get(stem + WEIGHT)
        if b is None or given is None or b.shape[-1:] != a.shape[:1] or given.shape != (len(b), *a.shape[1:]):
            found = [None if t is None else tuple(t.shape) for t in (a, b, given)]
            raise CheckpointError(f"{stem}{WEIGHT}: expected factors of its update, found A, B and weight of {found}.")
        state[stem + WEIGHT] = given + b @ a
    return state


def _factors(difference: Tensor) -> tuple[Tensor, Tensor] | None:
    """A (rank, in) and B (out, rank) with the given product; None if the matrix itself has fewer numbers."""
    u, s, v = torch.linalg.svd(difference.double(), full_matrices=False)
    rank = int((s > NOISE * s[0]).sum())
    if rank * sum(difference.shape) >= difference.numel():
        return None
    root = s[:rank].sqrt()
    return (root[:, None] * v[:rank]).float().contiguous(), (u[:, :rank] * root).float().contiguous()
