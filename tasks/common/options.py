"""The options of a run beside the network's and the data's: optimization, loss, decoding, and training itself.

Each class is a section of the command line: ``--optim.*``, ``--loss.*``, ``--decode.*`` and, beside Lightning's own,
``--trainer.*``. A task subclasses those to which it adds, and names them in its module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mmattn.tasks.common.errors import ConfigError

Schedule = Literal["cosine", "linear", "inverse_sqrt", "constant"]


def check_range(name: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Check an option that was given; None is left alone.

    Args:
        name: With its section.
        value: What was given.
        low: The least value.
        high: The greatest value.
        open_low: The value lies above `low`.

    Raises:
        ConfigError: The value lies outside.
    """
    if value is None or ((low < value if open_low else low <= value) and value <= high):
        return
    least = f"above {low:g}" if open_low else f"of at least {low:g}"
    raise ConfigError(
        f"{name}: expected a value {least}{'' if high == math.inf else f' and at most {high:g}'}, found {value}."
    )


@dataclass
class OptimOptions:
    """AdamW and its schedule.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, applied to matrices only.
        betas: Averaging coefficients of the gradient and of its square.
        schedule: How the learning rate falls after the warm-up: cosine, linear, inverse_sqrt or constant.
        warmup_steps: Optimizer steps of linear warm-up.
        ema_decay: Validate and ship an exponential moving average of the weights with this decay; none: the weights.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, open_low=True)
        check_range("optim.weight_decay", self.weight_decay, 0)
        check_range("optim.warmup_steps", self.warmup_steps, 0)
        check_range("optim.ema_decay", self.ema_decay, 0, 1, open_low=True)


@dataclass
class LossOptions:
    """The training loss.

    Args:
        label_smoothing: Probability mass that the targets spread over all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_range("loss.label_smoothing", self.label_smoothing, 0, 1)


@dataclass
class DecodeOptions:
    """How predictions are read off the network's outputs; tasks that search for texts have options here."""


@dataclass
class TrainingOptions:
    """What Lightning's Trainer has no argument for.

    Args:
        early_stopping: Stop after so many validations without a better metric; none: never.
        compile: Run the model through `torch.compile`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        save_every_n_steps: Write `last.ckpt` every so many optimizer steps, beside the end of each epoch.
    """

    early_stopping: int | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    save_every_n_steps: int = 1000

    def __post_init__(self) -> None:
        check_range("trainer.early_stopping", self.early_stopping, 1)
        check_range("trainer.save_every_n_steps", self.save_every_n_steps, 1)


def as_options(kind: type[Any], given: Any) -> Any:
    """An options object: as given, of a mapping, or with its defaults.

    Raises:
        ConfigError: A key is unknown, or a value lies outside its range.
    """
    if isinstance(given, kind):
        return given
    return kind(**(given or {}))
