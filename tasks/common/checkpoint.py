"""The shipped checkpoint: a folder that outlives releases. It contains no pickle and no module path.

model/
  config.json        {"format": 3, "task": "vqa", "network": null, "model": {keyword arguments}, "metrics": {...},
                      "own_data": false, "about": {"data": ..., "licence": ...}}
  model.safetensors  the weights; with "base": {...} in config.json, their update (`mmattn.tasks.common.base`)
  processor/         preprocessing, labels and tokenizer, saved by the task's processor
  README.md          the model card: data, measured metrics, training command, licence

`network` names a public network that replaces the task's own model (`mmattn.tasks.common.adapter`); null: none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import read_settings
from mmattn.tasks.common.cards import card
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.files import atomic_folder, write_json
from mmattn.tasks.common.task import tasks

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 3
CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "processor", "README.md"
MODEL_FILES = (CONFIG, WEIGHTS, f"{PROCESSOR}/*")  # without the card, which is for readers


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read and check `config.json` of a shipped folder, of this format or an earlier one.

    Raises:
        CheckpointError: The folder is missing, not a checkpoint of this toolkit, or written by a newer version.
    """
    folder = Path(directory)
    if str(directory).startswith(("http://", "https:/")):
        raise CheckpointError(f"{directory}: weights are loaded from local folders only; download it first.")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG} and {WEIGHTS}, found no such folder.")
    path = folder / CONFIG
    if not path.exists():
        names = sorted(entry.name for entry in folder.iterdir())
        present = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") or "nothing"
        raise CheckpointError(f"{folder}: expected a shipped model with {CONFIG}, found: {present}.")
    try:
        config = read_settings(path)
    except DataError as error:
        raise CheckpointError(f"{error}.") from None
    missing = [key for key in ("format", "task", "model") if not isinstance(config, dict) or key not in config]
    if missing:
        raise CheckpointError(
            f"{path}: expected the keys format, task, model of an mmattn checkpoint; missing: {', '.join(missing)}. "
            "Other libraries' models need a config.json with a supported model_type of transformers."
        )
    if type(config["format"]) is not int or config["format"] not in range(1, FORMAT + 1):
        found = (
            f"expected format 1 to {FORMAT}, found {shorten(config['format'])}; it may be of a newer version of mmattn."
        )
        raise CheckpointError(f"{path}: {found}")
    if config["task"] not in list(tasks()):
        found = shorten(config["task"])
        raise CheckpointError(f"{path}: expected one of the tasks {', '.join(tasks())}, found {found}.")
    if not isinstance(config["model"], dict) or not isinstance(config.get("network"), (str, type(None))):
        found = shorten({key: config.get(key) for key in ("network", "model")})
        raise CheckpointError(f"{path}: expected keywords of the model and a network's name or null, found {found}.")
    try:
        return upgrade(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # the keywords of earlier formats are not checked one by one
        raise CheckpointError(f"{path}: expected keywords of the model, found {shorten(config['model'])}.") from error


def command_of(directory: Path) -> str:
    """The training command on the card of a shipped folder; empty: it states none."""
    path = directory / CARD
    found = re.search(r"^Made by:\n\n    (.+)$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return found[1] if found else ""


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config.json of an earlier format to the current one.

    Format 1 has a public network's keywords under "public", its name among them. Up to format 2, mean pooling instead
    of attention has a different name in each task.

    Raises:
        CheckpointError: The model uses a feature that this version does not have.
    """
    config = dict(config)
    if config["format"] == 1:
        model = dict(config["model"])
        public = model.pop("public", None)
        if public is not None:
            model = dict(public)
        network = None if public is None else model.pop("network", "seq2seq")
        config |= {"format": 2, "network": network, "model": model}
        task = tasks()[config["task"]]
        if task.upgrade is not None and network is None:
            config["model"] = task.resolve("upgrade")(model)
    if config["format"] == 2:
        config |= {"format": 3, "model": _with_pooling(config["model"])}
    return config


def _with_pooling(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of format 2, with `pooling` for `memory`, `pool` and the fusion `mean`."""
    kept = {key: value for key, value in model.items() if key not in ("memory", "pool")}
    pooling = [model[key] for key in ("memory", "pool", "fusion") if key in model]
    if model.get("fusion") == "mean":
        kept["fusion"] = "fusion_block"
    return kept | ({"pooling": "mean" if pooling[0] == "mean" else "attention"} if pooling else {})


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, half precision widened to float32.

    Raises:
        CheckpointError: The file is missing, truncated, or not safetensors (a pickle is refused without opening it).
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the model's weights, found no such file.")
    try:
        state = load_file(path)
    except Exception as error:  # SafetensorError, and others for types and names that torch does not have
        with path.open("rb") as file:
            head = file.read(8)
        if head[:2] == b"PK" or head[:1] == b"\x80":
            found = "a pickle; pickles can run code and are not opened"
        else:
            found = f"a damaged or truncated one of {path.stat().st_size} bytes ({error})"
        raise CheckpointError(f"{path}: expected a safetensors file, found {found}.") from None
    half = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in half else value for name, value in state.items()}


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path, assign: bool = False) -> None:
    """Load weights strictly: all names and shapes must match; tied weights are loaded by their first name.

    Args:
        model: The model.
        state: Weights by name.
        source: Their place, for errors.
        assign: Whether the model gets the tensors themselves, of their types, in place of a copy.

    Raises:
        CheckpointError: Weights are missing, unexpected, of a different shape or type, or not finite; the message names
            them.
    """
    from mmattn.building import assign_weights, check_finite, check_fits, tied_names

    tied = tied_names(model)
    state = {name: value for name, value in state.items() if name not in tied}
    try:
        check_fits(state, model)
        check_finite(state)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}.") from None
    if assign:
        assign_weights(model, state)
    else:
        model.load_state_dict(state, strict=not tied)


