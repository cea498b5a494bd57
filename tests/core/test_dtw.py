"""Dynamic time warping against a plain loop, and on attention with known boundaries."""

import itertools
import math

import pytest
import torch

from mmattn.generate.dtw import median, spoken_from, warp


def cheapest(cost):
    """Enumerates all paths: where the rows of the cheapest one begin."""
    rows, columns = cost.shape
    best = (math.inf, [])
    for moves in range(max(rows, columns) - 1, rows + columns - 1):
        for path in itertools.product(((0, 1), (1, 0), (1, 1)), repeat=moves):
            places = [(0, 0)]
            for down, right in path:
                places.append((places[-1][0] + down, places[-1][1] + right))
            if places[-1] != (rows - 1, columns - 1) or any(i >= rows or j >= columns for i, j in places):
                continue
            total = sum(float(cost[place]) for place in places)
            starts = [next(j for i, j in places if i == row) for row in range(rows)]
            best = min(best, (total, starts))
    return best[1]


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (3, 3), (4, 2), (3, 4), (3, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_exhaustive_search(shape, seed):
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert warp(cost) == cheapest(cost)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_equals_transformers(seed):
    whisper = pytest.importorskip("transformers.models.whisper.generation_whisper")
    weights = torch.randn(3, 17, 120, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    scores = (weights - weights.mean(1, keepdim=True)) / weights.std(1, correction=0, keepdim=True)
    assert torch.equal(median(scores, 7), whisper._median_filter(scores[None], 7)[0])
    matrix = whisper._median_filter(scores[None], 7)[0].mean(0)
    rows, columns = whisper._dynamic_time_warping(-matrix.numpy())
    assert spoken_from(weights) == [int(columns[list(rows).index(row)]) for row in range(17)]


def test_recovers_known_boundaries():
    starts = [0, 9, 31, 40, 77]
    centers = [(a + b) / 2 for a, b in itertools.pairwise([*starts, 90])]
    time = torch.arange(90)
    weights = torch.stack([-((time - c) / 6).square() for c in centers]).softmax(-1)[None].repeat(2, 1, 1)
    found = spoken_from(weights)
    assert found[0] == 0
    borders = [(a + b) / 2 for a, b in itertools.pairwise(centers)]  # for equal peaks, midway between them
    assert max(abs(a - b) for a, b in zip(found[1:], borders, strict=True)) <= 3
    assert median(torch.randn(2, 3), 7).shape == (2, 3)
