"""The Trainer of a run, and the parser of its options: callbacks, loggers and precision from the configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mmattn.cpu import computes_bfloat16
from mmattn.tasks.common.auto import AUTO
from mmattn.tasks.common.callbacks import (
    EMA,
    AtomicCheckpointIO,
    BestCheckpoint,
    Estimate,
    FinalValidation,
    FrozenFeatures,
    LastCheckpoint,
    Patience,
    ReturnMemory,
    progress_bar,
)
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.parse_errors import readable
from mmattn.tasks.common.unfreezing import Unfreezing

# Options that a resumed run may change: they do not alter the results, or only on other hardware.
_FREE = """accelerator devices num_nodes strategy sync_batchnorm logger callbacks plugins profiler model_registry
default_root_dir enable_checkpointing enable_progress_bar enable_model_summary enable_autolog_hparams log_every_n_steps
num_sanity_val_steps max_time inference_mode deterministic benchmark detect_anomaly barebones use_distributed_sampler
limit_test_batches limit_predict_batches save_every_n_steps compile report refit"""
FREE_OPTIONS = frozenset(_FREE.split())

# The only packages whose classes a configuration may name (callbacks, loggers, strategies, plugins).
ALLOWED_IMPORTS = ["lightning.pytorch", "lightning.fabric"]
EPOCHS = "Number of epochs; auto: 20, for few data as many as a few hundred steps need; at most two hours."
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
LoggerOption = LoggerName | list[LoggerName] | Logger | list[Logger] | bool | None


class Parser(LightningArgumentParser):
    """A parser with one-line errors that suggest the nearest valid key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False  # a mistyped key must not be taken for another one

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(message)

    def explain(self, message: str) -> str:
        """The message of jsonargparse in one readable line."""
        known = {a.dest for a in self._actions if a.dest and a.dest not in ("help", "==SUPPRESS==")}
        return readable(message, sorted(known), ALLOWED_IMPORTS)


def add_trainer_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of Lightning's Trainer, whose loggers have names."""
    options: dict[str, Any] = {"fail_untyped": False, "instantiate": False, "sub_configs": True}
    parser.add_class_arguments(Trainer, "trainer", skip={"logger", "max_epochs"}, **options)
    parser.add_argument("--trainer.max_epochs", type=int | Literal["auto"] | None, default=AUTO, help=EPOCHS)
    what = (
        "Where figures and pictures are logged besides the run directory: tensorboard, csv, wandb, mlflow, or a list "
    )
    what += "of them, or a class of Lightning; none: tensorboard, and nowhere in an evaluation."
    parser.add_argument("--trainer.logger", type=LoggerOption, default=None, help=what)


def named_loggers(given: Any, root: Path, task: str, fit: bool) -> Any:
    """The loggers of names; loggers of other kinds are returned as they are.

    Args:
        given: A name, or a list of names; loggers; False; or, for the default, None or True.
        root: The run directory, whose name is that of the run.
        task: The task, after which projects are named.
        fit: Whether a model is trained: a CSV file in the run directory then has the figures, too.
    """
    if given in (None, True):
        given = "tensorboard" if fit else given or False
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return given
    logs = "logs" if fit else "evaluations"  # of which the report draws no curves
    project, run, found = f"mmattn-{task}", root.resolve().name, list[Logger]()
    for name in dict.fromkeys(names):
        if name == "wandb":
            found.append(WandbLogger(name=run, project=project, save_dir=root))
        elif name == "mlflow":  # one store for all runs of a folder
            found.append(MLFlowLogger(project, run, save_dir=str(root.parent / "mlruns")))
        elif name == "tensorboard":
            found.append(TensorBoardLogger(str(root), name=logs))
    version = next((logger.version for logger in found if isinstance(logger, TensorBoardLogger)), None)
    return [*found, *([CSVLogger(str(root), logs, version=version)] if fit or "csv" in names else [])]


def fit_callbacks(module: TaskModule[Any], root: Path, auto: bool) -> tuple[LastCheckpoint, list[Callback]]:
    """The callbacks of training, in the order in which they are called, and the one that writes `last.ckpt`.

    Args:
        module: The module.
        root: The run directory.
        auto: Whether the number of epochs is `auto`: `set_lengths` then sets the patience, too.
    """
    training = module.training_options
    last = LastCheckpoint(root, training.save_every_n_steps)
    callbacks: list[Callback] = [FinalValidation(), last, BestCheckpoint(root, module.monitor, module.mode)]
    every = module.optim.unfreeze_every
    # The first steps of a gradual unfreezing are the fastest: an estimate from them would be wrong.
    callbacks += [Estimate(), FrozenFeatures(root)] if every is None else [Unfreezing(every)]
    if module.optim.ema_decay:
        callbacks.append(EMA(module.optim.ema_decay))
    if training.early_stopping or (auto and training.early_stopping is None):
        patience = training.early_stopping or sys.maxsize
        callbacks.append(Patience(module.monitor, patience=patience, mode=module.mode, strict=False))
    return last, callbacks


def set_lengths(trainer: Trainer, max_epochs: int | None, check_val_every_n_epoch: int | None, patience: int) -> None:
    """Set what `auto` determines when the data are known."""
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.fit_loop.max_epochs = max_epochs
        trainer.check_val_every_n_epoch = check_val_every_n_epoch
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Patience):
            callback.patience = patience or sys.maxsize


def checkpoint_bytes(module: TaskModule[Any]) -> int:
    """The approximate size of a training checkpoint: weights, AdamW's two averages of those trained, and the EMA."""
    assert module.model is not None
    copies = 4 if module.optim.ema_decay else 3
    weights = [*module.model.parameters(), *module.model.buffers()]
    return sum(value.nbytes * (copies if value.requires_grad else 1) for value in weights)


def make_trainer(options: Mapping[str, Any], callbacks: list[Callback], root: Path, task: str, *, fit: bool) -> Trainer:
    """Make the Trainer.

    Args:
        options: Options of Lightning's Trainer.
        callbacks: Callbacks in addition to those of `options`.
        root: The run directory.
        task: The task.
        fit: Whether a model is trained.

    Raises:
        ConfigError: `max_time` is a text that is not a duration.
    """
    config = dict(options)
    limit = config["max_time"]
    if isinstance(limit, str) and not re.fullmatch(r"\d+(:\d\d){3}", limit.strip()):
        raise ConfigError(f"--trainer.max_time: expected DD:HH:MM:SS, found {limit!r}; 00:00:05:00 is five minutes.")
    if config["max_epochs"] == AUTO:
        config["max_epochs"] = 1  # until `set_lengths`
    if config["check_val_every_n_epoch"] is None and config["val_check_interval"] is None:
        config["check_val_every_n_epoch"] = 1
    given, plugins = (v if isinstance(v, list) else [v] for v in (config["callbacks"] or [], config["plugins"] or []))
    callbacks = [
        *given,
        *callbacks,
        ReturnMemory(),
        *([progress_bar()] if config["enable_progress_bar"] is not False else []),
    ]
    config["logger"] = named_loggers(config["logger"], root, task, fit)
    if not fit:
        config["enable_checkpointing"] = False
    if str(config["precision"]).startswith("bf16") and _on_cpu(config["accelerator"]) and not computes_bfloat16():
        sys.stderr.write(
            f"--trainer.precision {config['precision']}: this CPU does not compute in bfloat16, which would be many "
            f"times slower than float32; 32-true is used.\n"
        )
        config["precision"] = "32-true"
    return Trainer(**{**config, "callbacks": callbacks, "plugins": [*plugins, AtomicCheckpointIO()]})


def _on_cpu(accelerator: str) -> bool:
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
