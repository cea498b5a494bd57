"""The end of a training run: what it ships, records and says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from mmattn import merge_lora
from mmattn.tasks.common import report, rundir
from mmattn.tasks.common.callbacks import BEST, LAST, LastCheckpoint, Patience, read_checkpoint, shipped_weights
from mmattn.tasks.common.checkpoint import load_weights, save_directory
from mmattn.tasks.common.module import TaskModule


def finish(trainer: Trainer, module: TaskModule[Any], root: Path, last: LastCheckpoint, program: str) -> list[str]:
    """Write the best model to `model/`, and the figures and the data's fingerprint into the run.

    Args:
        trainer: The trainer, after `fit`.
        module: The trained module; its model gets the best weights.
        root: The run directory.
        last: The callback that measured the time.
        program: The name of the task's program, for messages.

    Returns:
        What to tell the user, a line each.
    """
    best = read_checkpoint(root / BEST if (root / BEST).exists() else root / LAST)
    model, data = module.model, module.data
    assert model is not None
    validation = best["callbacks"].get("BestCheckpoint", {}).get("metrics", {})
    validation = {name.removeprefix("val/"): value for name, value in validation.items()}
    fit = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(last.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    values = trainer.callback_metrics
    fit |= {name.removeprefix("train/"): float(value) for name, value in values.items() if name.startswith("train/")}
    own_data = data.paths["train"] is not None
    ship(module, root, best, root / BEST, validation)
    rundir.record_metrics(root, "fit", rundir.read_json(root / rundir.METRICS).get("fit", {}) | fit)
    rundir.record_metrics(root, "validation", validation | module.notes())
    rundir.record_data(root, data.fingerprint())
    confusion = best["callbacks"].get("BestCheckpoint", {}).get("confusion")
    report.write(root, trainer, "validation", root / "model", validation, confusion)
    main = module.monitor.split("/")[1]
    score = f" (val/{main} {validation[main]:.4f}{module.measured_by})" if main in validation else ""
    which = "best model" if validation else "last model (none was validated)"
    own = " --data.test PATH" if own_data else ""
    return [
        f"Done. The run directory is {root}; the {which} is in {root / 'model'}{score}.",
        f"Next: `{program} test --checkpoint {root / 'model'}{own}`; `predict`, `explain` and `export` take the same "
        f"folder.",
        *_why_it_ended(trainer, module),
        *_at_chance(module, validation.get(main), program),
    ]


def ship(
    module: TaskModule[Any],
    root: Path,
    checkpoint: dict[str, Any],
    where: Path,
    validation: Mapping[str, Any],
    refit: Mapping[str, Any] | None = None,
) -> None:
    """Write `model/` of a run.

    Args:
        module: The trained module; its model gets the checkpoint's weights.
        root: The run directory.
        checkpoint: The content of the training checkpoint.
        where: Its path.
        validation: The figures of the best model.
        refit: What is recorded of a second training, on all data.
    """
    model, data = module.model, module.data
    assert model is not None
    load_weights(model, shipped_weights(checkpoint), where)
    save_directory(
        root / "model",
        task=module.task,
        model=merge_lora(model),
        keywords=module.final_keywords(data.model_sizes()),
        network=module.network,
        processor=module.complete_processor(data.processor, validation),
        metrics={"validation": validation},
        command=rundir.read_json(root / rundir.RUN)["command"],
        own_data=data.paths["train"] is not None,
        refit=refit,
    )


def _why_it_ended(trainer: Trainer, module: TaskModule[Any]) -> Iterator[str]:
    """A line if training ended before its last step."""
    total = trainer.estimated_stepping_batches
    steps = f"step {trainer.global_step:,}{f' of {total:,}' if math.isfinite(total) else ''}"
    if trainer.global_step >= total:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            yield (
                f"Training was ended by --trainer.max_time at {steps}; --ckpt_path last with a longer "
                f"--trainer.max_time continues it."
            )
        if isinstance(callback, Patience) and callback.has_stopped:
            yield (
                f"Training was ended early at {steps}: {module.monitor} had not improved in {callback.patience} "
                f"validations (--trainer.early_stopping, 0: never)."
            )


def _at_chance(module: TaskModule[Any], figure: float | None, program: str) -> Iterator[str]:
    """A line if the figure is that of predictions that ignore the input, within the error of the sample."""
    chance = None if figure is None else module.chance_level
    if figure is None or chance is None:
        return
    samples = len(module.data.dataset("val"))
    if chance.includes(figure, samples, module.mode):
        found, known = f"{module.monitor} {figure:.4f}", f"{chance.value:.4f} is the figure of {chance.by}"
        if (figure - chance.value) * (1 if module.mode == "max" else -1) > 0.1 * chance.scale:  # by luck, or more
            yield f"{samples:,} validation samples are too few to tell {found} from chance level: {known}."
            return
        start = "" if module.init_from is not None else "public weights (--init_from), "
        yield (
            f"{found} is at chance level, as far as {samples:,} validation samples tell: {known}. Try {start}more "
            f"data, more --trainer.max_epochs or another --optim.lr; `{program} check PATH` looks for what is wrong "
            f"with the data."
        )