def save_directory(
    directory: str | Path,
    *,
    task: str,
    model: nn.Module,
    keywords: Mapping[str, Any],
    processor: Any,
    network: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    command: str = "",
    half: bool = False,
    own_data: bool = False,
    about: Mapping[str, str] | None = None,
    base: Mapping[str, str] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    name: str = "FOLDER",
    refit: Mapping[str, Any] | None = None,
) -> Path:
    """Write a shipped folder atomically.

    Args:
        directory: The folder to create or replace.
        task: Name of the task.
        model: The module whose weights are written.
        keywords: Keywords of `type(model)` that rebuild the model.
        processor: The processor; it is written by its `save(folder)`.
        network: Name of the public network; None: the task's own model.
        metrics: Measured figures for the model card, `{"test": {"accuracy": 0.97}}`.
        command: The training command, for the model card.
        own_data: Whether the model was trained on the user's data, so that it cannot be evaluated on the built-in data.
        half: Write floating-point weights in float16 (half the size; about three decimal digits).
        about: `data` and `licence` of a model that ships with the toolkit; None: the built-in data, or the user's own.
        base: Entry of config.json for public weights of which `state` is the update; see `mmattn.tasks.common.base`.
        state: What is written in place of the model's weights.
        name: How users load it, for the model card.
        refit: `samples`, `epochs` and `seconds` of a second training on all data, after the figures were measured.

    Raises:
        CheckpointError: The folder exists and has other content than a model of this toolkit.
    """
    from safetensors.torch import save_file

    from mmattn.building import tied_names

    def stored(value: torch.Tensor) -> torch.Tensor:
        value = value.detach().cpu().contiguous()
        return value.half() if half and value.is_floating_point() else value

    def fill(folder: Path) -> None:
        tied = tied_names(model)
        kept = {name: value for name, value in model.state_dict().items() if name not in tied}
        given = kept if state is None else state
        save_file({name: stored(value) for name, value in given.items()}, folder / WEIGHTS)
        processor.save(folder / PROCESSOR)
        config = {"format": FORMAT, "task": task, "network": network, "model": dict(keywords)}
        config |= {"metrics": dict(metrics or {}), "own_data": own_data} | ({"about": dict(about)} if about else {})
        config |= ({} if base is None else {"base": dict(base)}) | ({} if refit is None else {"refit": dict(refit)})
        write_json(folder / CONFIG, config)
        size = sum(parameter.numel() for parameter in model.parameters())
        (folder / CARD).write_text(card(config, size, name=name, command=command, half=half), encoding="utf-8")

    target = Path(directory)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        try:
            read_config(target)
        except CheckpointError:
            found = "other content; choose another folder"
            raise CheckpointError(f"{target}: expected a model of mmattn to replace, found {found}.") from None
    return atomic_folder(target, fill)
