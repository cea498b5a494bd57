"""Ctrl-C and SIGTERM while a model is trained: the run stops at the end of a batch, with `last.ckpt` of that moment."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mmattn.tasks.common.callbacks import LastCheckpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts(Checkpoint):
    """Ends a training run that receives SIGINT or SIGTERM; the exit code is 128 and the signal's number.

    Within training, the current batch and, at the end of an epoch, the validation are finished first, since a state in
    the midst of them could not be resumed exactly; a second signal ends the process at once. Elsewhere there is
    nothing to save, and the first one does.

    A `Checkpoint`, since Lightning calls these after all other callbacks, in their order.

    Args:
        last: Writes the checkpoint.
        resume: The command that resumes the run, for the message.
    """

    def __init__(self, last: LastCheckpoint, resume: str) -> None:
        self.last, self.resume = last, resume
        self.received: int | None = None
        self._installed = self._training = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within this context; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            self._installed = True
            self._install()
            yield
        finally:
            self._installed = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._training and self.received is None:
            self.received = number
            sys.stderr.write("\nstopping after this batch or validation; interrupt again to stop at once\n")
        else:
            self._stop(number)

    def _stop(self, number: int) -> None:
        how = f"resume it by `{self.resume}`" if self.last.path.exists() else "nothing was saved yet"
        when = f" after step {self.last.saved_step}" if self._training else ""
        sys.stderr.write(f"\nThe run was interrupted{when}; {how}\n")
        raise SystemExit(128 + number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = True
        if self._installed:
            self._install()  # Lightning has replaced the handler of SIGTERM

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._requested(trainer) and self.last.can_save(trainer):
            self.last.save(trainer)
            self._stop(self.received or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._requested(trainer):  # `last` is called before and has saved
            self._stop(self.received or signal.SIGTERM)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def _requested(self, trainer: Trainer) -> bool:
        """Whether any process received a signal; all of them stop at the same batch."""
        requested = self.received is not None
        return trainer.strategy.reduce_boolean_decision(requested, all=False) if trainer.world_size > 1 else requested
