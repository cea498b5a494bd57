"""`auto`: batch size, epochs and warm-up by the number of samples, for few as for many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

AUTO: Final = "auto"
KEYS = ("data.batch_size", "trainer.max_epochs", "optim.warmup_steps")  # whose default it is
SMALLEST = 8  # batch
STEPS, MOST_STEPS = 240, 10_000  # optimizer steps: at least, whatever the number of samples, in most tasks; and at most
FINE_TUNING = 3  # times fewer steps are the least where weights are given
EPOCHS, MOST_EPOCHS = 20, 240
TIME = "00:02:00:00"  # two hours: after it a run whose epochs are `auto` ends, if it has no limit of its own
BETWEEN = 10  # optimizer steps between two validations, at least
WARMUP, MOST_WARMUP = 0.1, 500  # share of the steps, and steps
PATIENCE = 10  # validations without improvement, at least
SOME = 1000  # samples by which lengths are estimated


def batch_size(samples: int, largest: int) -> int:
    """The largest power of two of which an epoch has at least three batches, within bounds.

    >>> [batch_size(samples, 64) for samples in (10, 48, 100, 10_000)]
    [8, 16, 32, 64]
    """
    size = 2 ** max(0, int(math.log2(max(samples, 3) / 3)))
    return min(max(size, SMALLEST), largest)


def epochs(steps: int, least: int = STEPS) -> int:
    """Number of epochs of `steps` optimizer steps each, for at least `least` steps.

    >>> [epochs(steps) for steps in (1, 3, 100, 700, 20_000)]
    [240, 80, 20, 14, 1]
    """
    wanted = min(max(EPOCHS, -(-least // steps)), MOST_EPOCHS)
    return max(1, min(wanted, MOST_STEPS // steps))


def warmup(steps: float) -> int:
    """Number of warm-up steps of a run of `steps` optimizer steps."""
    return int(min(WARMUP * steps, MOST_WARMUP))


def some(samples: Sequence[Any]) -> Sequence[Any]:
    """At most `SOME` samples, at equal distances."""
    return samples[:: -(-len(samples) // SOME)]


def resolve(config: Any, data: Any, processes: int, recorded: Mapping[str, Any]) -> str | None:
    """Replace `auto` by numbers, in place, and what depends on the epochs: validations, patience.

    Args:
        config: The options of `fit`, with access by dotted keys.
        data: The data module; its batch size is set.
        processes: Number of processes.
        recorded: Numbers of the run that is resumed, by key, which are kept.

    Returns:
        A line that states the numbers; None without `auto`.
    """
    given = [key for key in KEYS if config[key] == AUTO]

    def settle(key: str, choose: Any) -> None:
        config[key] = recorded[key] if recorded.get(key, AUTO) != AUTO else choose()

    if KEYS[0] in given:
        settle(KEYS[0], lambda: data.choose_batch_size(processes))
        data.batch_size = config[KEYS[0]]
    steps = 1
    if given and not all(key in recorded for key in given):
        steps = _steps(config["trainer"], data.epoch_batches(processes))
    limit = config["trainer.max_steps"]
    if KEYS[1] in given:
        least = data.least_steps if config["init_from"] is None else data.least_steps // FINE_TUNING
        planned = epochs(steps, least) if limit < 0 else max(1, -(-limit // steps))
        settle(KEYS[1], lambda: planned if limit < 0 else -1)  # the steps, which a resumed run may raise, end it
        interval = max(1, min(-(-BETWEEN // steps), planned // PATIENCE))
        if config["trainer.check_val_every_n_epoch"] is None and config["trainer.val_check_interval"] is None:
            settle("trainer.check_val_every_n_epoch", lambda: interval)
        if config["trainer.early_stopping"] is None:
            settle("trainer.early_stopping", lambda: max(PATIENCE, planned // (2 * interval)))
    elif config["trainer.check_val_every_n_epoch"] is None and config["trainer.val_check_interval"] is None:
        config["trainer.check_val_every_n_epoch"] = 1
    if KEYS[2] in given:
        longest = config[KEYS[1]]
        total = math.inf if longest is None or longest < 0 else steps * longest
        settle(KEYS[2], lambda: warmup(min(total, limit) if limit > 0 else total))
    said = [f"--{key} {config[key]}" for key in given if config[key] != -1]
    if KEYS[1] in given and config["trainer.max_time"]:
        said.append(f"at most {config['trainer.max_time']}")
    return f"auto: {', '.join(said)}" if said else None


def _steps(trainer: Any, batches: int) -> int:
    """Optimizer steps of an epoch of so many batches."""
    share = trainer["limit_train_batches"]
    if share is not None:
        batches = min(batches, share) if isinstance(share, int) else int(batches * share)
    return max(1, -(-batches // (trainer["accumulate_grad_batches"] or 1)))
