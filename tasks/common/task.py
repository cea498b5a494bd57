"""The description of a task. It imports the standard library alone, so that `--help` is immediate.

All code that works for every task reads this description: the command line, `load`, the ablations, the pointing game,
the tests, and the table in the README. `Task` and `Option` are named tuples because importing `dataclasses` would take
a tenth of the time of `--help`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

DEMO = "demo"  # names the built-in data in place of a path, and the model that was trained on them
# Families of public image encoders, and of text encoders (`mmattn.tasks.common.text_encoder`).
IMAGE_ENCODERS = ("vit/*", "deit/*", "dinov2/*", "dinov2_with_registers/*", "siglip/*", "siglip_vision_model/*")
TEXT_ENCODERS = ("bert/*", "roberta/*", "xlm-roberta/*", "distilbert/*", "electra/*")
# Fields of items that are files, by name, with their type in web pages; all other fields are texts.
MEDIA = {"image": "image/*", "audio": "audio/*", "video": "video/*"}


class Option(NamedTuple):
    """A command-line option of a task's `predict` and `explain`.

    Args:
        name: Name of the option without dashes: `image` for `--image`.
        help: Help text, one line.
        type: Type of the value; `bool` makes a switch.
        default: Value if the option is not given; None: the default of `predict` itself.
        kind: "item": a field of the command's single item; "predict": a keyword of the predictor's `predict` and
            `explain`; "load": a keyword of its `load`; "command": read by the command alone.
        only: The only command that has the option; None: both have it.
        bare: Whether a text in quotes on the command line, without the option's name, is its value.
        unless: Name of an option with which an item needs no such field.
        optional: Whether an item needs no such field in any case.
        metavar: Name of the value in the help text.
    """

    name: str
    help: str
    type: type = str
    default: Any = None
    kind: Literal["item", "predict", "load", "command"] = "predict"
    only: Literal["predict", "explain"] | None = None
    metavar: str | None = None
    bare: bool = False
    unless: str | None = None
    optional: bool = False

    @property
    def media(self) -> str:
        """What kind of file a field of an item is, such as `image/*`; empty: a text."""
        return MEDIA.get(self.name, "") if self.kind == "item" else ""


class Task(NamedTuple):
    """A task, described by the import strings of its parts: "module:Name" within its package, or a full name.

    Args:
        name: Name of the command.
        package: Full name of the package, "mmattn.tasks.NAME".
        title: One sentence for the help text and the README's table.
        model: The `nn.Module`.
        processor: Converts raw data to tensors and back (`mmattn.data.processor.Processor`).
        module: The LightningModule (`TaskModule`).
        datamodule: The LightningDataModule (`TaskDataModule`).
        predictor: Computes predictions from raw input (`Predictor`).
        demo: The built-in data, `make(split, limit)`.
        options: Options of `predict` and `explain` in addition to those of all tasks.
        adapter: Reads checkpoints of this toolkit (`mmattn.tasks.common.adapter.Adapter`); None: `Adapter` itself.
        families: Adapters of public models, by "model_type/Architecture" or "model_type/*".
        encoders: Adapters of public models that become a part of the task's model, whose other layers are to be
            trained, likewise; tasks for which a model is whole precede those for which it is a part.
        baselines: Command-line words of baselines that are expected to fail, by name. Their `--data.*` options also
            apply to evaluation.
        variants: Command-line words of other training runs that the ablations compare with the full model, by name.
        metric: The main metric, as named by the module's `monitor`.
        packages: Modules that the metric needs, of the extra `train`.
        kernel_words: Command-line words of a model whose encoder's self-attention has a kernel to choose.
        kernel_length: Sequence length of this attention on the built-in data, for kernels with a maximum length.
        default_checkpoint: Named model that `predict` loads without `--checkpoint`.
        localisation: Measures explanations against the built-in regions, `(predictor, limit) -> PointingGame`.
        tiny: Command-line words of a training run of a few seconds, for the tests.
        upgrade: Converts the model keywords of an earlier format (`mmattn.tasks.common.checkpoint.upgrade`).
    """

    name: str
    package: str
    title: str
    model: str
    processor: str
    module: str
    datamodule: str
    predictor: str
    demo: str
    options: tuple[Option, ...] = ()
    adapter: str | None = None
    families: Mapping[str, str] = {}
    encoders: Mapping[str, str] = {}
    baselines: Mapping[str, str] = {}
    variants: Mapping[str, str] = {}
    metric: str = ""
    packages: tuple[str, ...] = ()
    kernel_words: str = ""
    kernel_length: int = 64
    default_checkpoint: str = DEMO
    localisation: str | None = None
    tiny: str = ""
    upgrade: str | None = None

    def resolve(self, part: str) -> Any:
        """Import the object of a field, given the field's name, or of an import string.

        Raises:
            AttributeError: The module does not define the name.
            ImportError: The module does not exist.
        """
        module, _, name = getattr(self, part, part).partition(":")
        return getattr(importlib.import_module(module if "." in module else f"{self.package}.{module}"), name)

    @property
    def folder(self) -> Path:
        """The package's folder."""
        return Path(importlib.import_module(self.package).__path__[0])


@functools.cache
def tasks() -> dict[str, Task]:
    """All tasks by name: packages in `tasks` and the folders of MMATTN_TASKS, entry points of the group mmattn.tasks.

    Raises:
        AttributeError: A package has no TASK.
    """
    from importlib import metadata

    home = importlib.import_module("mmattn.tasks")
    names = [module.name for module in pkgutil.iter_modules(home.__path__) if module.ispkg and module.name != "common"]
    found: dict[str, Task] = {name: importlib.import_module(f"{home.__name__}.{name}").TASK for name in names}
    for entry in metadata.entry_points(group="mmattn.tasks"):
        found.setdefault(entry.name, entry.load())
    return dict(sorted(found.items()))
