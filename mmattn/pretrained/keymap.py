"""Conversion of foreign state dicts by a table of names; keys that no pattern matches are errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
DROPPED = "dropped."  # before our names of a head's tensors that a file need not have
Table = Mapping[str, str | tuple[str, ...]]


class Converted(NamedTuple):
    """A converted public checkpoint."""

    keywords: dict[str, Any]  # of the model's constructor
    state: dict[str, Tensor]  # the model's state dict
    names: dict[str, str]  # foreign name of each key, for messages


def rename(
    state: Mapping[str, Tensor],
    table: Table,
    *,
    prefix: str = "",
    ignore: Collection[str] = (),
    required: Collection[str] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renames every key by a table of patterns.

    In a pattern, # matches a number and * "weight" or "bias"; both are substituted on the right. Several names on the
    right get equal parts of the tensor's first dimension, which splits packed projections.

    Args:
        state: Foreign keys and tensors.
        table: Pattern to name or names of this package.
        prefix: Prefix that is removed from keys (of a model inside a task's model).
        ignore: Modules and tensors to ignore (heads, buffers), by their foreign names.
        required: Patterns of the table that must match a key.

    Returns:
        The renamed state dict, and the foreign name of each of its keys.

    Raises:
        ValueError: Keys that match neither the table nor ignore, two keys with the same name, a packed tensor that does
            not split, or a required pattern without a key.

    >>> found, _ = rename({"net.h.3.qkv.weight": torch.zeros(6, 2)}, {"h.#.qkv.*": ("#.q.*", "#.k.*")}, prefix="net.")
    >>> {name: tuple(tensor.shape) for name, tensor in found.items()}
    {'3.q.weight': (3, 2), '3.k.weight': (3, 2)}
    """
    patterns = [(pattern, _listed(ours), _compile(pattern)) for pattern, ours in table.items()]
    missing = set(required)
    found: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown = []
    for key, tensor in state.items():
        bare = key.removeprefix(prefix)
        if any(bare == name or bare.startswith(name + ".") for name in ignore):
            continue
        matches = ((pattern, match, ours) for pattern, ours, like in patterns if (match := like.fullmatch(bare)))
        pattern, match, targets = next(matches, ("", None, ()))
        if match is None:
            unknown.append(key)
            continue
        missing.discard(pattern)
        if tensor.dim() and tensor.shape[0] % len(targets):
            raise ValueError(f"{key!r} of shape {tuple(tensor.shape)} does not split into {len(targets)} equal parts")
        parts = [tensor] if len(targets) == 1 else tensor.chunk(len(targets))
        for target, part in zip(targets, parts, strict=True):
            name = _fill(target, match.groups())
            if name in found:
                raise ValueError(f"keys {names[name]!r} and {key!r} have the same name here")
            found[name], names[name] = part, key
    if missing:
        raise ValueError(f"missing {_some(missing)}")
    if unknown:
        raise ValueError(f"unknown {_some(unknown)}")
    return found, names


