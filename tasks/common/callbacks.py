"""Callbacks of training: crash-safe checkpoints, averaged weights, early stopping, progress lines."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ProgressBar,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mmattn.tasks.common.allocator import HEAP
from mmattn.tasks.common.errors import CheckpointError, DiskFullError, NonFiniteLossError
from mmattn.tasks.common.files import atomic_write
from mmattn.tasks.common.frozen import FeatureStore, discard_features, keep_features

logger = logging.getLogger(__name__)
LAST, BEST = "last.ckpt", "best.ckpt"

KEYS = {  # that resuming reads
    "": ("epoch", "global_step", "pytorch-lightning_version", "callbacks", "optimizer_states", "lr_schedulers"),
    "mmattn.": ("task", "settings", "processor"),
    "loops.": ("fit_loop",),
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically; reads tensors and plain values only, from local files only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint; a killed process or a full disk leaves the earlier file unchanged.

        Raises:
            CheckpointError: The file cannot be written; names it and the cause.
            NonFiniteLossError: A weight is NaN or infinite.
        """
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NonFiniteLossError(
                    f"{path}: not written, since {name} has values that are NaN or infinite. Earlier checkpoints are "
                    f"unchanged. Try a lower --optim.lr or --trainer.gradient_clip_val 1.0."
                )
        try:
            with atomic_write(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer reports a failed write as a RuntimeError
            cause = "the disk is full" if isinstance(error, DiskFullError) else str(error).splitlines()[0]
            raise CheckpointError(f"{path}: cannot be written: {cause}. Earlier checkpoints are unchanged.") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a training checkpoint without executing code from it.

        Raises:
            CheckpointError: The file is missing, truncated, foreign, or not local.
        """
        return read_checkpoint(path, map_location or "cpu")


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a `.ckpt` with `weights_only=True`.

    Raises:
        CheckpointError: The file is missing, truncated, foreign, or not local.
    """
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        raise CheckpointError(f"{path}: checkpoints are read from local files only; download it first.")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, found no such file.")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler raises what its instructions cause
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: expected a checkpoint of this toolkit, found a damaged, truncated or foreign file ({why})."
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "loops" not in checkpoint:
        raise CheckpointError(f"{path}: expected a training checkpoint, found another kind of file.")
    return checkpoint


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise a CheckpointError for a checkpoint without the keys that resuming reads."""
    parts = {"": checkpoint, "mmattn.": checkpoint.get("mmattn"), "loops.": checkpoint["loops"]}
    for prefix, keys in KEYS.items():
        given = parts[prefix]
        missing = [f"{prefix}{key}" for key in keys if not isinstance(given, dict) or key not in given]
        if missing:
            expected = "expected a training checkpoint of this toolkit"
            raise CheckpointError(f"{path}: {expected}, found one without {', '.join(missing)}.")


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run is resumed, every `every_n_steps` optimizer steps and after each epoch."""

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = folder / LAST, every_n_steps
        self.saved_step = 0
        self._seconds, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, including those before a resume."""
        return self._seconds + time.monotonic() - self._since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_due = trainer.should_stop or trainer.global_step - self.saved_step >= self.every_n_steps
        if self.can_save(trainer) and is_due:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        is_whole = progress.is_last_batch or progress.current.ready >= trainer.num_training_batches
        if is_whole or not self.path.exists():  # Lightning counts an epoch that was cut short as a whole one
            self.save(trainer)

    @staticmethod
    def can_save(trainer: Trainer) -> bool:
        """Whether the end of this batch is a state to resume from.

        Accumulated gradients are not saved; the last batch is saved after validation.
        """
        loop = trainer.fit_loop.epoch_loop
        return not (loop._should_accumulate() or loop.batch_progress.is_last_batch)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"saved_step": self.saved_step, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved_step, self._seconds = state_dict["saved_step"], state_dict["seconds"]


class BestCheckpoint(Checkpoint):
    """Writes `best.ckpt` whenever the monitored metric is at least as good as before, and stores all its metrics.

    Of equal scores the last is kept: while a metric stays at zero, a model that was trained longer is seldom worse.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.path, self.monitor, self.sign = folder / BEST, monitor, 1.0 if mode == "max" else -1.0
        self.score = -math.inf
        self.metrics: dict[str, float] = {}
        self.confusion: Tensor | None = None  # the confusion matrix of the best validation, if the task has one

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or (not trainer.validating and not trainer.training):
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            return
        score = self.sign * float(value)
        if math.isnan(score):
            logger.warning("%s is not a number at step %d; best.ckpt is kept.", self.monitor, trainer.global_step)
        elif score >= self.score:
            self.score = score
            self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.metrics |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
            self.confusion = pl_module.confusion.get("val")
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "metrics": self.metrics, "confusion": self.confusion}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.metrics = state_dict["score"], state_dict["metrics"]
        self.confusion = state_dict.get("confusion")


