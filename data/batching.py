"""Batch samplers that are pure functions of (seed, epoch), are divided among ranks and can be resumed.

A *plan* is a ``batch_sampler`` whose elements are lists of ``Item``. It neither reads nor changes the global random
state and does not depend on the number of loader workers, so runs resume exactly with any number of workers.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mmattn.data.seeds import seed_of


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a batch."""

    index: int  # of the sample in the data set
    epoch: int
    repeat: bool = False  # a duplicate that gives every rank the same number of batches; metrics ignore it


def alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Indices of equal keys, in the order of their first ones: images of equal sizes, which need no padding.

    >>> alike(["a", "b", "a"])
    [[0, 2], [1]]
    """
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return list(rows.values())


class Batch:
    """Base class of the batches of all tasks; a task's batch is a dataclass of tensors and their metadata."""

    ids: list[str]  # of the samples

    def __len__(self) -> int:
        return len(self.ids)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Returns the batch with its tensors on the device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Returns the batch in page-locked memory, for faster copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())


class BatchPlan(Sampler[list[Item]]):
    """The batches of an epoch, divided among ranks: batch k goes to rank k mod world_size.

    Subclasses implement ``batches``. ``len()`` is always the number of batches of a whole epoch on this rank, so a
    learning-rate schedule or a progress bar does not depend on the point at which a run was resumed.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, found {rank}")
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._resumed = (0, 0)  # epoch, batches of that epoch that this rank has already consumed

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch (Lightning calls it at the start of each)."""
        self.epoch = epoch

    def resume(self, epoch: int, start: int) -> None:
        """Resumes in the middle of an epoch: its iteration begins after the first ``start`` batches of this rank.

        Other epochs are complete. ``len()`` stays that of a whole epoch, as Lightning counts batches from ``start``.
        """
        total = len(self)
        if not 0 <= start <= total:
            raise ValueError(f"start: expected 0 to {total} batches, found {start}")
        self.epoch = epoch
        self._resumed = (epoch, start)

    def batches(self, epoch: int) -> list[list[int]]:
        """Returns all batches of the epoch, of all ranks, in order."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Item]]:
        batches = self.batches(self.epoch)
        epoch, start = self._resumed
        for turn in range(start if epoch == self.epoch else 0, len(self)):
            k = turn * self.world_size + self.rank
            # Only an evaluation plan can have too few batches; then the last batch is repeated.
            batch, repeat = (batches[k], False) if k < len(batches) else (batches[-1], True)
            yield [Item(index, self.epoch, repeat) for index in batch]


class GroupBatchSampler(BatchPlan):
    """Training batches: groups (images) in random order, each group's samples (questions) in one batch.

    The number of batches is the same in every epoch and on every rank, and no sample is dropped or repeated: the
    shuffled groups are concatenated and split, between groups, into nearly equal parts. A batch therefore has about
    ``batch_size`` samples, at most one group more. A group larger than a batch is split into several.

    Args:
        groups: The group of each sample, e.g. ``VQADataset.groups``; ``range(n)`` for ungrouped samples.
        batch_size: Samples per batch, on one rank.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    >>> plan = GroupBatchSampler([0, 0, 0, 1, 1, 2, 2, 2], batch_size=4)
    >>> [len(batch) for batch in plan], len(plan)
    ([3, 5], 2)
    """

    def __init__(
        self, groups: Sequence[int], batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        self.num_samples = len(groups)
        if self.num_samples < world_size:
            raise ValueError(f"expected at least one sample per rank, found {self.num_samples} for {world_size} ranks")
        members: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        per_rank = -(-self.num_samples // (batch_size * world_size))
        self.total = min(per_rank, self.num_samples // world_size) * world_size  # batches of all ranks
        # As no piece is longer than the mean batch, no batch can be empty.
        longest = self.num_samples // self.total
        self.pieces = [m[i : i + longest] for m in members.values() for i in range(0, len(m), longest)]
        self.seed = seed

    def __len__(self) -> int:
        return self.total // self.world_size

    def batches(self, epoch: int) -> list[list[int]]:
        """Returns the pieces in the epoch's order, each in the batch that contains its middle. See the base class."""
        draw = random.Random(
            seed_of(self.seed, epoch, 0)
        ).random  # the only generator whose stream Python keeps across versions
        keys = [draw() for _ in self.pieces]
        batches: list[list[int]] = [[] for _ in range(self.total)]
        done = 0
        for place in sorted(range(len(keys)), key=keys.__getitem__):
            piece = self.pieces[place]
            batches[(2 * done + len(piece)) * self.total // (2 * self.num_samples)].extend(piece)
            done += len(piece)
        return batches


class EvalBatchSampler(BatchPlan):
    """Evaluation batches, which do not depend on the number of ranks and keep groups together.

    They follow the order of the data or, if ``lengths`` are given, descending length, which reduces padding.
    A rank without a batch of its own receives the last batch again, marked ``repeat``.

    Args:
        groups: As in ``GroupBatchSampler``.
        batch_size: Samples per batch.
        rank: Rank of this process.
        world_size: Number of processes.
        lengths: Sort key of each sample.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        lengths: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(rank, world_size)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        if not len(groups):
            raise ValueError("expected at least one sample, found none")
        first: dict[int, int] = {}
        for index, group in enumerate(groups):
            first.setdefault(group, index)
        order = sorted(range(len(groups)), key=lambda index: (first[groups[index]], index))
        if lengths is not None:
            order.sort(key=lambda index: lengths[first[groups[index]]], reverse=True)
        self._batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return -(-len(self._batches) // self.world_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        return self._batches


class _Items(Dataset[Any]):
    """Maps an ``Item`` to (sample, item)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Item) -> tuple[Any, Item]:
        return self.dataset[item.index], item


