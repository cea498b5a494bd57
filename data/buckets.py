"""Length-bucketed batches of text pairs under a token budget, as a plan of ``mmattn.data.batching``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmattn.data.batching import BatchPlan
from mmattn.data.seeds import seed_of

Lengths = Sequence[tuple[int, int]]  # numbers of source and target tokens, one pair per sample


@dataclass(frozen=True)
class PaddingStats:
    """The amount of padding in batches."""

    real: int  # tokens of sources and targets together
    padded: int  # positions of the tensors, padding included

    @property
    def share(self) -> float:
        """Fraction of padding among all positions, 0..1."""
        return 1 - self.real / self.padded if self.padded else 0.0


def padding_stats(batches: Sequence[Sequence[int]], lengths: Lengths) -> PaddingStats:
    """Returns the padding of batches, each padded to its longest source and its longest target."""
    real = padded = 0
    for batch in batches:
        for side in (0, 1):
            sizes = [lengths[index][side] for index in batch]
            real += sum(sizes)
            padded += max(sizes) * len(sizes)
    return PaddingStats(real, padded)


def estimated_batches(lengths: Lengths, samples: int, max_tokens: int, world_size: int = 1) -> int:
    """Returns the approximate number of batches of a rank under a token budget.

    Args:
        lengths: Numbers of source and target tokens of some of the samples.
        samples: Number of all samples.
        max_tokens: See ``TokenBatchSampler``.
        world_size: Number of processes.

    >>> estimated_batches([(3, 2), (9, 8)], samples=100, max_tokens=60)
    10
    """
    mean = sum(max(pair) for pair in lengths) / len(lengths)
    return max(1, -(-int(mean * samples) // (max_tokens * world_size)))


class TokenBatchSampler(BatchPlan):
    """Training batches of similar lengths, each of at most ``max_tokens`` positions on its longer side.

    An epoch sorts by the length of one side, then by that of the other, ascending and descending in turn, so that
    neighbors differ little; samples of equal lengths are shuffled, the list is split wherever the budget is reached,
    and the batches are shuffled. The primary sort key alternates between the sides from epoch to epoch, which varies
    the composition of the batches. Every epoch has the same number of batches: an epoch with fewer splits halves its
    largest batches.

    Args:
        lengths: Numbers of source and target tokens, one pair per sample.
        max_tokens: Maximum of a batch's samples times its longest text, on one rank.
        max_samples: Maximum number of samples of a batch; None = no limit.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ValueError: A single sample exceeds the budget, or there are too few samples for the ranks.

    >>> plan = TokenBatchSampler([(3, 2), (3, 3), (9, 8), (2, 2), (8, 9)], max_tokens=18)
    >>> sorted(sorted(item.index for item in batch) for batch in plan)
    [[0, 1, 3], [2, 4]]
    """

    def __init__(
        self,
        lengths: Lengths,
        max_tokens: int,
        max_samples: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(rank, world_size)
        self.lengths, self.max_tokens, self.seed = lengths, max_tokens, seed
        self.max_samples = len(lengths) if max_samples is None else max_samples
        if len(lengths) < world_size:
            raise ValueError(f"expected at least one sample per rank, found {len(lengths)} for {world_size} ranks")
        longest = max(max(pair) for pair in lengths)
        if longest > max_tokens:
            raise ValueError(
                f"max_tokens: expected at least {longest}, the length of the longest text, found {max_tokens}"
            )
        # The splits depend on the sorted lengths alone, which shuffling samples of equal lengths does not change.
        most = max(len(self._cut(self._order(side, None))) for side in (0, 1))
        self.total = -(-most // world_size) * world_size
        if self.total > len(lengths):
            raise ValueError(f"expected at least {self.total} samples for {world_size} ranks, found {len(lengths)}")

    def __len__(self) -> int:
        return self.total // self.world_size

    def batches(self, epoch: int) -> list[list[int]]:
        """See the base class."""
        stream = random.Random(seed_of(self.seed, epoch, 0))
        batches = self._cut(self._order(epoch % 2, stream))
        while len(batches) < self.total:
            largest = max(range(len(batches)), key=lambda k: len(batches[k]))
            half = len(batches[largest]) // 2
            batches += [batches[largest][half:]]
            batches[largest] = batches[largest][:half]
        keys = [stream.random() for _ in batches]
        return [batches[k] for k in sorted(range(len(batches)), key=keys.__getitem__)]

    def padding_stats(self, epoch: int = 0) -> PaddingStats:
        """Returns the padding of an epoch's batches, of all ranks."""
        return padding_stats(self.batches(epoch), self.lengths)

    def _order(self, side: int, stream: random.Random | None) -> list[int]:
        """Sorts all samples; random() is the one stream that Python promises not to change."""
        ties = [0.0 if stream is None else stream.random() for _ in self.lengths]

        def key(index: int) -> tuple[int, int, float]:
            first, second = self.lengths[index][side], self.lengths[index][1 - side]
            return first, second if first % 2 else -second, ties[index]

        return sorted(range(len(self.lengths)), key=key)

    def _cut(self, order: list[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        longest = 0
        for index in order:
            longest = max(longest, *self.lengths[index])
            size = len(batches[-1]) + 1 if batches else 0
            if not batches or size * longest > self.max_tokens or size > self.max_samples:
                batches.append([])
                longest = max(self.lengths[index])
            batches[-1].append(index)
        return batches
