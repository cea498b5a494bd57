"""Top-k, maximum and log-normalizer over a vocabulary, against torch."""

import math

import pytest
import torch

from mmattn.generate.topk import largest, log_normalizer, top_k


@pytest.mark.parametrize("columns", [5, 700, 5_000, 5_001, 5_063])
def test_top_k_equals_torch(columns):
    scores = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))
    for k in (1, 4, 5):
        for found, expected in zip(top_k(scores, k), scores.topk(k, dim=-1), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("columns", [5, 700, 5_000, 5_001, 5_063])
def test_largest_equals_argmax(columns):
    scores = torch.randn(9, columns, generator=torch.Generator().manual_seed(0))
    scores[1, 3] = scores[1, -1] = 9.0  # the first of equal values
    scores[2] = -math.inf
    scores[3, -1] = 9.0
    assert torch.equal(largest(scores), scores.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_normalizer(dtype):
    scores = (torch.randn(19, 900, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    scores[:, 3] = -math.inf
    expected = scores.to(torch.promote_types(dtype, torch.float32)).logsumexp(-1, keepdim=True)
    assert torch.allclose(log_normalizer(scores), expected, rtol=1e-6 if dtype != torch.float64 else 1e-12)
