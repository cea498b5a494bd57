"""What a task is: the one place where it is described. Standard library alone, so that help answers at once.

Whatever works for all tasks reads this: the command line, `load`, the ablations, the pointing game, the tests, and the
table in the README. Both classes are named tuples, since importing `dataclasses` would add a tenth to the time of a
task's `--help`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Option(NamedTuple):
    """A command-line option of a task's `predict` and `explain`.

    Args:
        name: `image` stands for `--image`.
        help: one line.
        type: of the value; bool: a switch.
        default: where it is not given; None: what `predict` itself takes.
        kind: "item": a part of the one item that the command is about, by its key; "predict": a keyword of the
            predictor's `predict` and `explain`; "load": a keyword of its `load`.
        only: the one command that has it; None: both.
        metavar: what help calls the value.
    """

    name: str
    help: str
    type: type = str
    default: Any = None
    kind: Literal["item", "predict", "load"] = "predict"
    only: Literal["predict", "explain"] | None = None
    metavar: str | None = None


class Task(NamedTuple):
    """A task, by the import strings of what it consists of: "module:Name", a module of its package or a full name.

    Args:
        name: the command's.
        package: its full name, "mmattn.tasks.NAME".
        title: one sentence for help and for the README's table.
        model: the `nn.Module`.
        processor: raw data to tensors and back (`mmattn.data.processor.Processor`).
        module: the LightningModule (`TaskModule`).
        datamodule: its data (`TaskDataModule`).
        predictor: raw input to predictions (`Predictor`).
        demo: `make(split, limit)`, the built-in data.
        options: what `predict` and `explain` take beside the options of all tasks.
        adapter: reads models of ours (`mmattn.tasks.common.adapter.Adapter`); None: that one itself.
        families: public models that it reads: "model_type/Architecture" or "model_type/*" to an adapter.
        baselines: trainings that must fail, by name: command-line words. Those of `--data.*` also hold in measuring.
        variants: other trainings that the ablations compare with the full one, likewise.
        metric: the main one, as the module's monitor names it.
        kernel_words: what a training needs so that the encoder's attention has a kernel to choose.
        kernel_length: tokens that this attention sees in the built-in data, for kernels that have to know.
        default_checkpoint: the named model that `predict` takes without `--checkpoint`.
        localisation: measures explanations against the built-in truth, `(predictor, limit) -> PointingGame`.
        tiny: command-line words of a training that takes seconds, for the tests.
        upgrade: changes the model's keywords of an earlier format (`mmattn.tasks.common.checkpoint.upgrade`).
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
    baselines: Mapping[str, str] = {}
    variants: Mapping[str, str] = {}
    metric: str = ""
    kernel_words: str = ""
    kernel_length: int = 64
    default_checkpoint: str = "demo"
    localisation: str | None = None
    tiny: str = ""
    upgrade: str | None = None

    def resolve(self, part: str) -> Any:
        """The object behind one of the import strings, by the field's name; or by the string itself.

        Raises:
            AttributeError: the module has no such name.
            ImportError: there is no such module.
        """
        module, _, name = getattr(self, part, part).partition(":")
        return getattr(importlib.import_module(module if "." in module else f"{self.package}.{module}"), name)

    @property
    def folder(self) -> Path:
        """The package's folder."""
        return Path(importlib.import_module(self.package).__path__[0])


@functools.cache
def tasks() -> dict[str, Task]:
    """All tasks by name: packages in `tasks` and in the folders of MMATTN_TASKS, entry points of group mmattn.tasks.

    Raises:
        AttributeError: a package has no TASK.
    """
    from importlib import metadata

    home = importlib.import_module("mmattn.tasks")
    names = [module.name for module in pkgutil.iter_modules(home.__path__) if module.ispkg and module.name != "common"]
    found: dict[str, Task] = {name: importlib.import_module(f"{home.__name__}.{name}").TASK for name in names}
    for entry in metadata.entry_points(group="mmattn.tasks"):
        found.setdefault(entry.name, entry.load())
    return dict(sorted(found.items()))
