"""The learning rate of each step: a warm-up, then a decay that ends with training, by steps or by time."""

from __future__ import annotations

import math
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from mmattn.tasks.common import auto
from mmattn.tasks.common.options import Schedule

ENDLESS = ("inverse_sqrt", "constant")  # schedules that do not depend on the length of training


def schedule_factor(schedule: Schedule, step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate at `step` as a fraction of its peak: linear warm-up, then the named decay.

    "cosine" and "linear" reach zero at `total_steps`; "inverse_sqrt" is sqrt(warmup / step) (Vaswani et al. 2017,
    section 5.3, scaled to a peak of one).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        return math.sqrt(max(warmup_steps, 1) / max(step + 1, 1))
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def due_step(schedule: Schedule, step: int, total_steps: int, trainer: Trainer) -> int:
    """The step that the schedule has reached: `step`, or a later one if `max_time` will end training before the last.

    A learning rate that falls to the last step would otherwise be near its peak when time is up. All processes get the
    same answer.

    Args:
        schedule: The schedule; one that does not depend on the length of training goes by steps alone.
        step: Number of optimizer steps so far.
        total_steps: Number of steps without a limit of time.
        trainer: The trainer.
    """
    if schedule in ENDLESS:
        return step
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None:
            share = callback.time_elapsed() / max(callback.time_elapsed() + left, 1e-9)
            step = max(step, int(min(trainer.strategy.broadcast(share), 1.0) * total_steps))
    return step


def warmup_steps(steps: int | Literal["auto"], trainer: Trainer, total_steps: int) -> int:
    """Steps of the warm-up, in proportion if `max_steps` ends training before the last epoch.

    Args:
        steps: Those of the options.
        trainer: The trainer.
        total_steps: Steps of training.
    """
    if steps == auto.AUTO:
        return auto.warmup(total_steps)
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    if trainer.max_steps < 0 or epochs < 0:
        return steps
    planned = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches) * epochs
    return int(steps * total_steps // planned) if trainer.max_steps < planned else steps
