"""Adapters convert a source to checkpoint parts: keywords, weights, processor. One per public family and task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmattn.data.errors import DataError, UserError, shorten
from mmattn.tasks.common.attention_config import check_attention
from mmattn.tasks.common.base import add_base, check_base
from mmattn.tasks.common.checkpoint import PROCESSOR, WEIGHTS, command_of, load_weights, read_weights
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.sources import Source, find_model
from mmattn.tasks.common.task import Task, tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

FREE = ("dropout", "attention", "decoder_attention", "cross_attention")  # keywords that do not affect the weights


class Adapter:
    """Reads checkpoints for a task: this class those of this toolkit, a subclass those of a public family.

    A public model is either converted to the task's own model, or kept as a separate network that is called like
    the task's model (`network`).

    Args:
        task: The task that the models are for.
    """

    maps_weights: ClassVar[bool] = False  # whether models use the tensors of files as they are, without a copy
    network: ClassVar[str | None] = None  # name of the public network in config.json; None: the task's own model

    def __init__(self, task: Task) -> None:
        self.task = task

    def read(self, source: Source, **options: Any) -> CheckpointParts:
        """Read the parts of a checkpoint, of this toolkit or a public one.

        Args:
            source: The location of the checkpoint.
            options: Additional options of the task's `load`; None if not given.

        Raises:
            CheckpointError: A part is damaged or missing, or parts do not match; names it.
        """
        return (self.read_own if source.family is None else self.read_public)(source, **options)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        """Read the parts of a public checkpoint; see `read`."""
        raise NotImplementedError

    def read_own(self, source: Source, **options: Any) -> CheckpointParts:
        """Read the parts of a checkpoint of this toolkit; see `read`."""
        config = source.config
        processor = self.task.resolve("processor").load(source.folder / PROCESSOR)
        state = read_weights(source.folder / WEIGHTS)
        if (base := config.get("base")) is not None:
            state = add_base(state, read_parts(self.task.name, check_base(base)).state)
        own_data = bool(config.get("own_data"))
        record = {name: config[name] for name in ("metrics", "about", "refit") if config.get(name)}
        record["command"] = command_of(source.folder)
        return CheckpointParts(self, source.where, dict(config["model"]), state, processor, own_data, record=record)

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        """Build the model without loading its weights.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: The keywords are inconsistent.
        """
        return self.task.resolve("model")(**keywords)  # type: ignore[no-any-return]

    def own_names(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords under the names of the task's own model."""
        return dict(keywords)

    def check(self, parts: CheckpointParts) -> None:
        """Compare the processor with the model's keywords; a public network may have more tokens than its tokenizer.

        Raises:
            CheckpointError: The processor has, for example, another number of classes.
        """
        for key, size in parts.processor.sizes().items():
            known = parts.keywords.get(key, size)
            if known != size if self.network is None else known < size:
                raise CheckpointError(
                    f"{parts.where}: expected a processor with the model's {key} {known!r:.40}, found {size!r}."
                )

    def join(self, parts: Mapping[str, CheckpointParts]) -> CheckpointParts:
        """Join the public models of several parts of the task's model.

        Args:
            parts: The models by the name of the part.

        Raises:
            CheckpointError: The task's model is initialized from one model alone, or not from these.
        """
        raise CheckpointError(f"expected one model for {self.task.name}, found several: {', '.join(parts)}.")

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Mapping[str, Any], seed: int) -> CheckpointParts:
        """Adapt checkpoint parts to new data, for fine-tuning.

        Args:
            parts: The parts as read; their processor is the one that the weights were trained with.
            processor: Processor of the new data.
            sizes: Keywords that are determined by the new data.
            seed: Seed of reinitialized layers.
        """
        return replace(parts, processor=processor)


