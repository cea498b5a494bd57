"""Sources of models: runs, named models of a task, folders of public models, repositories of the hub.

A source is the folder of a run, or its `model/`; "TASK/NAME", a model that ships with a task; a folder with a public
model's files in the layout of the Hugging Face hub; the name of public weights (`mmattn weights` lists them); or a
repository of the hub, of public weights or of a model that `push` uploaded, whose files are downloaded when they are
first read and cached: "hf:owner/name", optionally with "@revision", or "timm/NAME", the weights that timm itself would
download.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, nearest
from mmattn.data.files import is_hidden
from mmattn.data.readers import read_settings
from mmattn.tasks.common.checkpoint import CONFIG, MODEL_FILES, read_config
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.task import tasks

TIMM = "timm"  # family of timm's models, whose config.json has an architecture instead of a model_type
CHECKPOINTS = "checkpoints"  # folder of a task's package


@dataclass(frozen=True)
class Source:
    """The location of a model."""

    name: str  # as given by the user
    folder: Path  # folder of the files; for a repository of the hub, of those that were downloaded
    config: Mapping[str, Any]  # config.json
    hub: str | None = None  # the repository's name
    revision: str | None = None

    @property
    def family(self) -> str | None:
        """Family of a public model; None: a model of this toolkit."""
        return None if "format" in self.config else self.config.get("model_type", TIMM)

    @property
    def place(self) -> dict[str, Any]:
        """The location as keywords of the loaders in `mmattn.pretrained`."""
        return {
            "source": f"hf:{self.hub}" if self.hub else self.folder,
            "download": self.hub is not None,
            "revision": self.revision,
        }

    @property
    def where(self) -> str | Path:
        """Name of the source in messages and records."""
        from mmattn.tasks.common.weights import cache_folder

        named = self.hub or self.name.startswith("hf:") or self.folder.parent == cache_folder()
        return self.name if named else self.folder

    def fetch(self, name: str) -> Path | None:
        """The path of a file by name; None if it does not exist."""
        from mmattn.pretrained.files import open_source

        return open_source(**self.place)(name)

    def routes(self) -> dict[str, str]:
        """The tasks that support a public model, with their adapters; `load` uses the first.

        Adapters of the exact architecture precede those of the whole family.
        """
        architectures = self.config.get("architectures")
        names = [f"{self.family}/{name}" for name in architectures] if isinstance(architectures, list) else []
        found = {
            task.name: (adapters is task.encoders, key.endswith("/*"), adapters[key])
            for key in reversed([*names, f"{self.family}/*"])
            for task in tasks().values()
            for adapters in (task.encoders, task.families)
            if key in adapters
        }
        return {name: found[name][2] for name in sorted(found, key=lambda name: (*found[name][:2], name))}


def known_families() -> list[str]:
    """The families of public models that are supported by any task."""
    return list(
        dict.fromkeys(key.split("/")[0] for task in tasks().values() for key in {**task.families, **task.encoders})
    )


def find_model(name: str | Path) -> Source:
    """Find a model and read its config.json.

    Args:
        name: A source, see the module's documentation.

    Raises:
        CheckpointError: There is no model, or its family is not supported.
    """
    if str(name).startswith("hf:"):
        source = _on_hub(str(name))
    elif str(name).startswith(f"{TIMM}/") and not Path(name).exists():
        source = replace(_on_hub(f"hf:{_timm_repository(str(name))}"), name=str(name))
    else:
        source = _in_folder(name)
    if source.family is not None and not source.routes():
        raise CheckpointError(
            f"{name}: expected a model of mmattn, or a public one of {', '.join(known_families())}; found one of "
            f"{source.family!r}."
        )
    return source


def task_of(name: str | Path) -> str:
    """The task for which `load` loads a source."""
    source = find_model(name)
    return source.config["task"] if source.family is None else next(iter(source.routes()))


def named_models(task: str) -> dict[str, Path]:
    """The models that ship with a task, by name."""
    folder = tasks()[task].folder / CHECKPOINTS
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if path.is_dir() and not is_hidden(path.name)}


def _named(name: str | Path) -> Path | None:
    """The folder of a named model; None if `name` does not have the form of one.

    Raises:
        CheckpointError: A folder of that name exists, too; or the task has no model of that name.
    """
    found = re.fullmatch(r"([a-z]\w*)/([\w.-]+)", name) if isinstance(name, str) else None
    if found is None or found[1] not in tasks():
        return None
    models, exists = named_models(found[1]), Path(name).exists()
    if found[2] in models and exists:
        raise CheckpointError(f"{name}: is both a named model and a folder; write ./{name} for the folder.")
    if found[2] not in models and not exists:
        if not models:
            expected = f"a model's folder, such as runs/{found[1]}/model that `fit` writes"
            raise CheckpointError(f"{name}: expected {expected}; found none, and no model ships with {found[1]!r}.")
        known = [f"{found[1]}/{model}" for model in models]
        hint = nearest(str(name), known)
        raise CheckpointError(f"{name}: expected a folder or a named model of {', '.join(known)}; found neither{hint}.")
    return models.get(found[2])


def _public(name: str | Path) -> Path | None:
    """The folder of public weights, fetched if necessary; None if `name` is not one of theirs, or also a folder.

    Raises:
        CheckpointError: They cannot be fetched, or are not the known ones.
    """
    from mmattn.tasks.common.weights import TABLE, named_folder

    if name not in TABLE or Path(name).exists():
        return None
    try:
        return named_folder(str(name))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise CheckpointError(str(error)) from None


def _timm_repository(name: str) -> str:
    """The repository of the hub with timm's weights of "timm/NAME".

    Raises:
        CheckpointError: timm is not installed, or has no weights of that name.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise CheckpointError(f"{name}: its weights need timm: pip install timm.") from None
    model = name.removeprefix(f"{TIMM}/")
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None or not config.hf_hub_id:
        hint = nearest(model, timm.list_models())
        raise CheckpointError(f"{name}: expected a model that timm has weights of, found none of that name{hint}.")
    return str(config.hf_hub_id)


