"""Files of public weights in a local folder or, on request, in a repository of the Hugging Face hub."""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..json_file import read_object
from ..network import SECONDS, hub_responds, true_within

Find = Callable[[str], Path | None]  # maps a file name to its path, or to None if it does not exist

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HUB = "hf:"  # before a name that is on the hub even if there is a folder of that name
MINUTE = 60  # seconds until an unreachable hub is tried again


def open_source(source: str | Path, *, download: bool = False, revision: str | None = None) -> Find:
    """Finds files by name in a folder, or in a repository of the hub.

    Args:
        source: A folder, a file in it (its config.json or weights), or "owner/name" on the hub; "hf:owner/name" is
            never a folder.
        download: source may be a repository of the hub. Only files that are read are downloaded.
        revision: Revision of the repository: a branch, tag or commit.

    Raises:
        ValueError: source is a web address, or the revision a path with "..".
        FileNotFoundError: The folder does not exist, and download is off.
    """
    if "://" in str(source):
        raise ValueError(f"{source}: weights are not read from a web address; give a folder or a name on the hub")
    name = str(source).removeprefix(HUB)
    folder = Path(source)
    if folder.is_file():
        folder = folder.parent
    if folder.is_dir() and name == str(source):
        return lambda name: path if (path := folder / name).is_file() else None
    if not download:
        raise FileNotFoundError(f"no folder {source}; if it is a name on the Hugging Face hub, pass download=True")
    if ".." in f"{name}/{revision}":
        raise ValueError(f"expected a repository's name and revision without '..', found {name}@{revision}")
    return _hub(name, revision)


def _hub(name: str, revision: str | None) -> Find:
    import huggingface_hub
    from huggingface_hub import errors

    offline = hub_is_offline()

    def find(filename: str) -> Path | None:
        try:
            place = huggingface_hub.hf_hub_download(name, filename, revision=revision, local_files_only=offline)
            return Path(place)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise FileNotFoundError(f"{name}: no such folder, and the hub does not give it: {error}") from None
        except errors.LocalEntryNotFoundError as error:
            # The hub is unreachable. Its cache may suffice: not every file must exist.
            if filename == "config.json":
                reason = "the hub cannot be reached" if offline else error
                raise FileNotFoundError(f"{name}: no such folder, nor in the hub's cache: {reason}") from None
            return None
        except errors.EntryNotFoundError:
            return None

    return find


def hub_is_offline() -> bool:
    """Whether the hub does not respond, so that its cache must suffice."""
    from huggingface_hub import constants

    return not _is_reachable(constants.ENDPOINT, int(time.monotonic() // MINUTE))


@functools.lru_cache(maxsize=1)
def _is_reachable(endpoint: str, minute: int) -> bool:
    """Whether the hub responds at all; its library would try for half a minute, and name resolution as long."""
    return true_within(SECONDS, lambda: hub_responds(endpoint))[0]


def fetch_folder(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """Downloads files of a repository of the hub, all of one commit.

    Args:
        name: "owner/name".
        revision: The commit, or a branch or tag.
        patterns: Patterns of the files' names.

    Returns:
        The folder in the hub's cache.

    Raises:
        FileNotFoundError: The hub does not give them.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = hub_is_offline()
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{name}: the hub does not give its files: {str(error).splitlines()[0]}") from None
    return Path(str(folder))


def read_config(find: Find, source: str | Path) -> dict[str, Any]:
    """Reads config.json as a dictionary.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not a JSON object.
    """
    path = find("config.json")
    if path is None:
        raise FileNotFoundError(f"{source}: no config.json")
    return read_object(path)


def read_state(find: Find, source: str | Path) -> dict[str, Tensor]:
    """Reads all tensors of model.safetensors or pytorch_model.bin, or of the shards of their index.

    A .bin file is read as tensors only: a pickle with any other object is an error.

    Raises:
        FileNotFoundError: No weights, or a shard is missing.
        ValueError: A file is of another format, or truncated.
    """
    for name in WEIGHTS:
        if (path := find(name)) is not None:
            return _read_tensors(path)
        if (index := find(f"{name}.index.json")) is not None:
            return _read_shards(find, index)
    raise FileNotFoundError(f"{source}: no weights; looked for {', '.join(WEIGHTS)} and their .index.json")


def _read_shards(find: Find, index: Path) -> dict[str, Tensor]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: no weight_map")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is not the name of a file beside it")
        path = find(name)
        if path is None:
            raise FileNotFoundError(f"{index}: shard {name} is missing")
        state |= _read_tensors(path)
    if missing := sorted(set(places) - set(state)):
        raise ValueError(f"{index}: {missing[0]} is not in {places[missing[0]]}")
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a whole file of tensors alone: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: not a dictionary of tensors")
    return dict(state)
