"""The data of a run: three splits given by paths, one processor, and batches that allow exact resumption."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mmattn.data.batching import BatchPlan, EvalBatchSampler, GroupBatchSampler, make_loader
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import UserError
from mmattn.data.processor import Processor
from mmattn.tasks.common import auto
from mmattn.tasks.common.adapter import CheckpointParts, read_parts
from mmattn.tasks.common.allocator import without_collection
from mmattn.tasks.common.checkpoint import PROCESSOR
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.files import atomic_folder
from mmattn.tasks.common.task import DEMO, tasks

Split = Literal["train", "val", "test"]
HELD_OUT = "held out from"  # and the path of the training data, in place of a path
MEMORY = "in memory"  # names the samples that `mmattn.fit` was given
D = TypeVar("D", bound=SampleDataset[Any])
P = TypeVar("P", bound=Processor[Any, Any])


@dataclass
class Collate:
    """The `collate_fn` of a split's loader: `Processor.collate` with the split's options; picklable for workers."""

    processor: Processor[Any, Any]
    augment: Any = None
    ablation: str | None = None  # part of the input that is ablated, for baselines
    options: dict[str, Any] = field(default_factory=dict)  # additional keywords of the task's `collate`

    def __call__(self, samples: Sequence[Any], seeds: Sequence[int] | None = None, is_repeat: bool = False) -> Any:
        """Collate samples into a batch."""
        options = {"augment": self.augment, "seeds": seeds, "is_repeat": is_repeat, **self.options}
        batch = self.processor.collate(samples, **options)
        return batch if self.ablation is None else self.processor.ablate(batch, self.ablation, seeds)


class TaskDataModule(LightningDataModule, Generic[D, P]):
    """Base class of all data modules. A task implements the opening of a split and the options of its processor.

    Args:
        train: Path of the training split, or `demo` for the built-in data. There is no default: configurations set it.
        val: Path of the validation split; none: the built-in one if `train` is `demo`, otherwise a part of the training
            data, held out by the seed, for each label in proportion.
        test: Path of the test split; none: the built-in one if `train` is `demo`.
        demo_size: Number of training samples of the built-in data; none: all.
        batch_size: Number of samples in a batch, per process; auto: as many as the number of samples allows.
        num_workers: Number of loader processes; the batches do not depend on it.
        on_error: Whether a bad item ends the run ("raise") or is excluded, counted and reported ("skip").
        seed: Seed of batch order and augmentation.
    """

    task: str
    processor: P
    sizes: tuple[str, ...] = ()  # model keywords that are determined by the data, not by the user
    require_labels = True  # whether samples without labels are errors; false in pretraining
    train_size = "batch_size"  # the option that determines the size of a training batch
    largest_batch, least_steps = 64, auto.STEPS  # that `auto` chooses

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        demo_size: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        num_workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size == auto.AUTO:
            batch_size = 64  # of evaluation, and until the number of samples is known
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"data.batch_size must be at least 1 and data.num_workers at least 0, found "
                f"{batch_size} and {num_workers}."
            )
        given = {"train": train, "val": val, "test": test}
        self.paths: dict[str, Any] = {
            name: None if path == DEMO else expand(path, f"data.{name}") for name, path in given.items()
        }
        self.sources: Mapping[str, Any] = {}  # samples in memory, by split
        self.batch_size, self.num_workers, self.on_error, self.seed = batch_size, num_workers, on_error, seed
        self.processor_options: dict[str, Any] = {}  # keywords of the processor's `fit`; None: its default
        self.augment: Any = None  # augmentation of training batches
        self.ablate: str | None = None  # part of the input that a baseline is trained and evaluated without
        self.demo_size = demo_size
        self.processor = None  # type: ignore[assignment]  # until it is created or loaded
        self._processor_is_shipped = False
        self.is_refit = False  # whether the model is trained on the samples held out, too
        self._datasets: dict[str, D] = {}
        self._train_plan: BatchPlan | None = None
        self._resume = {"epoch": 0, "batches": 0}

    # Methods that a task implements -----------------------------------------------------------------------------------

    @abstractmethod
    def make_dataset(self, source: Any, split: Split) -> D:
        """Create the data set of a path, or of samples in memory."""

    def prepare_dataset(self, dataset: D, split: Split) -> D:
        """Steps that need the processor, e.g. excluding samples that cannot be encoded."""
        return dataset

    def check_train(self, dataset: D) -> None:
        """What `check` finds out about training data as a whole, in place of `make_processor`, which may be slow.

        Raises:
            DataError: No model can be trained on the data.
        """

    def collate_options(self, split: Split) -> dict[str, Any]:
        """Additional keywords of the task's `Processor.collate`."""
        return {}

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def is_divided(self) -> bool:
        """Whether the validation split is held out from the training data."""
        return self.paths["train"] is not None and self.paths["val"] is None

    @functools.cached_property
    def whole(self) -> D:
        """The training data with those held out."""
        return self.make_dataset(self._source("train"), "train")

    @functools.cached_property
    def _divided(self) -> dict[str, D]:
        return dict(zip(("train", "val"), self.whole.divided(self.seed), strict=True))

    @property
    def division(self) -> str:
        """A sentence about the validation split that is held out."""
        sizes = {name: len(part) for name, part in self._divided.items()}
        return (
            f"{sizes['val']:,} of {sum(sizes.values()):,} samples are held out for validation (seed {self.seed}); "
            f"--data.val PATH gives your own."
        )

    def _source(self, split: Split) -> Any:
        if self.paths[split] != MEMORY:
            return self.paths[split]
        if split not in self.sources:
            raise ConfigError(f"data.{split}: expected a path, found {MEMORY!r}: give the samples to mmattn.fit().")
        return self.sources[split]

    def open_split(self, split: Split, path: str | None) -> D:
        """Open a split's data set from `path`, or the built-in one if it is None."""
        if self.is_divided and split != "test":
            return self.whole if self.is_refit and split == "train" else self._divided[split]
        if path is not None:
            return self.make_dataset(self._source(split), split)
        make = tasks()[self.task].resolve("demo")
        return self.make_dataset(make(split, self.demo_size if split == "train" else None), split)

    def make_processor(self, train: D) -> P:
        """Fit the processor (vocabulary, labels, preprocessing) to the training split.

        Raises:
            ConfigError: An option is invalid; names it.
        """
        options = {name: value for name, value in self.processor_options.items() if value is not None}
        try:
            return tasks()[self.task].resolve("processor").fit(train, **options)  # type: ignore[no-any-return]
        except ValueError as error:
            raise error if isinstance(error, UserError) else ConfigError(f"data: {error}") from None

    def collate_fn(self, split: Split) -> Callable[..., Any]:
        """The picklable collate function of a split, called as `f(samples, seeds=[...], is_repeat=bool)`."""
        augment = self.augment if split == "train" else None
        return Collate(self.processor, augment, self.ablate, self.collate_options(split))

    def dataset(self, split: Split) -> D:
        """The data set of a split, opened on first use."""
        if split not in self._datasets:
            with without_collection():
                self._datasets[split] = self.open_split(split, self.paths[split])
        return self._datasets[split]

    def samples(self) -> list[Any]:
        """The samples of all opened splits."""
        return [sample for dataset in self._datasets.values() for sample in dataset.samples]

    def prepare_data(self) -> None:
        """Write the processor into the run directory once; a resumed run loads it and never refits it."""
        folder = self._processor_folder()
        if not self._processor_is_shipped and not folder.exists():
            processor = self.processor or self.make_processor(self.dataset("train"))
            atomic_folder(folder, processor.save)

    def setup(self, stage: str) -> None:
        if not self._processor_is_shipped:
            self.processor = tasks()[self.task].resolve("processor").load(self._processor_folder())
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            self._datasets[split] = self.prepare_dataset(self.dataset(split), split)  # type: ignore[arg-type]

    def read_model(self, name: str | Path | Mapping[str, str]) -> CheckpointParts:
        """Read a trained model, for evaluation or fine-tuning; see `read_parts`."""
        return read_parts(self.task, name)

    def use_processor(self, processor: P) -> None:
        """Use the processor of a trained model that is evaluated, instead of fitting one."""
        self.processor = processor
        self._processor_is_shipped = True

    def adapt_processor(self, start: CheckpointParts) -> None:
        """Use the processor of the model that is fine-tuned, adapted to these data, instead of fitting one.

        Raises:
            ConfigError: The configuration requests a different processor.
        """
        self.processor = start.processor.retarget(self.dataset("train"), self.processor_options)

    def model_sizes(self) -> dict[str, Any]:
        """Values of the model keywords named by `sizes`."""
        return self.processor.sizes()

    def _processor_folder(self) -> Path:
        assert self.trainer is not None
        return Path(self.trainer.default_root_dir) / PROCESSOR

    # Loaders ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train")
        self._train_plan = self.train_plan(dataset)
        self._train_plan.resume(self._resume["epoch"], self._resume["batches"])
        return self._loader(dataset, self._train_plan, "train")

    def train_plan(self, dataset: D) -> BatchPlan:
        """Assignment of samples to training batches. Tasks that batch by lengths or tokens override it."""
        return GroupBatchSampler(_groups(dataset), self.batch_size, seed=self.seed, **self._ranks())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> DataLoader:
        dataset = self.dataset(split)
        return self._loader(dataset, self.eval_plan(dataset), split)

    def eval_plan(self, dataset: D) -> BatchPlan:
        """Assignment of samples to evaluation batches."""
        return EvalBatchSampler(_groups(dataset), self.batch_size, **self._ranks())

    def _loader(self, dataset: D, plan: BatchPlan, split: Split) -> DataLoader:
        return make_loader(dataset, plan, self.collate_fn(split), self.num_workers, self.seed, self._pin())

    def _ranks(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _pin(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    # Exact resume -----------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called at its start, before its batches are drawn."""
        if self._train_plan is not None:
            self._train_plan.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Position of training, counted in consumed batches; prefetched batches are not counted."""
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress
        done = progress.is_last_batch or progress.current.ready >= self.trainer.num_training_batches
        # Within an epoch `processed` counts the finished ones; at its end Lightning has already counted this one.
        finished = loop.epoch_progress.current.processed
        if done and finished == loop.epoch_progress.current.completed and progress.current.ready:
            finished += 1  # saved between the last batch and the epoch's end
        return {"epoch": finished, "batches": 0 if done else progress.current.ready}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resume = dict(state_dict)

    def contents(self) -> dict[str, dict[str, Any]]:
        """Number of samples and hash of the content of each opened split."""
        return {s: {"samples": len(data), "sha256": data.fingerprint()} for s, data in self._datasets.items()}

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Path, number of samples and hash of the content of each opened split."""
        return {split: {"path": self._place(split), **rest} for split, rest in self.contents().items()}

    def _place(self, split: str) -> str:
        if self.is_divided and split == "val":
            return f"{HELD_OUT} {'samples ' if self.paths['train'] == MEMORY else ''}{self.paths['train']}"
        return self.paths[split] or "built-in"

    # Sizes of training ------------------------------------------------------------------------------------------------

    def choose_batch_size(self, processes: int) -> int:
        """The batch size of `auto`."""
        if self.train_size != "batch_size":
            return self.batch_size  # of evaluation alone
        return auto.batch_size(self.num_samples(self.dataset("train")) // processes, self.largest_batch)

    def epoch_batches(self, processes: int) -> int:
        """Number of training batches of an epoch in each process, estimated before the splits are prepared."""
        return max(1, -(-self.num_samples(self.dataset("train")) // (self.batch_size * processes)))

    def num_samples(self, dataset: D) -> int:
        """Number of samples of which batches are made, known before the splits are prepared."""
        return len(dataset)


def expand(path: Any, key: str) -> Any:
    """Expand `~` and environment variables in a path, or in each of several by name.

    Raises:
        ConfigError: The path names a variable that is not set.
    """
    if path is None:
        return None
    if isinstance(path, Mapping):
        return {name: expand(one, f"{key}.{name}") for name, one in path.items()}
    full = os.path.expanduser(os.path.expandvars(path))
    if "$" in full:
        raise ConfigError(
            f"{key}: {path} names an environment variable that is not set. For the public sets, set MMATTN_DATA to a "
            f"folder and fill it by `python scripts/fetch_data.py NAME`."
        )
    return full


def _groups(dataset: Any) -> Sequence[int]:
    """The group of each sample; a group stays together in training. Without `groups`, each sample is its own."""
    return getattr(dataset, "groups", range(len(dataset)))
