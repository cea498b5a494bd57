import pytest
import torch
from naive import Allowed

from mmattn import ALiBi, Mask
from mmattn.masks import key_offsets
from tests.conftest import refused


@pytest.mark.parametrize(("L", "S"), [(4, 4), (2, 5), (5, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("with_pairs", [False, True])
def test_dense_mask_equals_definition(L, S, is_causal, with_keys, with_pairs):
    key_mask = torch.rand(2, S) > 0.4 if with_keys else None
    attn_mask = torch.rand(2, 1, L, S) > 0.4 if with_pairs else None
    dense = Mask(key_mask, attn_mask, is_causal).dense(L, S)
    allowed = Allowed(key_mask, attn_mask, is_causal)
    expected = [[[allowed(b, 0, i, j, L, S) for j in range(S)] for i in range(L)] for b in range(2)]
    found = torch.ones(2, 1, L, S, dtype=torch.bool) if dense is None else dense.expand(2, 1, L, S)
    assert found[:, 0].tolist() == expected


def test_dense_mask_is_minimal():
    assert Mask().dense(3, 4) is None
    assert Mask(torch.ones(2, 4, dtype=torch.bool)).dense(3, 4).shape == (2, 1, 1, 4)
    assert Mask(is_causal=True).dense(1, 4) is None  # the last query attends to all
    assert Mask(is_causal=True).dense(3, 4).shape == (3, 4)


def test_key_offsets_are_bottom_right_aligned():
    assert key_offsets(2, 4).tolist() == [[-2, -1, 0, 1], [-3, -2, -1, 0]]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"key_mask": torch.ones(2, 3)}, TypeError, "key_mask must be boolean with True = takes part"),
        ({"attn_mask": torch.zeros(3, 3)}, TypeError, "an additive bias goes through a PositionBias"),
        ({"key_mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"key_mask must be \(B, S\), found shape \(3,\)"),
        ({"attn_mask": torch.ones(2, 3, 3).bool()}, ValueError, r"attn_mask must be \(L, S\) or \(B, h, L, S\)"),
        ({"global_mask": torch.ones(3, dtype=torch.bool)}, ValueError, "global_mask must be"),
    ],
)
def test_invalid_masks_raise(keywords, error, message):
    refused(message, Mask, **keywords, error=error)


def test_features_and_bias():
    bias = ALiBi(2)
    mask = Mask(is_causal=True, global_mask=torch.ones(1, 3, dtype=torch.bool)).with_bias(bias)
    assert mask.features == {"causal", "bias", "global"}
    assert mask.with_bias(bias).bias is bias
    assert Mask(torch.ones(1, 3, dtype=torch.bool)).features == frozenset()
    refused("already has a position bias", mask.with_bias, ALiBi(2))
