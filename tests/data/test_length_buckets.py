"""Batches of like lengths: within budget, each sample once, dealt to ranks, resumed exactly, little padding."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mmattn.data.batching import EvalBatchSampler
from mmattn.data.buckets import TokenBatchSampler, waste_of
from tests.conftest import refused


def lengths(count: int = 500, seed: int = 0) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    sources = [draw.randint(3, 30) for _ in range(count)]
    return [(n, max(1, n + draw.randint(-3, 6))) for n in sources]


def listed(plan: TokenBatchSampler) -> list[list[int]]:
    return [[item.index for item in batch] for batch in plan]


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("world_size", [1, 3])
def test_each_sample_once_and_none_over_budget(epoch: int, world_size: int) -> None:
    given = lengths()
    plans = [TokenBatchSampler(given, 200, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for plan in plans:
        plan.set_epoch(epoch)
    batches = [batch for plan in plans for batch in listed(plan)]
    assert len({len(plan) for plan in plans}) == 1
    assert all(len(listed(plan)) == len(plan) for plan in plans)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    for batch in batches:
        assert len(batch) * max(max(given[index]) for index in batch) <= 200


def test_a_function_of_seed_and_epoch() -> None:
    one, other = (TokenBatchSampler(lengths(), 200, seed=5) for _ in range(2))
    random.seed(99)
    assert listed(one) == listed(other)
    one.set_epoch(1)
    assert listed(one) != listed(other)
    other.set_epoch(1)
    assert listed(one) == listed(other)
    assert listed(TokenBatchSampler(lengths(), 200, seed=6)) != listed(TokenBatchSampler(lengths(), 200, seed=5))


def test_epochs_have_as_many_batches_of_other_company() -> None:
    plan = TokenBatchSampler(lengths(), 200)
    assert {len(plan.batches(epoch)) for epoch in range(6)} == {len(plan)}
    first = {frozenset(batch) for batch in plan.batches(0)}
    assert len(first & {frozenset(batch) for batch in plan.batches(1)}) < len(first) / 4
    assert max(map(len, listed(TokenBatchSampler(lengths(), 400, max_samples=6)))) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_resumed_in_mid_epoch(rank: int) -> None:
    whole = TokenBatchSampler(lengths(), 200, seed=1, rank=rank, world_size=2)
    whole.set_epoch(4)
    resumed = TokenBatchSampler(lengths(), 200, seed=1, rank=rank, world_size=2)
    resumed.resume(4, 7)
    assert listed(resumed) == listed(whole)[7:]
    resumed.set_epoch(5)
    whole.set_epoch(5)
    assert listed(resumed) == listed(whole)
    assert len(resumed) == len(whole)


def test_little_is_padded() -> None:
    given = lengths(20_000)
    plan = TokenBatchSampler(given, 4096)
    assert plan.waste(0).share < 0.05
    shuffled = list(range(len(given)))
    random.Random(0).shuffle(shuffled)
    naive = [shuffled[n : n + 120] for n in range(0, len(shuffled), 120)]
    assert waste_of(naive, given).share > 0.35
    waste = waste_of([[0, 1], [2]], [(2, 3), (4, 1), (5, 5)])  # by hand
    assert (waste.real, waste.padded) == (20, 2 * 4 + 2 * 3 + 10)
    assert waste.share == pytest.approx(1 - 20 / 24)


@pytest.mark.parametrize(
    ("count", "max_tokens", "world_size", "message"),
    [(5, 20, 1, "max_tokens: expected at least"), (2, 100, 3, "at least one sample a rank")],
)
def test_wrong_options(count: int, max_tokens: int, world_size: int, message: str) -> None:
    given = [(5, 30)] * count
    refused(message, TokenBatchSampler, given, max_tokens, world_size=world_size)


def test_measuring_goes_from_long_to_short() -> None:
    plan = EvalBatchSampler(range(5), 2, lengths=[3, 9, 1, 9, 4])
    assert [[item.index for item in batch] for batch in plan] == [[1, 3], [4, 0], [2]]


def test_multi30k_wastes_little(real_data: Path) -> None:
    from mmattn.tasks.common.seq2seq.processor import PairProcessor
    from mmattn.tasks.translation.data import TranslationDataset

    dataset = TranslationDataset(real_data / "multi30k_en_de" / "train")
    processor = PairProcessor.fit(dataset, vocab_size=5000, max_source_len=128, max_target_len=128)
    given = processor.lengths(dataset.samples)
    for max_tokens in (2048, 4096):
        plan = TokenBatchSampler(given, max_tokens)
        assert max(plan.waste(epoch).share for epoch in (0, 1)) <= 0.05