@dataclass(frozen=True)
class CheckpointParts:
    """The parts from which a model is built: keywords, weights and processor."""

    adapter: Adapter
    where: str | Path  # the source's name in messages and records
    keywords: dict[str, Any]  # of the task's model, or of the public network that replaces it
    state: Mapping[str, Tensor]
    processor: Any
    own_data: bool = True  # whether it was trained on other data than the built-in data
    headless: bool = False  # whether the task's last layers are missing: it must be fine-tuned before use
    free: tuple[str, ...] = FREE  # keywords that a configuration may change
    fresh: frozenset[str] = frozenset()  # names of the weights that are not the source's, but initialized
    record: Mapping[str, Any] = field(default_factory=dict)  # figures, data, licence and command, for the card

    @property
    def network(self) -> str | None:
        """Name of the public network; None: the task's own model."""
        return self.adapter.network

    @property
    def given(self) -> frozenset[str]:
        """Names of the source's weights."""
        return frozenset(self.state) - self.fresh

    @property
    def known(self) -> dict[str, Any]:
        """The keywords under the names of the task's own model."""
        return self.adapter.own_names(self.keywords)

    def changed(self, keywords: Mapping[str, Any]) -> CheckpointParts:
        """The parts with changed keywords, which must be among the free ones.

        Raises:
            CheckpointError: A keyword affects the weights; names it.
            ConfigError: The kind of attention is unknown.
        """
        for key, value in keywords.items():
            if key not in self.free or (self.network is not None and key not in self.keywords):
                found = repr(self.known[key]) if key in self.known else "no such keyword"
                raise CheckpointError(
                    f"model.{key}: {self.where} has {found}, the configuration says {value!r}; the trained model's "
                    "value is kept: leave the keyword out."
                )
        checked = {k: check_attention(v, f"model.{k}") if k.endswith("attention") else v for k, v in keywords.items()}
        return replace(self, keywords=self.keywords | checked)

    def build(self, keywords: Mapping[str, Any]) -> nn.Module:
        """Build the model with its weights.

        Args:
            keywords: Those of the parts; free ones may be changed.

        Raises:
            CheckpointError: Keywords are unknown or invalid, or the weights do not fit.
        """
        from mmattn.building import build_for, build_on_meta

        maps = self.adapter.maps_weights
        try:
            model = (build_on_meta if maps else build_for)(self.state, self.adapter.build, keywords)
        except ValueError as error:
            raise CheckpointError(f"{self.where}: {str(error).removesuffix('.')}.") from None
        load_weights(model, self.state, self.where, assign=maps)
        return model

    def finished(self) -> CheckpointParts:
        """Return the parts if they form a complete model.

        Raises:
            CheckpointError: The task's last layers are missing.
        """
        if self.headless:
            raise CheckpointError(
                f"{self.where}: expected a finished model, found a backbone without the task's last layers; "
                f"train them: fit --init_from {self.where}."
            )
        return self


def own_adapter(task: Task) -> Adapter:
    """The adapter of a task's own models."""
    return Adapter(task) if task.adapter is None else task.resolve("adapter")(task)


def adapter_of(task: Task, source: Source) -> Adapter:
    """The adapter that reads a source for a task.

    Raises:
        CheckpointError: The source is of another task, or of a network that this version does not have.
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


def read_parts(task: str, name: str | Path | Mapping[str, str], **options: Any) -> CheckpointParts:
    """Read the parts of a task's model from a source.

    Args:
        task: The task that the model must belong to.
        name: The source, see `mmattn.tasks.common.sources`; or the sources of several parts of the model by name.
        options: Additional options of the task's adapters, such as T5's prefix.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, foreign, or of another task.
    """
    if isinstance(name, Mapping):
        found = {part: read_parts(task, source, **options) for part, source in name.items()}
        return own_adapter(tasks()[task]).join(found)
    source = find_model(name)
    try:
        adapter = adapter_of(tasks()[task], source)
        parts = adapter.read(source, **options)
        if not parts.headless:
            adapter.check(parts)
    except DataError as error:
        raise CheckpointError(f"{error}.") from error
    except (UserError, ImportError, OSError):
        raise
    except Exception as error:  # whatever converters and processors raise for settings of wrong types
        reason = f"{type(error).__name__}: {shorten(str(error))}"
        raise CheckpointError(f"{source.name}: expected a model's files, found damaged ones ({reason}).") from error
    return parts