class _Collate:
    """Calls ``collate_fn.set_epoch`` if it exists, then ``collate_fn(samples, seeds=..., is_repeat=...)``."""

    def __init__(self, collate_fn: Callable[..., Any], groups: Sequence[int] | None, seed: int) -> None:
        self.collate_fn = collate_fn
        self.groups = groups
        self.seed = seed

    def __call__(self, pairs: list[tuple[Any, Item]]) -> Any:
        items = [item for _, item in pairs]
        keys = [item.index if self.groups is None else self.groups[item.index] for item in items]
        # + 1: index 0 is the seed of the order.
        seeds = [seed_of(self.seed, item.epoch, key + 1) for item, key in zip(items, keys, strict=True)]
        is_repeat = any(item.repeat for item in items)
        if hasattr(self.collate_fn, "set_epoch"):
            self.collate_fn.set_epoch(items[0].epoch)
        return self.collate_fn([sample for sample, _ in pairs], seeds=seeds, is_repeat=is_repeat)


def make_loader(
    dataset: Any,
    plan: BatchPlan,
    collate_fn: Callable[..., Any],
    num_workers: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
    persistent_workers: bool = True,
    prefetch_factor: int | None = None,
) -> DataLoader[Any]:
    """Makes a loader whose batches depend on (seed, epoch, index) alone, whatever the number of workers.

    Args:
        dataset: Map-style data set; samples of the same group in its ``groups`` attribute, if any, share a seed.
        plan: Batch sampler.
        collate_fn: Called as ``collate_fn(samples, seeds=[one integer per sample], is_repeat=bool)``; other
            arguments are bound with ``functools.partial``.
        num_workers: Loader processes; 0 loads in the calling process.
        seed: Seed of the per-sample seeds.
        pin_memory: Whether batches are in page-locked memory, for a GPU.
        persistent_workers: Whether workers are kept from epoch to epoch.
        prefetch_factor: Batches prefetched per worker.
    """
    return DataLoader(
        _Items(dataset),
        batch_sampler=plan,
        collate_fn=_Collate(collate_fn, getattr(dataset, "groups", None), seed),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers else None,
        # Without its own generator the loader draws a seed from the global random state once per epoch.
        generator=torch.Generator().manual_seed(seed),
    )