def rename_back(
    state: Mapping[str, Tensor], table: Table, *, prefix: str = "", bare: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Gives every tensor its foreign name, by the table that `rename` reads; the first pattern of each name counts.

    Args:
        state: Our names and tensors.
        table: Foreign pattern to our name, as of `rename`, without packed tensors.
        prefix: Prefix of the foreign names.
        bare: Beginnings of foreign names that have no prefix.

    Raises:
        ValueError: A name that the table does not have.

    >>> rename_back({"1.q.weight": torch.zeros(2)}, {"h.#.query.*": "#.q.*"}, prefix="net.")
    {'net.h.1.query.weight': tensor([0., 0.])}
    """
    patterns: dict[str, str] = {}
    for foreign, ours in table.items():
        if isinstance(ours, str):
            patterns.setdefault(ours, foreign)
    compiled = [(_compile(ours), foreign) for ours, foreign in patterns.items()]
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        matches = ((match, foreign) for like, foreign in compiled if (match := like.fullmatch(name)))
        match, foreign = next(matches, (None, ""))
        if match is None:
            raise ValueError(f"{name} has no name there")
        filled = _fill(foreign, match.groups())
        found[filled if filled.startswith(bare or ("\0",)) else prefix + filled] = tensor.contiguous()
    return found


def required_names(head: Table | None) -> list[str]:
    """Returns the patterns of a head that must match a key: those whose names do not begin with ``dropped.``."""
    return [pattern for pattern, ours in (head or {}).items() if not str(ours).startswith(DROPPED)]


def within(table: Table, theirs: str, ours: str) -> dict[str, str | tuple[str, ...]]:
    """Returns the table of a part of a model: with a prefix before the foreign names, and one before ours.

    >>> within({"fc.*": "fc1.*", "qkv.*": ("q.*", "k.*")}, "text.", "decoder.")
    {'text.fc.*': 'decoder.fc1.*', 'text.qkv.*': ('decoder.q.*', 'decoder.k.*')}
    """
    return {
        theirs + name: ours + target if isinstance(target, str) else tuple(ours + each for each in target)
        for name, target in table.items()
    }


def load_into(model: nn.Module, converted: Converted) -> None:
    """Loads a converted state dict, strictly.

    Raises:
        ValueError: See `check_into`.
    """
    check_into(model, converted)
    model.load_state_dict(converted.state)


def check_into(model: nn.Module, converted: Converted) -> None:
    """Compares a converted state dict with a model's.

    Raises:
        ValueError: Unexpected or missing tensors, or other shapes; the message has their foreign names.
    """
    own = model.state_dict()
    state, names = converted.state, converted.names

    def foreign(name: str) -> str:
        return names.get(name, name)

    if extra := [foreign(name) for name in state if name not in own]:
        raise ValueError(f"unexpected {_some(sorted(set(extra)))}, which the configuration does not have")
    if missing := [name for name in own if name not in state]:
        raise ValueError(f"missing {_some(missing)} of {type(model).__name__}")
    if wrong := [
        f"{foreign(name)!r} ({name}) is {tuple(state[name].shape)}, should be {tuple(own[name].shape)}"
        for name in own
        if state[name].shape != own[name].shape
    ]:
        raise ValueError(f"shapes do not fit the configuration: {'; '.join(wrong[:4])}")


def read(config: Mapping[str, Any], key: str, default: T | None = None) -> T | Any:
    """Returns a value of config.json, or the default of the library that wrote it.

    Raises:
        ValueError: The key is missing, and there is no default.
    """
    value = config.get(key)
    if value is not None:
        return value
    if default is None:
        raise ValueError(f"config.json has no {key!r}")
    return default


def require(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises a ValueError for options of config.json that affect the computation and are not supported."""
    for key, value in expected.items():
        if config.get(key) not in (None, value):
            raise ValueError(f"config.json has {key}={config[key]!r}; only {value!r} is supported")


# Names in transformers and timm. "gelu_fast" is the tanh form with its constant to ten digits.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(name: str) -> str:
    """Returns this package's name of a foreign activation.

    Raises:
        ValueError: The activation is not supported.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; expected one of: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def attention_dropout(probability: float) -> dict[str, Any] | None:
    """Returns the ``attention`` keyword of a model that was trained with dropout of attention weights."""
    return {"kind": "dense", "dropout": probability} if probability else None


def tie(
    ours: MutableMapping[str, Tensor], names: MutableMapping[str, str], table: str, output: str, tied: bool
) -> bool:
    """Adds an output projection that is the embedding table, which files contain once.

    Args:
        ours: A renamed state dict.
        names: Foreign name of each of its keys.
        table: Name of the embedding table in ours.
        output: Name of the output projection.
        tied: Whether the config ties them; if the tensors contradict it, they have precedence.

    Returns:
        Whether both are there, and equal.

    >>> state, names = {"table": torch.zeros(2, 2)}, {"table": "wte"}
    >>> tie(state, names, "table", "output", True), names["output"]
    (True, 'wte')
    """
    if tied and output not in ours and table in ours:
        ours[output], names[output] = ours[table], names[table]
    return table in ours and output in ours and same(ours[table], ours[output])


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have equal values, as tied ones do that are saved under each of their names."""
    return left is right or torch.equal(left, right)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)"))


def _listed(ours: str | tuple[str, ...]) -> tuple[str, ...]:
    return (ours,) if isinstance(ours, str) else ours


def _fill(target: str, groups: Iterable[str]) -> str:
    """Substitutes numbers for #, in order, and weight or bias for *."""
    for group in groups:
        target = target.replace("#" if group.isdigit() else "*", group, 1)
    return target


def _some(keys: Collection[str]) -> str:
    shown = ", ".join(sorted(keys)[:6])
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    return f"{'keys' if len(keys) > 1 else 'key'}: {shown}{more}"
