"""Training again on all data, once a part of them was held out for validation and few are left without it."""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Timer

from mmattn.tasks.common import rundir
from mmattn.tasks.common.callbacks import LAST, Patience, read_checkpoint
from mmattn.tasks.common.finish import finish, ship
from mmattn.tasks.common.task_cli import TaskCLI

FEW = 200  # samples, up to which a fifth more of them matters
FOLDER = "refit"  # of the second training, within the run directory; it is removed at the end
MARGIN = 1.2  # times the expected duration that must be left before --trainer.max_time
# Only the model of the second training is of use.
OPTIONS: dict[str, Any] = {
    "trainer.early_stopping": 0,
    "trainer.limit_val_batches": 0,
    "trainer.logger": False,
    "trainer.refit": False,
    "ckpt_path": None,
    "find_lr": False,
    "overwrite": True,
}


def epochs(first: TaskCLI) -> int:
    """Number of epochs of the second training; 0: there is none.

    As many as the last model had whose figure is within a standard error of the best one: few validation samples tell
    overfitting, but not which of two similar models is the better one, and that of the end is less often the worse.

    Args:
        first: The first training, which has ended.
    """
    data, trainer, wanted = first.datamodule, first.trainer, first.config["fit"].trainer.refit
    if not data.is_divided or trainer.world_size > 1 or wanted is False:
        return 0
    samples = len(data.whole)
    if wanted is None and (samples > FEW or not first.is_auto):
        return 0
    validation = rundir.read_json(first.root / rundir.METRICS).get("validation", {})
    if "epoch" not in validation or not trainer.current_epoch:  # it was not validated
        return 0
    stopped = any(isinstance(c, Patience) and c.has_stopped for c in trainer.callbacks)  # type: ignore[attr-defined]
    if not stopped and trainer.global_step < trainer.estimated_stepping_batches:
        return 0  # the time is up, or it was interrupted
    count = last_good_epoch(first, validation)
    for timer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(timer, Timer):
            expected = first.last.seconds * count / trainer.current_epoch * samples / len(data.dataset("train"))
            if (timer.time_remaining() or 0) < MARGIN * expected:
                print(
                    f"--trainer.max_time leaves no time to train on all {samples} samples, about {expected:.0f} s: the "
                    f"model is the one that was trained on {len(data.dataset('train'))}.",
                    flush=True,
                )
                return 0
    return count


def last_good_epoch(first: TaskCLI, validation: Mapping[str, float]) -> int:
    """Number of epochs of the last model whose figure is within a standard error of the best one.

    Args:
        first: The training.
        validation: The figures of the best model.
    """
    module, samples = first.model, len(first.datamodule.dataset("val"))
    best, chance = validation[module.monitor.removeprefix("val/")], module.chance_level
    scale = 1.0 if chance is None else chance.scale
    share = min(max(best / scale, 0.0), 1.0)
    error = scale * math.sqrt(share * (1 - share) / samples)  # that of a share, the largest of all in 0..scale
    sign = 1 if module.mode == "max" else -1
    logged = rundir.column(rundir.logged(first.root), module.monitor)
    good = [step + 1 for step, value in logged if sign * (best - value) <= error]
    steps = first.trainer.global_step / first.trainer.current_epoch  # of an epoch
    return max([int(validation["epoch"]) + 1, *(math.ceil(step / steps) for step in good)])


class Refit(TaskCLI):
    """The second training, with the options of the first; its model replaces the first one's.

    Args:
        first: The first training.
        count: Number of epochs.
    """

    whole = True

    def __init__(self, first: TaskCLI, count: int) -> None:
        self.first, self.outcome = first, ""
        given = OPTIONS | {"trainer.max_epochs": count, "trainer.default_root_dir": str(first.root / FOLDER)}
        given["optim.lr"] = first.model.lr  # which --find_lr may have set
        limit = first.config["fit"].trainer.max_time
        if limit is not None:
            left = next(c for c in first.trainer.callbacks if isinstance(c, Timer)).time_remaining()  # type: ignore[attr-defined]
            given |= {"trainer.max_time": _duration(left or 0)}
        words = [word for key, value in given.items() for word in (f"--{key}", "null" if value is None else str(value))]
        argv = ["--config", str(first.root / rundir.CONFIG), *words]
        super().__init__(first.entry, "fit", argv, first.program, first.sources if first.is_python else None)

    def _resolve_auto(self, recorded: Mapping[str, Any]) -> None:
        super()._resolve_auto(recorded)
        self.said = [
            f"{len(self.datamodule.whole)} samples are few: training goes over all of them again, with those that were "
            f"held out (--trainer.refit false: not)."
        ]

    def _command(self) -> str:
        return self.first._command()

    def _finish(self) -> None:
        root = self.first.root
        validation = rundir.read_json(root / rundir.METRICS)["validation"]
        refit = {
            "samples": len(self.datamodule.whole),
            "epochs": self.trainer.current_epoch,
            "seconds": round(self.last.seconds, 1),
        }
        ship(self.model, root, read_checkpoint(self.root / LAST), self.root / LAST, validation, refit)
        rundir.record_refit(root, refit)
        shutil.rmtree(self.root)
        self.outcome = (
            f"It was trained on all {refit['samples']} samples at last; the figures are those of the model before, "
            f"which had not seen the held-out ones."
        )


class FitCLI(TaskCLI):
    """`TaskCLI` that trains again on all data, where few were given."""

    def _finish(self) -> None:
        lines = finish(self.trainer, self.model, self.root, self.last, self.program)
        if count := epochs(self):
            lines.insert(1, Refit(self, count).outcome)
        print("\n".join(lines), flush=True)


def _duration(seconds: float) -> str:
    """Seconds as DD:HH:MM:SS."""
    whole = datetime.timedelta(seconds=int(seconds))
    minutes, rest = divmod(whole.seconds, 60)
    return f"{whole.days:02}:{minutes // 60:02}:{minutes % 60:02}:{rest:02}"
