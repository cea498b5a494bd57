"""The Trainer of a run: callbacks, loggers and precision from the configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mmattn.cpu import computes_bfloat16
from mmattn.tasks.common.auto import AUTO
from mmattn.tasks.common.callbacks import (
    EMA,
    AtomicCheckpointIO,
    BestCheckpoint,
    Estimate,
    FinalValidation,
    LastCheckpoint,
    Patience,
    progress_bar,
)
from mmattn.tasks.common.module import TaskModule

# Options that a resumed run may change: they do not alter the results, or only on other hardware.
_FREE = """accelerator devices num_nodes strategy sync_batchnorm logger callbacks plugins profiler model_registry
default_root_dir enable_checkpointing enable_progress_bar enable_model_summary enable_autolog_hparams log_every_n_steps
num_sanity_val_steps max_time inference_mode deterministic benchmark detect_anomaly barebones use_distributed_sampler
limit_test_batches limit_predict_batches save_every_n_steps compile"""
FREE_OPTIONS = frozenset(_FREE.split())


def fit_callbacks(module: TaskModule[Any], root: Path, auto: bool) -> tuple[LastCheckpoint, list[Callback]]:
    """The callbacks of training, in the order in which they are called, and the one that writes `last.ckpt`.

    Args:
        module: The module.
        root: The run directory.
        auto: Whether the number of epochs is `auto`: `set_lengths` then sets the patience, too.
    """
    training = module.training_options
    last = LastCheckpoint(root, training.save_every_n_steps)
    callbacks: list[Callback] = [FinalValidation(), last, BestCheckpoint(root, module.monitor, module.mode), Estimate()]
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


def make_trainer(options: Mapping[str, Any], callbacks: list[Callback], root: Path | None) -> Trainer:
    """Make the Trainer.

    Args:
        options: Options of Lightning's Trainer.
        callbacks: Callbacks in addition to those of `options`.
        root: Folder of the default loggers, for training; None: evaluation.
    """
    config = dict(options)
    if config["max_epochs"] == AUTO:
        config["max_epochs"] = 1  # until `set_lengths`
    if config["check_val_every_n_epoch"] is None and config["val_check_interval"] is None:
        config["check_val_every_n_epoch"] = 1
    given, plugins = (v if isinstance(v, list) else [v] for v in (config["callbacks"] or [], config["plugins"] or []))
    callbacks = [*given, *callbacks, *([progress_bar()] if config["enable_progress_bar"] is not False else [])]
    if root is None:
        config["enable_checkpointing"] = False
        config["logger"] = config["logger"] or False
    elif config["logger"] in (None, True):
        board = TensorBoardLogger(str(root), name="logs")
        config["logger"] = [board, CSVLogger(str(root), name="logs", version=board.version)]
    if str(config["precision"]).startswith("bf16") and _on_cpu(config["accelerator"]) and not computes_bfloat16():
        sys.stderr.write(
            f"--trainer.precision {config['precision']}: this CPU does not compute in bfloat16, which would be many "
            f"times slower than float32; 32-true is used.\n"
        )
        config["precision"] = "32-true"
    return Trainer(**{**config, "callbacks": callbacks, "plugins": [*plugins, AtomicCheckpointIO()]})


def _on_cpu(accelerator: str) -> bool:
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
