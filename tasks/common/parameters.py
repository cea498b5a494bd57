"""Which weights are trained, and how fast: weight decay, layer-wise learning rates, frozen and unfrozen weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmattn import add_lora
from mmattn.data.errors import nearest
from mmattn.tasks.common.errors import ConfigError

HEAD = "head."  # name prefix of a task's head, which is above all layers
NETWORK = "net."  # before the modules of a public network that replaces a task's own
# Last names of the linear maps to classes, labels or tokens.
OUTPUTS = {"out", "output", "classifier", "class_heads", "proposal_classes", "object_head", "ctc", "head", "tokens"}
HIDDEN, MATRIX, VECTOR = "hidden", "matrix", "vector"  # kinds of parameters
PRETRAINED = "pretrained"  # as a value of `model.freeze`: all weights that init_from gave


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """The depth of each parameter: 0 before the first layer, the maximum after the last one and in the head.

    A layer is a module whose path ends with a number: ``backbone.encoder.layers.5``, ``encoder.body.blocks.3.1``.

    Args:
        names: Names of parameters in the order of their computation.

    >>> layer_depths(["stem.weight", "layers.0.fc1.weight", "layers.1.fc1.weight", "norm.weight", "head.weight"])
    {'stem.weight': 0, 'layers.0.fc1.weight': 1, 'layers.1.fc1.weight': 2, 'norm.weight': 3, 'head.weight': 3}
    """
    layers: dict[str, int] = {}
    found, after = {}, []  # `after`: names behind the last layer so far
    for name in names:
        words = name.split(".")
        last = next((n for n, word in enumerate(words) if word.isdigit()), None)
        if name.startswith(HEAD) or last is None:
            found[name] = len(layers)
            after.append((name, len(layers)))
            continue
        while words[last + 1].isdigit():
            last += 1
        found[name] = layers.setdefault(".".join(words[: last + 1]), len(layers) + 1)
    top = len(layers) + 1
    return found | {name: top for name, depth in after if depth == len(layers) or name.startswith(HEAD)}


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights of linear maps between hidden features: of all but outputs and tied embeddings.

    >>> hidden_matrices(nn.ModuleDict({"fc1": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "out": nn.Linear(8, 2)}))
    {'fc1.weight'}
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) not in embeddings
        and OUTPUTS.isdisjoint(name.rstrip(".0123456789").rsplit(".", 1)[-1:])
    }


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    lr: float,
    scales: Mapping[str, float] | None = None,
    *,
    hidden: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay; norms, biases and other vectors without.

    Args:
        model: The model; frozen parameters are left out.
        weight_decay: Decoupled weight decay of matrices.
        lr: Learning rate of parameters with a scale of one.
        scales: Factor of the learning rate of each parameter by name; None: one.
        hidden: Whether `hidden_matrices` are in groups of their own, and all groups say whether they are such a group.
    """
    inner = hidden_matrices(model) if hidden else set()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: dict[tuple[float, str], dict[str, Any]] = {}
    for scale in sorted({1.0 if scales is None else scales[name] for name, _ in named}):
        for kind in (HIDDEN, MATRIX, VECTOR) if hidden else (MATRIX, VECTOR):
            decay = 0.0 if kind == VECTOR else weight_decay
            groups[scale, kind] = {"params": [], "lr": lr * scale, "weight_decay": decay}
            if hidden:
                groups[scale, kind]["hidden"] = kind == HIDDEN
    for name, parameter in named:
        kind = VECTOR if parameter.ndim < 2 else HIDDEN if name in inner else MATRIX
        groups[1.0 if scales is None else scales[name], kind]["params"].append(parameter)
    return list(groups.values())


def learning_rates(
    names: Iterable[str], pretrained: Collection[str], pretrained_lr: float, layer_decay: float
) -> dict[str, float] | None:
    """Factors of the learning rate by name; None if all are one.

    Args:
        names: Names of all parameters.
        pretrained: Names of those that were trained before, if others are new.
        pretrained_lr: Factor of the pretrained ones.
        layer_decay: Factor of each layer relative to the one above it.
    """
    if layer_decay == 1.0 and (pretrained_lr == 1.0 or not pretrained):
        return None
    depths = layer_depths(names)
    top = max(depths.values())
    return {
        name: (pretrained_lr if name in pretrained else 1.0) * layer_decay ** (top - depth)
        for name, depth in depths.items()
    }


def freeze(model: nn.Module, which: str, pretrained: Collection[str]) -> list[nn.Module]:
    """Freeze weights; returns the frozen modules, which must stay in evaluation mode.

    Args:
        model: The model.
        which: ``pretrained``, or paths of modules, separated by commas.
        pretrained: Names of the weights that were trained before, if others are new.

    Raises:
        ConfigError: There is no such module, or nothing would be frozen, or nothing be left to train.
    """
    parameters = dict(model.named_parameters())
    if which == PRETRAINED:
        chosen = set(pretrained) & parameters.keys()
        if not chosen:
            raise ConfigError(
                "model.freeze: pretrained needs --init_from with some of the layers, so that the others are trained "
                "alone; found none, or all."
            )
    else:
        known = {name for name, _ in model.named_modules()}
        paths = [path.strip() for path in which.split(",")]
        paths = [f"{NETWORK}{path}" if path not in known and f"{NETWORK}{path}" in known else path for path in paths]
        for path in paths:
            if path not in known or not path:
                top = ", ".join(name for name, _ in model.named_children())
                raise ConfigError(
                    f"model.freeze: expected {PRETRAINED}, or a module of the model ({top}, or one within), found "
                    f"{path!r}{nearest(path, known)}."
                )
        chosen = {name for name in parameters if any(name.startswith(f"{path}.") for path in paths)}
    if chosen == parameters.keys():
        raise ConfigError("model.freeze: expected weights that are left to train, found that all would be frozen.")
    for name in chosen:
        parameters[name].requires_grad_(False)
    return list(frozen_modules(model))


