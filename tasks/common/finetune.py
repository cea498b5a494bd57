"""Helpers for fine-tuning: reading public networks, replacing layers for other labels, initializing missing layers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.building import SPARE, build_on_meta, try_to_build
from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import Source

OTHERS = 10_000  # parameters of layers that are new beside an encoder


def read_network(source: Source, wanted: type[nn.Module], names: str, *, head: Mapping[str, str] | None = None) -> Any:
    """Convert a public network to keywords and weights of this toolkit's class.

    Args:
        source: The location of the checkpoint.
        wanted: The expected class.
        names: Names of the expected public models, for error messages.
        head: Names of the head of a text encoder, such as ``{"qa_outputs.*": "span.*"}``; see `read_pretrained`.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, or of another network.
    """
    from mmattn.pretrained import read_pretrained

    try:
        kind, converted = read_pretrained(**source.place, head=head)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"{source.name}: {str(error).splitlines()[0]}") from None
    if kind is not wanted:
        raise CheckpointError(f"{source.name} holds a {kind.__name__}, expected a {names}.")
    return converted


def without(start: CheckpointParts, prefixes: tuple[str, ...], reason: str) -> CheckpointParts:
    """The parts without the layers whose names begin with `prefixes`; their removal is reported on stderr."""
    kept = {name: value for name, value in start.state.items() if not name.startswith(prefixes)}
    if len(kept) != len(start.state):
        sys.stderr.write(f"{start.where}: {reason}: its last layer is reinitialized.\n")
    return dataclasses.replace(start, state=kept)


def init_missing(
    start: CheckpointParts,
    sizes: Mapping[str, Any],
    seed: int,
    prefixes: tuple[str, ...],
    resized: Collection[str] = (),
    spare: int = SPARE,
) -> CheckpointParts:
    """Adapt checkpoint parts to the sizes of new data: missing layers are initialized, position maps resized.

    All other weights must match.

    Args:
        start: The parts to adapt.
        sizes: Keywords that are determined by the data.
        seed: Seed of the new layers.
        prefixes: Name prefixes of layers that may be missing; if one weight of a prefix is missing, all must be.
        resized: Names of position maps (1, E, h, w) that are interpolated to the size of the data (Dosovitskiy et al.
            2021, section 3.2).
        spare: Number of parameters that the model may have in addition to the source's weights.

    Raises:
        ValueError: The keywords are inconsistent.
    """
    keywords = {**start.keywords, **sizes}
    missing = tuple(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in start.state))
    try_to_build(start.state, start.adapter.build, keywords, (*missing, *resized), spare)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = start.adapter.build(keywords).state_dict()
    new = {name: value for name, value in fresh.items() if name.startswith(missing)}
    state = new | dict(start.state)
    for name in resized:
        if name in state and name in fresh and state[name].shape != fresh[name].shape:
            state[name] = _resized(state[name], fresh[name])
    return dataclasses.replace(start, keywords=keywords, state=state, fresh=frozenset(new))


def init_others(parts: CheckpointParts, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
    """Adapt a public encoder to the sizes of new data: all other layers of the task's model are initialized.

    Args:
        parts: The encoder's keywords and weights, under the names of the task's model.
        sizes: Keywords that are determined by the data.
        seed: Seed of the new layers.
    """
    given = {**parts.keywords, **sizes}
    names = build_on_meta(parts.state, parts.adapter.build, given, OTHERS).state_dict()
    return init_missing(parts, sizes, seed, tuple(name for name in names if name not in parts.state), spare=OTHERS)


def _resized(positions: Tensor, like: Tensor) -> Tensor:
    """Interpolate positions (1, E, h, w) to the height and width of `like`."""
    return torch.nn.functional.interpolate(positions, size=like.shape[2:], mode="bicubic", antialias=True)
