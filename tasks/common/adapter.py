"""From a source to a model in its parts: keywords, weights, processor. One adapter a public family and task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmattn.tasks.common.attention_config import check_attention
from mmattn.tasks.common.checkpoint import PROCESSOR, WEIGHTS, read_weights
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import Source, find_model
from mmattn.tasks.common.task import Task, tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

FREE = ("dropout", "attention", "decoder_attention", "cross_attention")  # keywords that change no weight


class Adapter:
    """Reads models for a task; this one those of ours, a subclass those of a public family.

    A public family either becomes the task's own model, by its keywords, or stays a network of its own that is called
    as the task's model is (`network`).

    Args:
        task: That the models are for.
    """

    network: ClassVar[str | None] = None  # what config.json calls a public network; None: it is the task's own model

    def __init__(self, task: Task) -> None:
        self.task = task

    def read(self, source: Source, **options: Any) -> CheckpointParts:
        """A model in its parts, from a folder of ours or a public one.

        Args:
            source: Where it was found.
            options: What a task's `load` takes beside, None where it is not given.

        Raises:
            CheckpointError: Damaged, incomplete, or parts that do not fit each other; named.
        """
        return (self.read_own if source.family is None else self.read_public)(source, **options)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        """A public model in its parts; see `read`."""
        raise NotImplementedError

    def read_own(self, source: Source, **options: Any) -> CheckpointParts:
        """A model of ours in its parts; see `read`."""
        config = source.config
        processor = self.task.resolve("processor").load(source.folder / PROCESSOR)
        state = read_weights(source.folder / WEIGHTS)
        own_data = bool(config.get("own_data"))
        return CheckpointParts(self, source.where, dict(config["model"]), state, processor, own_data)

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        """The model, its weights not yet loaded.

        Raises:
            TypeError: A keyword that it has not.
            ValueError: Keywords that do not go together.
        """
        return self.task.resolve("model")(**keywords)  # type: ignore[no-any-return]

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords, as the task's own model calls them."""
        return dict(keywords)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """What training begins with, for other data than the model's own.

        Args:
            parts: What was read; its processor is the one that the weights were trained with.
            processor: For these data.
            sizes: The keywords that the data decide.
            seed: Of layers that are initialized anew.
        """
        return replace(parts, processor=processor)


@dataclass(frozen=True)
class CheckpointParts:
    """A model in its parts, not yet built."""

    adapter: Adapter
    where: str | Path  # for messages and records
    keywords: dict[str, Any]  # of the task's model, or of the public network in its place
    state: Mapping[str, Tensor]
    processor: Any
    own_data: bool = True  # trained on data that the built-in ones are no measure of
    headless: bool = False  # without the task's own last layers: something to begin with, and no finished model
    free: tuple[str, ...] = FREE  # keywords that a configuration may change

    @property
    def network(self) -> str | None:
        """The public network that it is; None: the task's own model."""
        return self.adapter.network

    @property
    def known(self) -> dict[str, Any]:
        """The keywords as the task's own model would have them."""
        return self.adapter.own_names(self.keywords)

    def changed(self, keywords: Mapping[str, Any]) -> CheckpointParts:
        """The same weights with other keywords, of those that are free.

        Raises:
            CheckpointError: One that decides the weights; named.
            ConfigError: A kind of attention that is not known.
        """
        for key, value in keywords.items():
            if key not in self.free or (self.network is not None and key not in self.keywords):
                found = repr(self.known[key]) if key in self.known else "no such keyword"
                raise CheckpointError(
                    f"model.{key}: {self.where} has {found}, the configuration says {value!r}; the model goes on as "
                    "it was trained: leave the keyword out."
                )
        checked = {k: check_attention(v, f"model.{k}") if k.endswith("attention") else v for k, v in keywords.items()}
        return replace(self, keywords=self.keywords | checked)

    def finished(self) -> CheckpointParts:
        """Itself, where it can be asked or measured.

        Raises:
            CheckpointError: It is headless.
        """
        if self.headless:
            raise CheckpointError(
                f"{self.where}: expected a finished model, found a backbone without the last layers of the task; "
                f"train them: fit --init_from {self.where}."
            )
        return self


def own_adapter(task: Task) -> Adapter:
    """The adapter of a task's own models."""
    return Adapter(task) if task.adapter is None else task.resolve("adapter")(task)


def adapter_of(task: Task, source: Source) -> Adapter:
    """The adapter that reads a source for a task.

    Raises:
        CheckpointError: The source is of another task, or of none that this version has.
    """
    if source.family is not None:
        routes = source.routes()
        if task.name not in routes:
            found = f"found one of {source.family}, for {' and '.join(routes)}"
            raise CheckpointError(f"{source.name}: expected a model for {task.name}, {found}.")
        return task.resolve(routes[task.name])(task)  # type: ignore[no-any-return]
    if source.config["task"] != task.name:
        found = source.config["task"]
        raise CheckpointError(f"{source.folder}: expected a model of {task.name}, found one of {found}.")
    network = source.config.get("network")
    if network is None:
        return own_adapter(task)
    kinds = {kind.network: kind for kind in map(task.resolve, dict.fromkeys(task.families.values()))}
    if network not in kinds:
        known = ", ".join(filter(None, kinds)) or "none"
        raise CheckpointError(f"{source.folder}: expected a network of {known}, found {network!r}.")
    return kinds[network](task)  # type: ignore[no-any-return]


def read_parts(task: str, name: str | Path, **options: Any) -> CheckpointParts:
    """A task's model and processor from a source.

    Args:
        task: That the model must be of, or fit.
        name: The source.
        options: What the task's adapters take beside, such as the prefix that T5 reads.

    Raises:
        CheckpointError: Missing, damaged, foreign, or of another task.
    """
    source = find_model(name)
    return adapter_of(tasks()[task], source).read(source, **options)
