"""Batches of several tasks, drawn by temperature; and pairs of lines for the prediction of the next sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from mmattn.data.batching import BatchPlan
from mmattn.data.errors import DataError
from mmattn.data.seeds import seed_of
from mmattn.tasks.text_classification.data import TextDataset
from mmattn.tasks.text_classification.formats import SINGLE

NEXT, OTHER = "next", "other"


class TaskBatchSampler(BatchPlan):
    """Training batches of one task each, in proportion to ``n ** (1 / temperature)`` for a task of n samples.

    An epoch has as many batches as the samples of all tasks fill. A small task is read several times an epoch, a large
    one in part: each goes on where it stopped in the epoch before, in an order that is shuffled for each pass. Batches
    are cut from stretches of samples that are sorted by length.

    Args:
        tasks: The task of each sample.
        lengths: The number of tokens of each sample.
        batch_size: Samples per batch, on one rank.
        temperature: 1: in proportion to the samples; infinity: all tasks alike.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    >>> plan = TaskBatchSampler(["a"] * 8 + ["b"] * 4, range(12), batch_size=4)
    >>> sorted(sorted(item.index for item in batch)[0] // 8 for batch in plan)
    [0, 0, 1]
    """

    def __init__(
        self,
        tasks: Sequence[str],
        lengths: Sequence[int],
        batch_size: int,
        temperature: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(rank, world_size)
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.members: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            self.members.setdefault(task, []).append(index)
        sizes = {task: -(-len(own) // batch_size) for task, own in self.members.items()}
        shares = {task: len(own) ** (1 / temperature) for task, own in self.members.items()}
        total = sum(sizes.values())
        self.counts = {task: max(1, round(total * share / sum(shares.values()))) for task, share in shares.items()}
        self.sizes = sizes
        whole = sum(self.counts.values())
        self.total = -(-whole // world_size) * world_size

    def __len__(self) -> int:
        return self.total // self.world_size

    def batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        found: list[list[int]] = []
        for number, (task, count) in enumerate(self.counts.items()):
            passes: dict[int, list[list[int]]] = {}
            for turn in range(epoch * count, (epoch + 1) * count):
                which, place = divmod(turn, self.sizes[task])
                if which not in passes:
                    passes[which] = self._pass(self.members[task], number, which)
                found.append(passes[which][place])
        stream = Random(seed_of(self.seed, epoch, 0))
        keys = [stream.random() for _ in found]
        found = [found[k] for k in sorted(range(len(found)), key=keys.__getitem__)]
        return found + found[: self.total - len(found)]

    def _pass(self, members: Sequence[int], task: int, number: int) -> list[list[int]]:
        """The batches of one pass over a task."""
        stream = Random(seed_of(self.seed, number, task + 1))
        keys = {index: stream.random() for index in members}
        order = sorted(members, key=keys.__getitem__)
        stretch = self.batch_size * 16
        ordered = [
            index
            for first in range(0, len(order), stretch)
            for index in sorted(order[first : first + stretch], key=lambda index: self.lengths[index])
        ]
        return [ordered[first : first + self.batch_size] for first in range(0, len(ordered), self.batch_size)]


def next_sentences(dataset: TextDataset, seed: int) -> TextDataset:
    """Plain text as pairs of a line and the next one or, for half of them, any other line of the file.

    The labels are those of the task "nsp" (Devlin et al. 2019, section 3.1).
    """
    if len(dataset) < 2:
        raise DataError(dataset.name, "at least two lines of text", f"{len(dataset)}")
    lines = [sample.text for sample in dataset.samples]
    pairs = []
    for number, sample in enumerate(dataset.samples[:-1]):
        random = Random(seed_of(seed, 0, number))
        is_next = random.random() < 0.5
        second = lines[number + 1] if is_next else lines[int(random.random() * len(lines))]
        pairs.append(replace(sample, text_pair=second, labels=[NEXT if is_next else OTHER]))
    found = TextDataset(pairs, SINGLE, on_error=dataset.problems.on_error)
    found.name = dataset.name
    return found
