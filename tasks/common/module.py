"""The base class of all LightningModules: optimizer, schedule, seeds, evaluation, checks for non-finite losses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any, Generic, Literal, Self, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmattn.building import check_fits
from mmattn.data.errors import UserError
from mmattn.data.options import from_options
from mmattn.data.seeds import seed_of
from mmattn.onednn import use_onednn
from mmattn.tasks.common import parameters, schedule
from mmattn.tasks.common.adapter import CheckpointParts, own_adapter
from mmattn.tasks.common.attention_config import ATTENTIONS, check_attention
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.datamodule import TaskDataModule
from mmattn.tasks.common.errors import CheckpointError, ConfigError, NonFiniteLossError
from mmattn.tasks.common.muon import OPTIMIZERS
from mmattn.tasks.common.options import (
    DecodeOptions,
    LossOptions,
    OptimOptions,
    TrainingOptions,
    as_options,
)
from mmattn.tasks.common.task import tasks

MOST_CLASSES = 200  # of a confusion matrix that is kept
# How long a run lasts may change unless the learning rate depends on it.
LENGTHS = frozenset({"trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps"})
Data = TypeVar("Data", bound=TaskDataModule[Any, Any])


class TaskModule(LightningModule, Generic[Data]):
    """batch -> model -> loss -> metric. A task implements loss and metric, and names its model and options.

    Args:
        model: Keywords of the task's model, without the sizes that are determined by the data.
        optim: `OptimOptions`, or a mapping of them.
        loss: The task's `LossOptions`, or a mapping of them.
        decode: The task's `DecodeOptions`, or a mapping of them.
        training: The task's `TrainingOptions`, or a mapping of them.
        init_from: Model whose sizes, weights and processor are fine-tuned, see `mmattn.tasks.common.sources`; none:
            random weights. Where other layers are new, its batch norms keep their statistics.
        freeze: Weights that are not trained: "pretrained", all that init_from gave; or modules of the model by their
            paths, separated by commas. Their dropout and batch norms are those of evaluation. None: all are trained.
        lora: Keywords of `LoRAOptions`: low-rank updates are trained in place of the weights that init_from gave, and
            merged into the model that is shipped. None: no updates.
    """

    task: str
    mode: Literal["min", "max"] = "max"
    Optim: type[Any] = OptimOptions
    Loss: type[Any] = LossOptions
    Decode: type[Any] = DecodeOptions
    Training: type[Any] = TrainingOptions
    measured_by = ""  # remark printed with the best validation figure if `test` decodes differently from `fit`

    def __init__(
        self,
        model: Mapping[str, Any],
        optim: Any = None,
        loss: Any = None,
        decode: Any = None,
        training: Any = None,
        *,
        init_from: str | Mapping[str, str] | None = None,
        freeze: str | None = None,
        lora: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.keywords = dict(model)
        self.optim, self.loss = as_options(self.Optim, optim), as_options(self.Loss, loss)
        self.decode, self.training_options = as_options(self.Decode, decode), as_options(self.Training, training)
        self.lr = self.optim.lr  # a separate attribute, which the learning-rate finder sets
        self.model: nn.Module | None = None
        self.init_from, self.freeze_option = init_from, freeze
        self.lora = from_options(parameters.LoRAOptions, lora, "model.lora")
        self.frozen: list[nn.Module] = []
        self.stages: list[list[str]] = []  # names of the weights that are unfrozen together, in this order
        # The checkpoint parts that are evaluated or fine-tuned; `model` then has all their keywords.
        self.start: CheckpointParts | None = None
        self.seed = 0
        self.settings: dict[str, Any] = {}  # settings that a resumed run must share; set by the command line
        self.warmup: int | None = None  # warm-up steps of this training
        self._resumed_warmup: int | None = None
        self.metrics = nn.ModuleDict()
        self.confusion: dict[str, Tensor] = {}  # by split: the confusion matrix (K, K) of the last evaluation

    @property
    def monitor(self) -> str:
        """The metric that selects the best checkpoint."""
        return f"val/{tasks()[self.task].metric}"

    # Methods that a task implements -----------------------------------------------------------------------------------

    def connect(self, data: Any) -> None:
        """Let the options of the model and the loss decide how data are read; called before any are."""

    def training_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar) and its named terms, for logging."""
        raise NotImplementedError

    def make_metric(self) -> nn.Module:
        """A torchmetrics.Metric whose `compute()` returns a dictionary of names and values.

        If it then has an attribute `confusion` (K, K), counts of true (rows) and predicted classes (columns) in the
        order of the processor's labels, reports show it.
        """
        raise NotImplementedError

    def update_metric(self, metric: Any, batch: Any) -> None:
        """Run the model on a batch and update the metric."""
        raise NotImplementedError

    def chance(self) -> Chance | None:
        """The monitored metric on the validation data of the best prediction that ignores the input; None: unknown."""
        return None

    @functools.cached_property
    def chance_level(self) -> Chance | None:
        """The result of `chance`, computed once."""
        return self.chance()

    def notes(self) -> dict[str, str]:
        """Additional entries of metrics.json, such as a metric's signature."""
        return {}

    @classmethod
    def check_model(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        """Validate the model's keywords before anything is built, and return those to build from."""
        return keywords | {k: check_attention(keywords[k], f"model.{k}") for k in ATTENTIONS if k in keywords}

    @classmethod
    def needs_labels(cls, loss: Mapping[str, Any]) -> bool:
        """Whether training with these options of the loss needs labels, as all but pretraining does."""
        return True

    # Building ---------------------------------------------------------------------------------------------------------

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """All keywords that rebuild the model: the user's, and those of the data (`TaskDataModule.model_sizes`)."""
        return {**self.keywords, **sizes}

    def final_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """`complete_keywords`, or the keywords of the model that is evaluated or fine-tuned."""
        return self.complete_keywords(sizes) if self.start is None else dict(self.keywords)

    def check_processor(self, processor: Any) -> None:
        """Raise a ConfigError if the options are incompatible with the processor, before anything is written."""

    def complete_processor(self, processor: Any, metrics: Mapping[str, float]) -> Any:
        """The processor to ship, with options of decoding, which may depend on the best model's figures `metrics`."""
        return processor

    def build(self, sizes: Mapping[str, Any], processor: Any = None) -> None:
        """Build the model. Its weights depend on the seed alone, or are those of the checkpoint that is fine-tuned.

        Args:
            sizes: Keywords that are determined by the data.
            processor: Processor of these data, if a trained model is fine-tuned.

        Raises:
            ConfigError: The keywords are inconsistent.
        """
        try:
            if self.start is not None and self.init_from is not None:
                self.start = self.start.adapter.adapt(self.start, processor, sizes, self.seed)
                self.keywords = self.start.keywords
            keywords, start = self.final_keywords(sizes), self.start
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.model = start.build(keywords) if start else own_adapter(tasks()[self.task]).build(keywords)
        except (ValueError, ModuleNotFoundError) as error:
            raise error if isinstance(error, UserError) else ConfigError(f"model: {error}") from error
        if start is None or self.init_from is not None:  # an evaluation trains nothing
            given: frozenset[str] = frozenset() if start is None else start.given
            self.frozen, self.stages = parameters.select_trained(
                self.model, given, self.pretrained, self.freeze_option, self.lora, self.optim.unfreeze_every
            )
        self.frozen += parameters.pretrained_norms(self.model, self.pretrained)
        self.train(self.training)

    @property
    def pretrained(self) -> frozenset[str]:
        """Names of the weights that were trained before, if others are new; empty if all or none were."""
        return self.start.given if self.start is not None and self.start.fresh else frozenset()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def network(self) -> str | None:
        """Name of the public network that replaces the task's own model; None: the task's own model is used."""
        return None if self.start is None else self.start.network

    @property
    def data(self) -> Data:
        """The trainer's data module."""
        return cast(Data, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the model, if it is not built yet, and its metrics."""
        if self.model is None:
            self.build(self.data.model_sizes(), self.data.processor)
        assert self.model is not None
        for split in ("val", "test"):
            if split not in self.metrics:
                self.metrics[split] = self.make_metric()
        layers: list[Any] = [module for module in self.model.modules() if hasattr(module, "gradient_checkpointing")]
        for layer in layers:
            layer.gradient_checkpointing = self.training_options.gradient_checkpointing
        if self.training_options.compile:
            self.model.compile()
        else:
            use_onednn(self.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; a group may have its own learning rate."""
        assert self.model is not None
        names, muon = [name for name, _ in self.model.named_parameters()], self.optim.name == "muon"
        scales = parameters.learning_rates(names, self.pretrained, self.optim.pretrained_lr, self.optim.layer_decay)
        return parameters.parameter_groups(self.model, self.optim.weight_decay, self.lr, scales, hidden=muon)

    def configure_optimizers(self) -> Any:
        assert self.model is not None
        fused = self.optim.fused
        if fused is None:  # one that clipping cannot precede is no default: it unscales gradients in its own step
            clips_first = self._scaler is not None and self.trainer.gradient_clip_val
            fused = self.device.type in ("cuda", "cpu") and not clips_first
        kind = {"fused": True} if fused else {"foreach": True}  # foreach equals a loop bitwise, and is faster
        optimizer = OPTIMIZERS[self.optim.name](self.parameter_groups(), betas=self.optim.betas, **kind)
        total = int(self.trainer.estimated_stepping_batches)
        kept = self._resumed_warmup
        self.warmup = schedule.warmup_steps(self.optim.warmup_steps, self.trainer, total) if kept is None else kept
        if 2 * self.warmup > total and self.trainer.is_global_zero:
            sys.stderr.write(
                f"the warm-up takes {self.warmup} of {total} steps, which leaves few at the peak learning rate: give a "
                f"smaller --data.{self.data.train_size}, more --trainer.max_epochs or fewer --optim.warmup_steps.\n"
            )

        def factor(step: int) -> float:
            due = schedule.due_step(self.optim.schedule, step, total, self.trainer)
            return schedule.schedule_factor(self.optim.schedule, due, self.warmup or 0, total)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Training ---------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self.data.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the position of training, not on its history: a resumed run draws the same masks.
        place = batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(seed_of(self.seed, self.current_epoch, place))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, parts = self.training_loss(batch)
        self._place = (batch_idx, list(batch.ids))
        self._check_finite("loss", loss.detach())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.ids))
        rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        self.log("lr", max(rates), batch_size=len(batch.ids))
        if parts:
            self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, batch_size=len(batch.ids))
        return loss

    def on_after_backward(self) -> None:
        # After each batch, since the norm that clipping computes can no longer tell accumulated batches apart. A
        # gradient scaler expects overflows and skips the step.
        if self._scaler is None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self._check_finite("norm of the gradient", torch.nn.utils.get_total_norm(gradients))

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of 16-mixed precision; None in any other."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        flag = "_step_supports_amp_scaling"  # by which Lightning refuses fused optimizers, even without a scaler
        if self._scaler is None and getattr(optimizer, flag, False):
            setattr(optimizer, flag, False)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        batch, ids = self._place
        if name != "loss" and self.trainer.world_size > 1 and not self.trainer.fit_loop._should_accumulate():
            every: list[Any] = [None] * self.trainer.world_size  # the gradient is the mean over the processes
            torch.distributed.all_gather_object(every, ids)
            ids = [one for some in every for one in some]
        shown = ", ".join(ids[:20]) + (", ..." if len(ids) > 20 else "")
        raise NonFiniteLossError(
            f"the {name} is {value.item()} at step {self.global_step} (epoch {self.current_epoch}, batch {batch}), "
            f"samples: {shown}. The weights were not updated; the last good checkpoint is kept. "
            f"Try a lower --optim.lr, --trainer.gradient_clip_val 1.0 or --trainer.precision 32-true."
        )

    # Evaluation -------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._same_buffers()

    def on_test_epoch_start(self) -> None:
        self._same_buffers()

    def _same_buffers(self) -> None:
        """Broadcast the running statistics of process 0, which are those of the checkpoint."""
        if self.trainer.world_size > 1:
            assert self.model is not None
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, split: str, batch: Any) -> None:
        # A repeated batch only keeps the processes synchronized; its samples are counted elsewhere.
        if not batch.is_repeat:
            self.update_metric(self.metrics[split], batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        metric: Any = self.metrics[split]
        values = metric.compute()  # gathered over all processes
        metric.reset()
        confusion = getattr(metric, "confusion", None)
        if confusion is not None and len(confusion) <= MOST_CLASSES:
            self.confusion[split] = confusion.cpu()
        main = self.monitor.removeprefix("val/")
        if main not in values:
            raise ConfigError(f"monitor {self.monitor!r}: expected val/ and one of {', '.join(values)}.")
        for name, value in values.items():
            self.log(f"{split}/{name}", torch.as_tensor(value, dtype=torch.float32), prog_bar=name == main)

    # Resuming ---------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        processor, data = self.data.processor.fingerprint(), self.data.contents()
        own = {"task": self.task, "settings": self.settings, "processor": processor, "data": data}
        checkpoint["mmattn"] = own | {"warmup_steps": self.warmup}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("mmattn")
        if not isinstance(saved, dict) or saved.get("task") != self.task:
            raise CheckpointError(f"expected a checkpoint of a {self.task} run of mmattn, found another kind of file.")
        try:
            check_fits(checkpoint["state_dict"], self)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint is damaged: {error}.") from None
        if saved["processor"] != self.data.processor.fingerprint():
            raise CheckpointError(
                "the run directory's processor/ is not the one that the checkpoint was trained with; "
                "vocabulary or labels would not match. Restore it, or start a new run."
            )
        for split, content in self.data.contents().items():
            before = saved.get("data", {}).get(split, content)
            if before != content:
                raise ConfigError(
                    f"data.{split}: expected the {before['samples']:,} samples that the run began with, found "
                    f"{content['samples']:,} that are not the same. Restore them, or start a new run."
                )
        self._resumed_warmup = saved.get("warmup_steps", self.optim.warmup_steps)  # the schedule that is resumed
        was, now = {"optim.name": "adamw", **saved["settings"]}, self.settings
        free = LENGTHS if self.optim.schedule in schedule.ENDLESS else ()
        changed = [
            f"{key}: checkpoint {was.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(was.keys() | now.keys())
            if key not in free
            and was.get(key, now[key] if key.startswith("trainer.") else None) != now.get(key)  # version 0.1 had none
        ]
        if changed:
            raise ConfigError(
                "a resumed run keeps its settings; these differ: " + "; ".join(changed) + ". "
                "Give the same ones (see the run's config.yaml), or start a new run (--init_from takes a run's model/)."
            )
