"""What fine-tuning has in common: public networks, other labels than the model's own, layers that are missing."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.tasks.common.adapter import CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import Source


def read_network(source: Source, wanted: type[nn.Module], names: str) -> Any:
    """A public network as keywords and weights of ours.

    Args:
        source: Where.
        wanted: Our class for it.
        names: What that stands for, for messages.

    Raises:
        CheckpointError: Damaged, incomplete, or another kind of network.
    """
    from mmattn.pretrained import read_pretrained

    try:
        kind, converted = read_pretrained(**source.place)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"{source.name}: {str(error).splitlines()[0]}") from None
    if kind is not wanted:
        raise CheckpointError(f"{source.name} holds a {kind.__name__}, expected a {names}.")
    return converted


def without(start: CheckpointParts, prefixes: tuple[str, ...], reason: str) -> CheckpointParts:
    """The parts without the layers of such names, where they have some; says so."""
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
) -> CheckpointParts:
    """What training begins with, for data of these sizes: new layers are drawn, position maps resized.

    Everything else must fit.

    Args:
        start: What was found.
        sizes: The keywords that the data decide.
        seed: Of the new layers.
        prefixes: Names by which layers begin that may be missing, all that begin so.
        resized: Names of position maps (1, E, h, w), brought to the size that the data ask for (Dosovitskiy et al.
            2021, section 3.2).

    Raises:
        ValueError: Keywords that do not go together.
    """
    keywords = {**start.keywords, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = start.adapter.build(keywords).state_dict()
    missing = tuple(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in start.state))
    state = {name: value for name, value in fresh.items() if name.startswith(missing)} | dict(start.state)
    for name in resized:
        if name in state and name in fresh and state[name].shape != fresh[name].shape:
            state[name] = _resized(state[name], fresh[name])
    return dataclasses.replace(start, keywords=keywords, state=state)


def _resized(positions: Tensor, like: Tensor) -> Tensor:
    """(1, E, h, w) to the other's height and width."""
    return torch.nn.functional.interpolate(positions, size=like.shape[2:], mode="bicubic", antialias=True)