def _hint(name: str) -> str:
    """How to name a model that is no folder: "owner/name" of the hub, and bare names of ours and of timm."""
    close = [f"{task}/{model}" for task in tasks() for model in named_models(task) if model == name]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        owner = name.partition("/")[0]
        close = [] if owner == "runs" or Path(owner).is_dir() else [f"hf:{name}"]  # rather a path of this machine
    elif not close and re.fullmatch(r"[\w-]+", name):
        from mmattn.backbones.timm import nearest_models

        close = [f"timm/{model}" for model in nearest_models(name)]
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _in_folder(name: str | Path) -> Source:
    folder = _named(name) or _public(name) or Path(name)
    if not folder.exists() and not str(name).startswith("http"):
        expected = (
            "a model's folder, a named model such as vqa/demo, public weights (`mmattn weights`), or hf:owner/name"
        )
        raise CheckpointError(f"{name}: expected {expected}; found no such folder{_hint(str(name))}.")
    if not (folder / CONFIG).exists() and (folder / "model" / CONFIG).exists():  # a run directory
        folder = folder / "model"
    try:
        config = read_settings(folder / CONFIG)
    except DataError:
        config = None  # read_config raises the error
    if not _is_public(config):
        config = read_config(name if str(name).startswith("http") else folder)
    return Source(str(name), folder, config)


def _on_hub(name: str) -> Source:
    found = re.fullmatch(r"hf:(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@([\w./-]+))?", name)
    if found is None:
        raise CheckpointError(f"{name}: expected hf:owner/name, or hf:owner/name@revision.")
    from mmattn.pretrained.files import fetch_folder, open_source, read_config as read_public_config

    try:
        find = open_source(f"hf:{found[1]}", download=True, revision=found[2])
        config = read_public_config(find, name)
        path = find(CONFIG)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{name}: {error}; pip install huggingface_hub.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {str(error).splitlines()[0]}") from None
    assert path is not None
    if isinstance(config, dict) and "format" in config:  # a model of this toolkit, which `push` has uploaded
        try:
            folder = fetch_folder(found[1], path.parent.name, MODEL_FILES)
        except OSError as error:
            raise CheckpointError(str(error)) from None
        return Source(name, folder, read_config(folder))
    if not _is_public(config):
        raise CheckpointError(
            f"{name}: expected a model of mmattn, or a public one of {', '.join(known_families())}; download others as "
            "a folder."
        )
    return Source(name, path.parent, config, found[1], found[2])


def _is_public(config: Any) -> bool:
    """Whether a config.json is of transformers or timm."""
    if not isinstance(config, dict) or "format" in config:
        return False
    return isinstance(config.get("model_type", config.get("architecture")), str)
