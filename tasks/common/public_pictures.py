"""Public models that read pictures: what reading them, and going on from them with other classes, have in common."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.readers import read_json
from tasks.common.errors import CheckpointError
from tasks.common.pretrained import Parts, Source

PREPROCESSING = "preprocessor_config.json"  # transformers'
STATISTICS = {  # where a folder does not say how its pictures were normalised: ImageNet's, as most were
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def read_network(source: Source, wanted: type[nn.Module], names: str) -> Any:
    """A public network as keywords and weights of ours.

    Args:
        source: where.
        wanted: our class for it.
        names: what that stands for, for messages.

    Raises:
        CheckpointError: damaged, incomplete, or another kind of network.
    """
    from mmattn.pretrained import read_pretrained

    try:
        kind, converted = read_pretrained(**source.place)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise CheckpointError(f"{source.name}: {str(error).splitlines()[0]}") from None
    if kind is not wanted:
        raise CheckpointError(f"{source.name} holds a {kind.__name__}, expected a {names}.")
    return converted


def statistics(source: Source) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the pictures, of pixel values in 0..1, from transformers' or timm's file."""
    told: Mapping[str, Any] = dict(source.config) | dict(source.config.get("pretrained_cfg") or {})
    path = source.fetch(PREPROCESSING)
    if path is not None:
        told = read_json(path)
    if told.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    else:
        mean, std = (told.get(f"image_{key}") or told.get(key) or STATISTICS[key] for key in ("mean", "std"))
    # What is normalised are pixel values from 0 to this.
    top = 255.0 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255.0
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"{source.name}: expected a model of pictures in colour, found mean {list(mean)}.")
    if abs(top - 1) < 1e-6:
        return {"mean": tuple(mean), "std": tuple(std)}
    return {"mean": tuple(m / top for m in mean), "std": tuple(s / top for s in std)}


def without(start: Parts, prefixes: tuple[str, ...], reason: str) -> Parts:
    """The parts without the layers of such names, where they have some; says so."""
    kept = {name: value for name, value in start.state.items() if not name.startswith(prefixes)}
    if len(kept) != len(start.state):
        sys.stderr.write(f"{start.where}: {reason}: its last layer begins anew.\n")
    return dataclasses.replace(start, state=kept)


def completed(
    start: Parts,
    model_class: type[nn.Module],
    sizes: Mapping[str, Any],
    seed: int,
    prefixes: tuple[str, ...],
    resized: Collection[str] = (),
) -> Parts:
    """What training begins with, for data of these sizes: new layers are drawn, position maps resized.

    Everything else must fit.

    Args:
        start: what was found.
        model_class: of the task.
        sizes: the keywords that the data decide.
        seed: of the new layers.
        prefixes: names by which layers begin that may be missing, all that begin so.
        resized: names of position maps (1, E, h, w), brought to the size that the data ask for (Dosovitskiy et al.
            2021, section 3.2).

    Raises:
        ValueError: keywords that do not go together.
    """
    keywords = {**start.keywords, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = model_class(**keywords).state_dict()
    missing = tuple(prefix for prefix in prefixes if not any(name.startswith(prefix) for name in start.state))
    state = {name: value for name, value in fresh.items() if name.startswith(missing)} | dict(start.state)
    for name in resized:
        if name in state and name in fresh and state[name].shape != fresh[name].shape:
            state[name] = _resized(state[name], fresh[name])
    return dataclasses.replace(start, keywords=keywords, state=state)


def _resized(positions: Tensor, like: Tensor) -> Tensor:
    """(1, E, h, w) to the other's height and width."""
    return torch.nn.functional.interpolate(positions, size=like.shape[2:], mode="bicubic", antialias=True)