def unfreezing_stages(model: nn.Module, given: Collection[str]) -> list[list[str]]:
    """Names of the weights that become trainable together, in this order (Howard and Ruder 2018, section 3.3).

    New weights are the first; if there are none, the last layers are. The others follow by depth, see `layer_depths`,
    from the last layer to the first. What is frozen already stays so, and is in no stage.

    Args:
        model: The model.
        given: Names of the weights that were trained before.

    Raises:
        ConfigError: There are no such weights, or all that are trained would be trained from the beginning.
    """
    if not given:
        raise ConfigError("optim.unfreeze_every: expected --init_from, whose layers are unfrozen; found none.")
    stages: dict[float, list[str]] = {}
    depths = layer_depths(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stages.setdefault(depths[name] if name in given else math.inf, []).append(name)
    if len(stages) < 2:
        raise ConfigError(
            "optim.unfreeze_every: expected layers of --init_from that can be unfrozen after others, found none; "
            "those of --model.freeze stay frozen."
        )
    return [stages[depth] for depth in sorted(stages, reverse=True)]


@dataclass
class LoRAOptions:
    """Low-rank updates that are trained in place of the weights that `--init_from` gives, see `mmattn.add_lora`.

    Args:
        rank: Rank of each update.
        alpha: Scale of each update, relative to the rank.
        targets: The linear maps: q_proj, k_proj, v_proj, out_proj of attention, fc1, gate, fc2 of feed-forward layers;
            an unknown name gives an error that lists those of the model.
        dropout: Dropout of the updates' inputs.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0


def train_low_rank(model: nn.Module, options: LoRAOptions, given: Collection[str]) -> None:
    """Freeze given weights, and add low-rank updates to their linear maps; other weights are trained as they are.

    Args:
        model: The model.
        options: The updates.
        given: Names of the weights that are not trained: those that were trained before.

    Raises:
        ConfigError: There are no such weights, or the options do not fit the model.
    """
    if not given:
        raise ConfigError("model.lora: expected --init_from, whose weights are adapted; found none.")
    for name, parameter in model.named_parameters():
        if name in given:
            parameter.requires_grad_(False)
    try:
        add_lora(model, options.rank, options.alpha, targets=options.targets, dropout=options.dropout, weights=given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.lora.{error}") from None


def select_trained(
    model: nn.Module,
    given: Collection[str],
    pretrained: Collection[str],
    frozen: str | None,
    lora: LoRAOptions | None,
    unfreeze_every: int | None,
) -> tuple[list[nn.Module], list[list[str]]]:
    """Freeze weights that are never trained, and add low-rank updates.

    Args:
        model: The model.
        given: Names of the weights that were trained before.
        pretrained: The same if others are new; otherwise none.
        frozen: See `freeze`.
        lora: See `train_low_rank`.
        unfreeze_every: See `unfreezing_stages`; None: all other weights are trained from the beginning.

    Returns:
        The frozen modules, which must stay in evaluation mode; the stages of unfreezing.

    Raises:
        ConfigError: The options do not fit the model or one another.
    """
    if lora is not None and unfreeze_every is not None:
        raise ConfigError(
            "optim.unfreeze_every: expected no --model.lora, whose updates are trained in place of the weights that "
            "would be unfrozen; leave one of them out."
        )
    modules = [] if frozen is None else freeze(model, frozen, pretrained)
    if lora is not None:
        train_low_rank(model, lora, given)
    return modules, [] if unfreeze_every is None else unfreezing_stages(model, given)


def pretrained_norms(model: nn.Module, pretrained: Collection[str]) -> list[nn.Module]:
    """The batch norms whose weights were trained before, which must stay in evaluation mode.

    Statistics of small batches of other data destroy what the layers behind them have learned.

    Args:
        model: The model.
        pretrained: Names of the weights that were trained before, if others are new.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [m for name, m in model.named_modules() if isinstance(m, kinds) and f"{name}.running_mean" in pretrained]


def frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules all of whose parameters are frozen."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
        return
    for child in module.children():
        yield from frozen_modules(child)


def largest_modules(module: nn.Module, names: Collection[str], path: str = "") -> Iterator[str]:
    """Paths of the largest modules all of whose parameters have these names, and of parameters that remain.

    >>> list(largest_modules(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0.weight", "0.bias", "1.bias"]))
    ['0', '1.bias']
    """
    inner = [f"{path}{name}" for name, _ in module.named_parameters()]
    if inner and path and all(name in names for name in inner):
        yield path.removesuffix(".")
        return
    yield from (f"{path}{name}" for name, _ in module.named_parameters(recurse=False) if f"{path}{name}" in names)
    for name, child in module.named_children():
        yield from largest_modules(child, names, f"{path}{name}.")
