"""Training from Python: `mmattn.fit`, the command `fit` with paths or samples in memory."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmattn.data.errors import UserError, nearest, shorten
from mmattn.tasks.common import rundir
from mmattn.tasks.common.errors import ConfigError, missing_package
from mmattn.tasks.common.outputs import save_png
from mmattn.tasks.common.predictor import Predictor, load
from mmattn.tasks.common.task import tasks

SPLITS = ("train", "val", "test")
OTHERS = ("init_from", "ckpt_path", "overwrite", "find_lr", "seed_everything")  # options that belong to no section
SECTIONS = ("trainer", "model", "optim", "loss", "decode", "data")


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Args:
        task: Name of the task.
        dir: The run directory.
    """

    task: str
    dir: Path

    @functools.cached_property
    def predictor(self) -> Predictor[Any, Any]:
        """The predictor of the best model."""
        return load(self.dir / "model")

    @property
    def metrics(self) -> dict[str, Any]:
        """The best model's figures on the validation data."""
        return dict(rundir.read_json(self.dir / rundir.METRICS).get("validation", {}))

    def plot(self) -> Any:
        """Plot the training loss and the main validation metric by step, and write `curves.png` into the run.

        Returns:
            The matplotlib Figure.

        Raises:
            UserError: The run has no logs.
        """
        from matplotlib.figure import Figure

        main = f"val/{self._monitor()}"
        rows = rundir.logged(self.dir)
        curves = {name: rundir.column(rows, name) for name in ("train/loss", main)}
        if not any(curves.values()):
            raise UserError(f"{self.dir / 'logs'}: expected the metrics.csv of a run, found none with {main}.")
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axis, (name, points) in zip(figure.subplots(1, 2), curves.items(), strict=True):
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 100 else None) if points else None
            axis.set_xlabel("step")
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
        save_png(self.dir / "curves.png", figure.savefig)
        return figure

    def _monitor(self) -> str:
        """The metric that selected the model: the task's main one, or else the first of the figures."""
        names = list(self.metrics)
        return tasks()[self.task].metric if tasks()[self.task].metric in names else names[0] if names else "loss"


def fit(
    task: str,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    config: str | Path | None = None,
    dir: str | Path | None = None,
    **options: Any,
) -> Run:
    """Train a model, as `mmattn TASK fit` does.

    Args:
        task: Name of the task, "classification".
        train: Training data: a path in one of the task's formats, or "demo"; the task's samples; or rows with the
            columns of the task's table, as mappings, tuples such as (image, label), or a pandas DataFrame.
        val: Validation data, likewise; None: a part of the training data is held out.
        test: Test data, likewise.
        config: A YAML file; options override it.
        dir: The run directory; None: runs/TASK.
        options: Options of the command line: `init_from="efficientnet_lite0"`, `overwrite=True`, `ckpt_path="last"`;
            sections as mappings, `optim={"lr": 1e-3}`; dotted names, `**{"optim.lr": 1e-3}`.

    Returns:
        The run, with its predictor, figures, directory and plot.

    Raises:
        KeyboardInterrupt: Training was interrupted; `ckpt_path="last"` resumes it.
        UserError: An option, the data or a checkpoint is invalid.
    """
    if task not in tasks():
        raise ConfigError(f"{task}: expected a task, {', '.join(tasks())}{nearest(task, tasks())}.")
    from mmattn.tasks.common.datamodule import MEMORY

    sources: dict[str, Any] = {}
    words: list[str] = [] if config is None else ["--config", str(config)]
    for split, given in zip(SPLITS, (train, val, test), strict=True):
        if isinstance(given, (str, Path)):
            words += [f"--data.{split}", str(given)]
        elif given is not None:
            words += [f"--data.{split}", MEMORY]
            sources[split] = list(given) if isinstance(given, Iterator) else given
    if dir is not None:
        words += ["--trainer.default_root_dir", str(dir)]
    words += [word for name, value in options.items() for word in _words(name, value)]
    try:
        from mmattn.tasks.common import cli
    except ModuleNotFoundError as error:
        raise UserError(missing_package(error)) from None
    try:
        root = cli.run(tasks()[task], "fit", words, f"mmattn {task}", sources).root
    except SystemExit as stop:  # of an interrupted run; the handlers of the process are back in place
        number = (stop.code if isinstance(stop.code, int) else 0) - 128
        if number == signal.SIGTERM:
            signal.raise_signal(number)
        raise KeyboardInterrupt from None
    return Run(task, root)


def _words(name: str, value: Any) -> Iterator[str]:
    """An option as words of the command line."""
    if name in SECTIONS:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: expected options and their values, found {shorten(value)}.")
        for key, inner in value.items():
            yield from _words(f"{name}.{key}", inner)
        return
    if "." not in name and name not in OTHERS:
        known = [*SPLITS, "config", "dir", *OTHERS, *SECTIONS]
        raise ConfigError(f"{name}: unknown option{nearest(name, known)}; expected one of: {', '.join(known)}.")
    try:
        yield from (f"--{name}", str(value) if isinstance(value, (str, Path)) else json.dumps(value))
    except TypeError:
        raise ConfigError(f"{name}: expected a number, a text, or a list or mapping, found {shorten(value)}.") from None
