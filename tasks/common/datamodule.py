"""Data for training and measuring: three splits by path, one processor, batches that can be resumed exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from data.batching import BatchPlan, EvalBatchSampler, GroupBatchSampler, make_loader
from tasks.common.checkpoint import PROCESSOR
from tasks.common.errors import ConfigError
from tasks.common.files import atomic_folder
from tasks.common.pretrained import Parts, read_parts

Split = Literal["train", "val", "test"]


class TaskDataModule(LightningDataModule):
    """What the data of all tasks have in common. A task says how to open a split, make a processor and collate.

    Args:
        train: path of the training split; none: the built-in data.
        val: path of the validation split; none: the built-in data.
        test: path of the test split; none: the built-in data.
        batch_size: samples in a batch and process.
        num_workers: processes that prepare batches; the batches do not depend on it.
        on_error: a bad item ends the run ("raise"), or is left out, counted and reported ("skip").
        seed: of batch order and augmentation.
    """

    processor_class: Any
    sizes: tuple[str, ...] = ()  # the model's keywords that the data decide, and the user does not
    train_size = "batch_size"  # the option that says how large a training batch is

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if train is not None and val is None:
            raise ConfigError(
                "data.train without data.val: the built-in data cannot judge a model of yours; give both."
            )
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"data.batch_size must be at least 1 and data.num_workers at least 0, found "
                f"{batch_size} and {num_workers}."
            )
        self.paths = {
            name: expand(path, f"data.{name}") for name, path in (("train", train), ("val", val), ("test", test))
        }
        self.batch_size, self.num_workers, self.on_error, self.seed = batch_size, num_workers, on_error, seed
        self.processor: Any = None
        self._processor_is_shipped = False
        self._datasets: dict[str, Dataset] = {}
        self._train_plan: BatchPlan | None = None
        self._resume = {"epoch": 0, "batches": 0}

    # What a task provides ---------------------------------------------------------------------------------------------

    def open_split(self, split: Split, path: str | None) -> Dataset:
        """The split's dataset of samples: from `path`, or the built-in one."""
        raise NotImplementedError

    def make_processor(self, train: Dataset) -> Any:
        """Make the processor (vocabulary, labels, preprocessing) from the training split."""
        raise NotImplementedError

    def prepare_dataset(self, dataset: Dataset, split: Split) -> Dataset:
        """Last touches that need the processor, e.g. leaving out what cannot be learnt."""
        return dataset

    def collate_fn(self, split: Split) -> Callable[[list], Any]:
        """A picklable function, called as `f(samples, seeds=[...], is_repeat=bool)`, that makes a batch."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------

    def dataset(self, split: Split) -> Dataset:
        """Open a split once."""
        if split not in self._datasets:
            self._datasets[split] = self.open_split(split, self.paths[split])
        return self._datasets[split]

    def samples(self) -> list[Any]:
        """The samples of all opened splits."""
        return [sample for dataset in self._datasets.values() for sample in dataset.samples]  # type: ignore[attr-defined]

    def prepare_data(self) -> None:
        """Write the processor once, into the run directory; a resumed run finds it there and never remakes it."""
        folder = self._processor_folder()
        if not self._processor_is_shipped and not folder.exists():
            processor = self.processor or self.make_processor(self.dataset("train"))
            atomic_folder(folder, processor.save)

    def setup(self, stage: str) -> None:
        if not self._processor_is_shipped:
            self.processor = self.processor_class.load(self._processor_folder())
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            self._datasets[split] = self.prepare_dataset(self.dataset(split), split)  # type: ignore[arg-type]

    def read_model(self, task: str, name: str | Path) -> Parts:
        """A finished model, to be measured or gone on from; see `read_parts`."""
        return read_parts(task, name, self.processor_class)

    def use_processor(self, processor: Any) -> None:
        """Take the processor of a finished model, which is measured, instead of making one."""
        self.processor = processor
        self._processor_is_shipped = True

    def adopt_processor(self, start: Parts) -> Parts:
        """Take the processor of a model that training goes on from, instead of making one.

        Returns:
            The model, without what does not fit these data.

        Raises:
            ConfigError: the configuration asks for another one.
        """
        self.processor = start.processor
        return start

    def model_sizes(self) -> dict[str, Any]:
        """The values of `sizes`."""
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

    def train_plan(self, dataset: Dataset) -> BatchPlan:
        """Which samples make which training batch; a task with other needs (lengths, tokens) gives its own plan."""
        return GroupBatchSampler(_groups(dataset), self.batch_size, seed=self.seed, **self._ranks())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> DataLoader:
        dataset = self.dataset(split)
        return self._loader(dataset, self.eval_plan(dataset), split)

    def eval_plan(self, dataset: Dataset) -> BatchPlan:
        """Which samples make which batch in measuring."""
        return EvalBatchSampler(_groups(dataset), self.batch_size, **self._ranks())

    def _loader(self, dataset: Dataset, plan: BatchPlan, split: Split) -> DataLoader:
        return make_loader(dataset, plan, self.collate_fn(split), self.num_workers, self.seed, self._pin())

    def _ranks(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _pin(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    # Exact resume -----------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Called at each epoch's start, before its batches are drawn."""
        if self._train_plan is not None:
            self._train_plan.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where training is, counted in batches consumed: what a worker has prefetched does not count."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress
        done = progress.is_last_batch or progress.current.ready >= self.trainer.num_training_batches
        # Within an epoch `processed` counts the finished ones; at its end Lightning has already counted this one.
        finished = loop.epoch_progress.current.processed
        if done and finished == loop.epoch_progress.current.completed and progress.current.ready:
            finished += 1  # saved between the last batch and the epoch's end
        return {"epoch": finished, "batches": 0 if done else progress.current.ready}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resume = dict(state_dict)

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What the data were: for each opened split its path, its number of samples and a hash of its content."""
        return {
            split: {
                "path": self.paths[split] or "built-in",
                "samples": len(dataset),  # type: ignore[arg-type]
                "sha256": dataset.fingerprint(),  # type: ignore[attr-defined]
            }
            for split, dataset in self._datasets.items()
        }


def expand(path: str | None, key: str) -> str | None:
    """A path with `~` and environment variables filled in.

    Raises:
        ConfigError: it names a variable that is not set.
    """
    if path is None:
        return None
    full = os.path.expanduser(os.path.expandvars(path))
    if "$" in full:
        raise ConfigError(
            f"{key}: {path} names an environment variable that is not set. For the public sets, set MMATTN_DATA to a "
            f"folder and fill it by `python scripts/fetch_data.py NAME`."
        )
    return full


def _groups(dataset: Any) -> Sequence[int]:
    """The group of each sample, which stays together in training; each alone where the data set knows none."""
    return getattr(dataset, "groups", range(len(dataset)))
