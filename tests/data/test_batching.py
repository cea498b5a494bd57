"""Batch plans: functions of (seed, epoch), balanced over ranks, resumable, little padding; any number of workers."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from mmattn.data.batching import EvalBatchSampler, GroupBatchSampler, Item, make_loader
from mmattn.data.buckets import TokenBatchSampler, padding_stats
from mmattn.data.seeds import seed_of
from tests.conftest import refused


def indices(plan: Any) -> list[list[int]]:
    return [[item.index for item in batch] for batch in plan]


def ragged(num_groups: int = 40, seed: int = 0) -> list[int]:
    """Groups of 1 to 7 samples, shuffled."""
    draw = random.Random(seed)
    groups = [group for group in range(num_groups) for _ in range(draw.randint(1, 7))]
    draw.shuffle(groups)
    return groups


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64, 1000])
def test_training_plan(batch_size: int, world_size: int) -> None:
    groups = ragged()
    plans = [GroupBatchSampler(groups, batch_size, 5, rank, world_size) for rank in range(world_size)]
    for epoch in range(4):
        for plan in plans:
            plan.set_epoch(epoch)
        batches = [indices(plan) for plan in plans]
        assert {len(b) for b in batches} == {len(plans[0])}  # equal on all ranks, in all epochs
        flat = [index for rank in batches for batch in rank for index in batch]
        assert sorted(flat) == list(range(len(groups)))  # each once
        assert all(0 < len(batch) <= batch_size + max(map(groups.count, groups)) for rank in batches for batch in rank)
        if batch_size >= 10:
            places = {(groups[i], r, b) for r, rank in enumerate(batches) for b, some in enumerate(rank) for i in some}
            assert len(places) == len(set(groups))  # each group in one batch


def test_single_samples_and_one_oversized_group() -> None:
    assert [len(batch) for batch in GroupBatchSampler(range(100), 32)] == [25, 25, 25, 25]
    sizes = [len(batch) for batch in GroupBatchSampler([0] * 50, 16)]
    assert (len(sizes), sum(sizes)) == (4, 50)
    assert 0 < min(sizes) <= max(sizes) <= 24


def test_no_empty_batches() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        groups = [group for group in range(draw.randint(1, 9)) for _ in range(draw.choice([1, 2, 30]))]
        world = draw.randint(1, min(4, len(groups)))
        plan = GroupBatchSampler(groups, draw.randint(1, 40), seed, 0, world)
        assert all(plan.batches(seed))


def test_order_depends_only_on_seed_and_epoch() -> None:
    groups = ragged()
    plan, same, other = (GroupBatchSampler(groups, 8, seed) for seed in (1, 1, 2))
    first = indices(plan)
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state()
    assert indices(same) == first == indices(plan)
    assert torch.equal(before, torch.get_rng_state())
    assert indices(other) != first
    plan.set_epoch(1)
    assert indices(plan) != first
    plan.set_epoch(0)
    assert indices(plan) == first


def test_order_is_frozen() -> None:
    """Exact resumption across releases needs it."""
    plan = GroupBatchSampler([0, 0, 1, 1, 2, 2, 3, 3], 2, seed=1)
    plan.set_epoch(2)
    assert indices(plan) == [[0, 1], [4, 5], [2, 3], [6, 7]]
    assert seed_of(1, 2, 3) == 1540937338477698060


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_in_the_middle_of_an_epoch(world_size: int) -> None:
    for rank in range(world_size):
        plan = GroupBatchSampler(ragged(), 8, 0, rank, world_size)
        plan.set_epoch(3)
        whole = indices(plan)
        total = len(plan)
        resumed = GroupBatchSampler(ragged(), 8, 0, rank, world_size)
        resumed.resume(3, 4)
        assert len(resumed) == total
        assert indices(resumed) == whole[4:]
        resumed.set_epoch(3)  # as Lightning does at the start of the epoch
        assert indices(resumed) == whole[4:]
        resumed.set_epoch(4)
        plan.set_epoch(4)
        assert indices(resumed) == indices(plan)
        assert len(indices(plan)) == total
    plan.resume(2, total)
    assert indices(plan) == []
    refused("start: expected 0 to", plan.resume, 2, total + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_plan(world_size: int) -> None:
    groups = ragged(12)
    alone = indices(EvalBatchSampler(groups, 8))
    plans = [EvalBatchSampler(groups, 8, rank, world_size) for rank in range(world_size)]
    dealt = [list(plan) for plan in plans]
    assert {len(d) for d in dealt} == {len(plans[0])}
    kept = [[item.index for item in batch] for d in dealt for batch in d if not batch[0].repeat]
    assert sorted(kept) == sorted(alone)  # the same batches, each counted once
    for d in dealt:
        assert all(len({item.repeat for item in batch}) == 1 for batch in d)
    for batch in (b for d in dealt for b in d if b[0].repeat):
        assert [item.index for item in batch] == alone[-1]
    assert indices(plans[0]) == indices(plans[0])


def test_evaluation_keeps_order_and_groups() -> None:
    assert indices(EvalBatchSampler([0, 0, 1, 1, 2], 2)) == [[0, 1], [2, 3], [4]]
    assert indices(EvalBatchSampler([5, 3, 5, 3], 2)) == [[0, 2], [1, 3]]
    from_long_to_short = EvalBatchSampler(range(5), 2, lengths=[3, 9, 1, 9, 4])
    assert indices(from_long_to_short) == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupBatchSampler([0], 0), "batch_size"),
        (lambda: GroupBatchSampler([0], 4, 0, 2, 2), "rank: expected 0 to 1, found 2"),
        (lambda: GroupBatchSampler([0], 4, 0, 0, 2), "at least one sample per rank"),
        (lambda: EvalBatchSampler([], 4), "at least one sample"),
        (lambda: EvalBatchSampler([0], 0), "batch_size"),
        (lambda: TokenBatchSampler([(5, 30)] * 5, 20), "max_tokens: expected at least"),
        (lambda: TokenBatchSampler([(5, 30)] * 2, 100, world_size=3), "at least one sample per rank"),
    ],
)
def test_invalid_plans(make: Any, message: str) -> None:
    refused(message, make)


# Batches of similar lengths


def lengths(count: int = 500, seed: int = 0) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    sources = [draw.randint(3, 30) for _ in range(count)]
    return [(n, max(1, n + draw.randint(-3, 6))) for n in sources]


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("world_size", [1, 3])
def test_each_sample_once_within_the_token_budget(epoch: int, world_size: int) -> None:
    given = lengths()
    plans = [TokenBatchSampler(given, 200, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for plan in plans:
        plan.set_epoch(epoch)
    batches = [batch for plan in plans for batch in indices(plan)]
    assert len({len(plan) for plan in plans}) == 1
    assert all(len(indices(plan)) == len(plan) for plan in plans)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    for batch in batches:
        assert len(batch) * max(max(given[index]) for index in batch) <= 200


def test_length_buckets_depend_only_on_seed_and_epoch() -> None:
    one, other = (TokenBatchSampler(lengths(), 200, seed=5) for _ in range(2))
    random.seed(99)
    assert indices(one) == indices(other)
    one.set_epoch(1)
    assert indices(one) != indices(other)
    other.set_epoch(1)
    assert indices(one) == indices(other)
    assert indices(TokenBatchSampler(lengths(), 200, seed=6)) != indices(TokenBatchSampler(lengths(), 200, seed=5))


def test_epochs_regroup_samples_into_as_many_batches() -> None:
    plan = TokenBatchSampler(lengths(), 200)
    assert {len(plan.batches(epoch)) for epoch in range(6)} == {len(plan)}
    first = {frozenset(batch) for batch in plan.batches(0)}
    assert len(first & {frozenset(batch) for batch in plan.batches(1)}) < len(first) / 4
    assert max(map(len, indices(TokenBatchSampler(lengths(), 400, max_samples=6)))) == 6


def test_padding_waste_is_small() -> None:
    given = lengths(20_000)
    plan = TokenBatchSampler(given, 4096)
    assert plan.padding_stats(0).share < 0.05
    shuffled = list(range(len(given)))
    random.Random(0).shuffle(shuffled)
    naive = [shuffled[n : n + 120] for n in range(0, len(shuffled), 120)]
    assert padding_stats(naive, given).share > 0.35
    waste = padding_stats([[0, 1], [2]], [(2, 3), (4, 1), (5, 5)])  # computed by hand
    assert (waste.real, waste.padded) == (20, 2 * 4 + 2 * 3 + 10)
    assert waste.share == pytest.approx(1 - 20 / 24)


def test_multi30k_padding_waste_is_small(real_data: Path) -> None:
    from mmattn.tasks.common.seq2seq.processor import PairProcessor
    from mmattn.tasks.translation.data import TranslationDataset

    dataset = TranslationDataset(real_data / "multi30k_en_de" / "train")
    processor = PairProcessor.fit(dataset, vocab_size=5000, max_source_len=128, max_target_len=128)
    given = processor.lengths(dataset.samples)
    for max_tokens in (2048, 4096):
        plan = TokenBatchSampler(given, max_tokens)
        assert max(plan.padding_stats(epoch).share for epoch in (0, 1)) <= 0.05


# Loaders


class Numbers(Dataset[int]):
    def __init__(self, groups: list[int]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> int:
        return index * 10


def gather(samples: list[int], seeds: list[int], is_repeat: bool, tag: str) -> tuple[list[int], list[int], bool, str]:
    return samples, seeds, is_repeat, tag


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_do_not_depend_on_workers(num_workers: int) -> None:
    data = Numbers(ragged(10))
    collate = functools.partial(gather, tag="x")
    with_workers, alone = (
        make_loader(data, GroupBatchSampler(data.groups, 5, seed=2), collate, n, seed=2) for n in (num_workers, 0)
    )
    for epoch in range(2):
        for loader in (with_workers, alone):
            loader.batch_sampler.set_epoch(epoch)
        assert list(with_workers) == list(alone)
    assert len(with_workers) == len(alone) == len(list(alone))


def test_seeds_depend_on_epoch_and_group() -> None:
    data = Numbers([0, 0, 1, 1])
    plan = EvalBatchSampler(data.groups, 4)
    loader = make_loader(data, plan, functools.partial(gather, tag=""), seed=9)
    before = torch.get_rng_state()
    ((samples, seeds, is_repeat, _),) = list(loader)
    assert torch.equal(before, torch.get_rng_state())
    assert samples == [0, 10, 20, 30]
    assert seeds == [seed_of(9, 0, 1)] * 2 + [seed_of(9, 0, 2)] * 2
    assert is_repeat is False
    plan.set_epoch(1)
    assert next(iter(loader))[1] != seeds
    shuffled = make_loader(data, GroupBatchSampler(data.groups, 1, seed=4), functools.partial(gather, tag=""), seed=9)
    for batch, its_seeds, _, _ in shuffled:
        assert its_seeds == [seeds[sample // 10] for sample in batch]


def test_repeats_are_marked() -> None:
    data = Numbers([0, 1, 2])
    plan = EvalBatchSampler(data.groups, 1, rank=1, world_size=2)
    loader = make_loader(data, plan, functools.partial(gather, tag=""))
    assert [(samples, is_repeat) for samples, _, is_repeat, _ in loader] == [([10], False), ([20], True)]


def test_seeds_are_well_distributed() -> None:
    seeds = {seed_of(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Item(3, 1) == Item(index=3, epoch=1, repeat=False)
