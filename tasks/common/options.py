"""Options of the optimizer, the loss, decoding and the trainer.

Each class is a section of the command line: ``--optim.*``, ``--loss.*``, ``--decode.*``, and ``--trainer.*`` in
addition to Lightning's own. A task subclasses the sections that it extends and names them in its module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmattn.tasks.common.auto import AUTO
from mmattn.tasks.common.errors import ConfigError

Schedule = Literal["cosine", "linear", "inverse_sqrt", "constant"]


def check_range(name: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Check that an option lies in its range; None is accepted.

    Args:
        name: Name of the option with its section.
        value: The option's value.
        low: Lower bound.
        high: Upper bound, inclusive.
        open_low: Whether `low` itself is excluded.

    Raises:
        ConfigError: The value is out of range.
    """
    if value is None or ((low < value if open_low else low <= value) and value <= high):
        return
    least = f"above {low:g}" if open_low else f"of at least {low:g}"
    raise ConfigError(
        f"{name}: expected a value {least}{'' if high == math.inf else f' and at most {high:g}'}, found {value}."
    )


SEARCH: dict[str, tuple[tuple[type, ...], float, float]] = {  # types and range of what is saved with a model
    "num_beams": ((int,), 1, 1000),
    "length_penalty": ((int, float), -100, 100),
    "ctc_weight": ((int, float), 0, 1),
    "lm_weight": ((int, float), 0, 100),
    "lm_bonus": ((int, float), -100, 100),
    "mbr": ((bool,), 0, 1),
    "num_sentences": ((int,), 1, 1000),
}


def check_search(search: Any) -> None:
    """Check the search options that were saved with a model.

    Raises:
        ValueError: An option is unknown, or its value of a wrong type or out of range.
    """
    if not isinstance(search, Mapping):
        raise ValueError(f"search: expected options and their values, found {search!r:.40}")
    for name, value in search.items():
        if name not in SEARCH:
            raise ValueError(f"search: expected {', '.join(SEARCH)}, found {name!r:.40}")
        kinds, low, high = SEARCH[name]
        if type(value) not in kinds or not low <= value <= high:
            raise ValueError(f"search: {name}: expected a value from {low} to {high}, found {value!r:.40}")


@dataclass
class OptimOptions:
    """The optimizer and its schedule.

    Args:
        name: adamw, or muon: hidden matrices take steps with equal singular values (Jordan et al. 2024), all other
            weights those of AdamW. From random weights it needs fewer epochs, at about twice AdamW's learning rate.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, applied to matrices only.
        betas: Coefficients of the running averages of the gradient and its square.
        schedule: Learning rate after the warm-up: cosine and linear reach zero at the last step, or when max_time ends
            training before; inverse_sqrt; constant.
        warmup_steps: Optimizer steps of linear warm-up; auto: a tenth of all, at most 500.
        ema_decay: Decay of an exponential moving average of the weights, which is validated and saved in place of
            the raw weights; None: no average.
        pretrained_lr: Factor of the learning rate of the weights that `--init_from` gives, where other layers are new.
        layer_decay: Ratio of the learning rates of each layer and the layer above it (Bao et al. 2022); 1: all layers
            have the same rate.
        unfreeze_every: Number of epochs after which the next group of pretrained weights is trained, too, from the
            last layer to the first; before, the layers that are new are trained alone, or else the last ones (Howard
            and Ruder 2018, section 3.3). None: all are trained from the beginning.
        fused: Update all weights in one kernel, which is several times as fast, takes no temporary memory and is equal
            up to rounding; None: on CPUs and GPUs, unless gradients are clipped in 16-mixed precision.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Schedule = "cosine"
    warmup_steps: int | Literal["auto"] = "auto"
    ema_decay: float | None = None
    pretrained_lr: float = 0.1
    layer_decay: float = 1.0
    unfreeze_every: int | None = None
    fused: bool | None = None

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, open_low=True)
        check_range("optim.weight_decay", self.weight_decay, 0)
        if self.warmup_steps != AUTO:
            check_range("optim.warmup_steps", self.warmup_steps, 0)
        check_range("optim.ema_decay", self.ema_decay, 0, 1, open_low=True)
        check_range("optim.pretrained_lr", self.pretrained_lr, 0, 1, open_low=True)
        check_range("optim.layer_decay", self.layer_decay, 0, 1, open_low=True)
        check_range("optim.unfreeze_every", self.unfreeze_every, 1)


@dataclass
class LossOptions:
    """The training loss.

    Args:
        label_smoothing: Label smoothing, as in `torch.nn.CrossEntropyLoss`.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_range("loss.label_smoothing", self.label_smoothing, 0, 1)


@dataclass
class DecodeOptions:
    """Decoding of the network's outputs. Tasks that generate text or post-process add their options."""


@dataclass
class TrainingOptions:
    """Trainer options that Lightning's `Trainer` does not have.

    Args:
        early_stopping: Number of validations without improvement after which training stops; 0: never; None: never,
            unless max_epochs is auto.
        compile: Compile the model with `torch.compile`.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        save_every_n_steps: Save `last.ckpt` every n optimizer steps, and at the end of each epoch.
        report: Write `report.html` into the run directory at the end.
        refit: Once a model is found by validation on a held-out part of the data, train it again on all of them; None:
            if there are at most 200 samples and max_epochs is auto.
    """

    early_stopping: int | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    save_every_n_steps: int = 1000
    report: bool = True
    refit: bool | None = None

    def __post_init__(self) -> None:
        check_range("trainer.early_stopping", self.early_stopping, 0)
        check_range("trainer.save_every_n_steps", self.save_every_n_steps, 1)


def as_options(kind: type[Any], given: Any) -> Any:
    """Convert a mapping to an options object; None gives the defaults, and an options object is returned unchanged.

    Raises:
        ConfigError: A key is unknown, or a value is out of range.
    """
    if isinstance(given, kind):
        return given
    return kind(**(given or {}))


def plain(values: Any) -> Any:
    """Values after a round trip through JSON, so that a checkpoint's and a parser's compare equal."""
    if isinstance(values, dict) or hasattr(values, "as_dict"):  # jsonargparse's Namespace
        return {str(key): plain(value) for key, value in dict(values).items()}
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    return values if isinstance(values, (int, float, str, bool, type(None))) else str(values)
