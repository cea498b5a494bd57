"""The models of a server: each a predictor with its name, version, worker, fields and examples."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmattn.tasks.common.cards import summary
from mmattn.tasks.common.commands import record_of
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.serving.batching import Worker
from mmattn.tasks.common.serving.examples import EXAMPLES, example_of, read_examples
from mmattn.tasks.common.serving.inputs import ID, item_fields, request_options
from mmattn.tasks.common.serving.options import Limits
from mmattn.tasks.common.sources import Source, find_model, named_models, task_of
from mmattn.tasks.common.task import Option, Task, tasks


class ServedModel:
    """A predictor that answers requests.

    Args:
        name: What requests call it.
        predictor: The predictor, as `load` returns it.
        version: What answers state beside the name, so that it is known which weights gave them.
        about: One sentence of what the model knows.
        loaded: Names of the options that were given to `load`.
        examples: Items that the page shows; None: samples of the built-in test split.
    """

    def __init__(
        self,
        name: str,
        predictor: Any,
        version: str = "",
        about: str = "",
        loaded: Iterable[str] = (),
        examples: Iterable[Any] | None = None,
    ) -> None:
        self.name, self.predictor, self.about = name, predictor, about
        self.version = version or state_version(predictor)
        self.task: Task = tasks()[predictor.task]
        self.fields: list[Option] = item_fields(self.task, loaded)
        self.streams = any(map(predictor.can_stream, ({}, {"num_beams": 1})))  # with some options
        self.explains = not predictor.packed  # packed weights have no gradients
        self._examples = examples
        self.worker: Any = None

    def start(self, limits: Limits, seen: Any) -> None:
        """Start the thread that answers."""
        self.worker = Worker(
            self.predictor,
            batch_size=limits.batch_size,
            wait=limits.batch_wait,
            most=limits.max_queue,
            explained=png_of,
            seen=seen,
        )

    @property
    def label(self) -> dict[str, str]:
        """Name and version, which every answer states."""
        return {"model": self.name, "version": self.version}

    @functools.cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Items of which each is a request: texts, and media as data URLs."""
        given = self.predictor.demo_samples() if self._examples is None else self._examples
        found = (example_of(self.predictor, self.fields, item) for item in islice(given, EXAMPLES))
        return [item for item in found if item is not None]

    def _options(self, command: str) -> list[dict[str, Any]]:
        refused = self.predictor.refused_options()
        return [_described(option) for option in request_options(self.task, command) if option.name not in refused]

    def describe(self) -> dict[str, Any]:
        """What the page and other clients need to know of the model."""
        return {
            **self.label,
            "task": self.task.name,
            "title": self.task.title.partition(":")[0],
            "about": self.about,
            "fields": [_described(option) for option in self.fields],
            "options": self._options("predict"),
            "explain_options": self._options("explain"),
            "streams": self.streams,
            "explains": self.explains,
            "labels": self.predictor.labels if len(self.predictor.labels or ()) <= 100 else None,
        }

    def result(self, item: Any, prediction: Any) -> dict[str, Any]:
        """A prediction as JSON: the answer in words, and all fields without arrays."""
        return {"answer": self.predictor.answer_of(prediction), "prediction": _finite(record_of(item, prediction))}


def _described(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "help": option.help,
        "type": option.type.__name__,
        "media": option.media,
        "required": option.kind == "item" and not option.optional,
    }


def _finite(value: Any) -> Any:
    """A record without NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def png_of(explanation: Any) -> bytes:
    """The picture of an explanation; an item without an id has a number, which its title does not need."""
    prediction = getattr(explanation, "prediction", None)
    if getattr(prediction, ID, None) == "0":
        setattr(prediction, ID, "")
    with tempfile.TemporaryDirectory(prefix="mmattn-") as folder:
        path = Path(folder, "explanation.png")
        explanation.save(path)
        return path.read_bytes()


def file_version(folder: Path) -> str:
    """A hash of a model's files, but for its card: 12 digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def state_version(predictor: Any) -> str:
    """A hash of a predictor's weights, where its files are unknown."""
    digest = hashlib.sha256()
    for name, value in sorted(predictor.model.state_dict().items()):
        digest.update(name.encode())
        if hasattr(value, "detach"):
            digest.update(value.detach().cpu().contiguous().flatten().view(_uint8()).numpy().tobytes())
    return digest.hexdigest()[:12]


@functools.cache
def _uint8() -> Any:
    import torch

    return torch.uint8


def name_of(source: str, found: Source, task: str) -> str:
    """What requests call a model: "TASK/NAME" as given, of a folder its name without `model`."""
    if found.hub is not None or str(source).startswith("hf:"):
        return f"{task}/{source.removeprefix('hf:').partition('@')[0].rpartition('/')[2]}"
    folder = found.folder.resolve()
    last = folder.parent.name if folder.name == "model" else folder.name
    return f"{task}/{re.sub(r'[^A-Za-z0-9_.-]', '_', last) or 'model'}"


def open_models(
    sources: Iterable[str],
    *,
    device: str = "auto",
    precision: str | None = None,
    task: str | None = None,
    examples: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Iterator[ServedModel]:
    """Load the models of a server.

    Args:
        sources: Models as of `load`, or NAME=MODEL to give it another name.
        device: See `load`.
        precision: See `load`.
        task: The task that loads them; None: each model's own.
        examples: Items for the page, each NAME=PATH with a path as for `--input` of `predict`; of a single model the
            path alone. Models of a user's own data otherwise show items that their run kept, and others samples of the
            built-in test split.
        given: Additional options of the task's `load`.

    Raises:
        CheckpointError: A model is missing or damaged.
        ConfigError: Two models have the same name, or examples belong to none.
    """
    wanted: dict[str, tuple[str, Source, str]] = {}
    for entry in sources:
        named = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)=(.+)", entry, re.ASCII)
        source = named[2] if named else entry
        found, kind = find_model(source), task or task_of(source)
        name = named[1] if named else name_of(source, found, kind)
        if name in wanted:
            raise ConfigError(f"serve: expected a name for each model, found {name} twice; write NAME=MODEL.")
        wanted[name] = source, found, kind
    shown = _examples(examples, list(wanted))
    for name, (source, found, kind) in wanted.items():
        predictor = tasks()[kind].resolve("predictor").load(source, device, precision, **(given or {}))
        about = summary(found.config) if found.family is None and _is_stated(found.config) else ""
        items = predictor.open_input(shown[name]) if name in shown else None
        if items is None and _is_own(found, kind):
            items = read_examples(found.folder.parent)
        elif items is None:
            items = read_examples(found.folder) or None
        yield ServedModel(name, predictor, file_version(found.folder), about, given or (), items)


def _examples(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Paths of examples by the model's name.

    Raises:
        ConfigError: One belongs to no model.
    """
    found: dict[str, str] = {}
    for entry in given:
        name, _, path = entry.partition("=")
        if name not in names or not path:
            if len(names) > 1:
                raise ConfigError(f"--examples: expected NAME=PATH with a name of {', '.join(names)}, found {entry!r}.")
            name, path = names[0], entry
        found[name] = path
    return found


def _is_own(found: Source, task: str) -> bool:
    """Whether a model was trained on a user's data, so that built-in samples make no sense to it."""
    is_ours = found.family is None and bool(found.config.get("own_data"))
    return is_ours and found.folder not in named_models(task).values()


def _is_stated(config: Mapping[str, Any]) -> bool:
    return bool(config.get("about")) or not config.get("own_data")
