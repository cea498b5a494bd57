"""Gradual unfreezing: pretrained layers become trainable one after another, from the last to the first."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from mmattn.tasks.common.callbacks import Patience
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.parameters import frozen_modules, largest_modules

MOST_NAMES = 4  # of layers in a message


class Unfreezing(Callback):
    """Trains the stages of `unfreezing_stages`, one more every few epochs (Howard and Ruder 2018, section 3.3).

    Which weights are frozen depends on the epoch alone. Frozen ones have no gradients, so that neither weight decay nor
    clipping sees them, and their modules are in evaluation mode: dropout is off, batch norms keep their statistics.
    Early stopping begins when all are trained.

    Args:
        every: Number of epochs of each stage.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._stage: int | None = None
        self._always: list[nn.Module] | None = None  # the modules that are frozen in all stages

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Unfreeze what an earlier fit left frozen: the optimizer has what is trained when it is made.

        Raises:
            ConfigError: The strategy does not let weights be unfrozen.
        """
        if not (isinstance(trainer.strategy, SingleDeviceStrategy) or type(trainer.strategy) is DDPStrategy):
            found = type(trainer.strategy).__name__
            raise ConfigError(f"optim.unfreeze_every: expected one device or --trainer.strategy ddp, found {found}.")
        self._stage = None
        if pl_module.model is not None:
            _train(pl_module.model, pl_module.stages, len(pl_module.stages))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Here rather than at the beginning of an epoch, which a run that is resumed within an epoch does not pass.
        last = len(pl_module.stages) - 1
        stage = min(trainer.current_epoch // self.every, last)
        if stage == self._stage:
            return
        self._stage = stage
        if self._always is None:
            self._always = pl_module.frozen
        _train(pl_module.model, pl_module.stages, stage + 1)
        pl_module.frozen = [*self._always, *frozen_modules(pl_module.model)]
        pl_module.train()
        if isinstance(trainer.strategy, DDPStrategy):
            # It waits for the gradients of all weights that are trained when it is made, and reduces no others.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        if pl_module.training_options.compile:
            torch.compiler.reset()  # the graphs of the stage before are of no use, and their number is limited
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Patience):
                callback.first_epoch = self.every * last
        if trainer.is_global_zero:
            sys.stderr.write(self._message(pl_module.model, pl_module.stages, stage, trainer.max_epochs or -1))

    def _message(self, model: nn.Module, stages: list[list[str]], stage: int, epochs: int) -> str:
        """The line that says what is trained from now on."""
        names, last = list(largest_modules(model, stages[stage])), len(stages) - 1
        shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} others" * (len(names) > MOST_NAMES))
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        line = f"From epoch {stage * self.every} on, {shown} {'is' if len(names) == 1 else 'are'} trained"
        line += f"{', too' * (stage > 0)} ({trained:,} of {total:,} weights)"
        if stage < last:
            line += f"; still frozen: {last - stage} of {last} groups of layers, the next until epoch "
            line += f"{(stage + 1) * self.every}"
        if 0 < epochs <= self.every * last:
            line += f", the last beyond --trainer.max_epochs {epochs}"
        return f"{line}.\n"


def _train(model: nn.Module, stages: list[list[str]], count: int) -> None:
    """Let the first stages be trained, and freeze the others."""
    parameters = dict(model.named_parameters())
    for stage, names in enumerate(stages):
        for name in names:
            parameters[name].requires_grad_(stage < count)
            if stage >= count:
                parameters[name].grad = None
