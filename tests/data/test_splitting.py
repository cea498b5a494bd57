"""The validation data that are held out."""

from collections import Counter

import pytest

from mmattn.data.dataset import SampleDataset
from mmattn.data.splitting import held_out
from mmattn.tasks.classification.data import ClassificationDataset, ClassificationSample
from tests.conftest import refused


@pytest.mark.parametrize("seed", [0, 1])
def test_each_label_in_proportion(seed: int) -> None:
    labels = ["a"] * 20 + ["b"] * 40 + ["c"] * 2 + ["d"]
    held = held_out(labels, range(63), seed)
    assert held == held_out(labels, range(63), seed) == sorted(set(held))
    counts = Counter(labels[index] for index in held)
    assert (counts["a"], counts["b"], counts["d"]) == (4, 8, 0)
    assert counts["c"] < 2, "training has every label"
    assert held != held_out(labels, range(63), seed + 2)


def test_groups_stay_together() -> None:
    groups = [number // 7 for number in range(700)]
    held = held_out([""] * 700, groups, 0)
    assert len(held) == 140
    assert Counter(groups[index] for index in held).keys() == {groups[index] for index in held}
    assert set(Counter(groups[index] for index in held).values()) == {7}


@pytest.mark.parametrize(("total", "expected"), [(2, 1), (3, 1), (10, 2), (4000, 800), (8000, 1000), (90_000, 5000)])
def test_share(total: int, expected: int) -> None:
    assert len(held_out([0] * total, range(total), 0)) == expected


def test_data_sets_are_divided() -> None:
    samples = [ClassificationSample(str(n), b"x", ["even", "odd"][n % 2 :][:1]) for n in range(20)]
    whole: SampleDataset[ClassificationSample] = ClassificationDataset(samples)
    train, val = whole.divided(0)
    assert (len(train), len(val), val.name) == (16, 4, "samples (held out)")
    assert {s.id for s in train.samples} | {s.id for s in val.samples} == {s.id for s in samples}
    assert len({data.fingerprint() for data in (whole, train, val)}) == 3
    refused("at least two labeled images, to hold one out", ClassificationDataset(samples[:1]).divided, 0)