class FinalValidation(Checkpoint):
    """Validates at the end of training, whatever ends it, so that the last weights have a figure.

    A `Checkpoint`, since Lightning's timer, which may end training after this batch, must be called before.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        progress, epochs = loop.epoch_loop.batch_progress, loop.max_epochs or -1
        epoch: Any = loop.epoch_progress.current
        is_last = progress.is_last_batch and 0 < epochs <= epoch.processed + 1
        is_last |= 0 < loop.max_steps <= trainer.global_step
        if (is_last or trainer.should_stop) and loop._can_stop_early:
            trainer.check_val_every_n_epoch, trainer.should_stop = 1, True


def _seconds_left(trainer: Trainer, pace: float) -> float:
    """The time until the last step, at `pace` seconds a step, or until `max_time` ends training before."""
    limits = (c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    steps = trainer.estimated_stepping_batches - trainer.global_step
    return max(0.0, min([pace * steps, *(limit for limit in limits if limit is not None)]))


class Estimate(Callback):
    """Says once, after the first steps, how long training will take, if that is minutes."""

    FIRST, LAST = 5, 25  # steps between which the time is measured

    def __init__(self) -> None:
        self._step, self._since = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step - self._step
        if not trainer.is_global_zero or done > self.LAST or trainer.fit_loop._should_accumulate():
            return
        if done == self.FIRST:
            self._since = time.monotonic()
        elif done == self.LAST:
            seconds = (time.monotonic() - self._since) / (self.LAST - self.FIRST)
            if 60 < (left := _seconds_left(trainer, seconds)) < math.inf:
                print(f"about {left / 60:.1f} minutes left, {seconds:.2g} s a step, validation not counted", flush=True)


class FrozenFeatures(Callback):
    """Computes the features of frozen image encoders once for each image, see `mmattn.tasks.common.frozen`."""

    def __init__(self, root: Path) -> None:
        self.root, self.stores = root, list[FeatureStore]()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.data.augment is None or getattr(pl_module.data.augment, "is_finite", False):  # seen again
            self.stores = keep_features(pl_module.model, self.root, trainer.global_rank)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        discard_features(pl_module.model, self.stores)
        self.stores = []


class EMA(Callback):
    """An exponential moving average of the weights, used to validate and to ship (Polyak and Juditsky 1992).

    average <- d * average + (1 - d) * weight, with d = min(decay, (1 + n) / (10 + n)) at update n, so that the initial
    weights soon have little influence. Statistics of batch norms are averaged alike, since those of the current weights
    do not fit the averaged ones. The training checkpoint contains weights and average.
    """

    def __init__(self, decay: float) -> None:
        self.decay, self.updates, self._step = decay, 0, 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        model = pl_module.model
        named, kept = _tensors(model), model.state_dict(keep_vars=True)
        for name, value in named.items():
            if name in kept and value.is_floating_point():
                self.average.setdefault(name, value.detach().clone())
        self.average = {name: value.to(named[name].device) for name, value in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:
            return  # no optimizer step: gradients are being accumulated
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        named = _tensors(pl_module.model)
        torch._foreach_lerp_(list(self.average.values()), [named[name].detach() for name in self.average], 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._swap(pl_module)  # restored before checkpoints are written

    @torch.no_grad()
    def _swap(self, pl_module: Any) -> None:
        for name, value in _tensors(pl_module.model).items():
            if name in self.average:
                current = value.detach().clone()
                value.copy_(self.average[name])
                self.average[name].copy_(current)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.updates, self._step = state_dict["average"], state_dict["updates"], state_dict["step"]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def shipped_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights to ship from a training checkpoint: the average if there is one, otherwise the model's weights."""
    state = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    return state | checkpoint.get("callbacks", {}).get(EMA.__name__, {}).get("average", {})


class Patience(EarlyStopping):
    """Early stopping that survives a resume: a run that has stopped does not train another epoch."""

    first_epoch = 0  # validations before it do not count

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return super()._should_skip_check(trainer) or trainer.current_epoch < self.first_epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.has_stopped:
            trainer.should_stop = True

    @property
    def has_stopped(self) -> bool:
        """Whether it has ended training."""
        return self.wait_count >= self.patience


class LineProgress(ProgressBar):
    """Prints a line after each validation and at most every ten seconds, for logs and CI."""

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds, self._shown, self._began, self._first_step = seconds, 0.0, 0.0, 0
        self._enabled = True

    def disable(self) -> None:  # called by Lightning on all processes but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._shown = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._shown >= self.seconds:
            self._line(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer)

    def _line(self, trainer: Trainer) -> None:
        if not self._enabled:
            return
        self._shown = time.monotonic()
        seconds = self._shown - self._began
        total = trainer.estimated_stepping_batches
        steps = trainer.global_step - self._first_step
        left = _seconds_left(trainer, seconds / steps) if steps else math.inf
        rest = f", {left:.0f} s left" if math.isfinite(left) else ""
        module: Any = trainer.lightning_module
        names: tuple[str, str] = ("train/loss", module.monitor)
        values = trainer.callback_metrics
        shown = "".join(f"  {name} {float(values[name]):.4f}" for name in names if name in values)
        print(
            f"epoch {trainer.current_epoch}  step {trainer.global_step}/{total}{shown}  [{seconds:.0f} s{rest}]",
            flush=True,
        )


def progress_bar() -> ProgressBar:
    """Rich's progress bar on a terminal, a widget in a notebook, lines otherwise."""
    import sys

    if type(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()).__name__ == "ZMQInteractiveShell":
        return TQDMProgressBar()  # a widget
    return RichProgressBar(leave=True) if sys.stdout.isatty() and not os.environ.get("CI") else LineProgress()


class ReturnMemory(Callback):
    """Returns freed memory to the system when it piles up, see `mmattn.tasks.common.allocator.Heap`."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        HEAP.check()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        HEAP.check()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        HEAP.check()
