"""Decoding steps: equal to the fused path, in both layouts; the cases left to the fused path."""

import pytest
import torch
import torch.nn.functional as F

from mmattn import Mask, cpu
from mmattn.functional import attend

B, H, S, D = 3, 4, 7, 8


def parts(layout, L=1, value_dim=D, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(B, n, H, d, generator=generator, dtype=dtype).transpose(1, 2)
        for n, d in ((L, D), (S, D), (S, value_dim))
    )
    return (q, k.contiguous(), v.contiguous()) if layout == "by head" else (q, k, v)


def attend_step(*arguments):
    with torch.inference_mode():
        return cpu.attend_step(*arguments)


def key_mask(*lengths):
    return torch.arange(S) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [2**19, 1])
@pytest.mark.parametrize("value_dim", [D, 5])
@pytest.mark.parametrize(
    "mask", [None, Mask(is_causal=True), Mask(key_mask(7, 2, 5)), Mask(key_mask(7, 2, 5), is_causal=True)]
)
@pytest.mark.parametrize(("layout", "L"), [("by head", 1), ("by head", 5), ("by token", 1)])
def test_equals_fused_path(monkeypatch, layout, L, mask, value_dim, chunk, dtype):
    monkeypatch.setattr(cpu, "CHUNK", chunk)
    q, k, v = parts(layout, L, value_dim, dtype)
    expected = attend(q, k, v, mask, scale=0.3)  # a gradient may be required: the fused path
    found = attend_step(q, k, v, mask, 0.3)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-12 if dtype == torch.float64 else 1e-5, rtol=0)
    with torch.inference_mode():
        assert torch.equal(attend(q, k, v, mask, scale=0.3), found)


def test_per_head_masks():
    q, k, v = parts("by head", 2)
    mask = Mask(key_mask(7, 3, 4), torch.rand(B, H, 2, S, generator=torch.Generator().manual_seed(1)) < 0.8)
    mask.attn_mask[..., 0] = True
    assert torch.allclose(attend_step(q, k, v, mask, 0.3), attend(q, k, v, mask, scale=0.3), atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", ["by head", "by token"])
def test_fully_masked_rows_are_zero(layout):
    q, k, v = parts(layout)
    mask = Mask(key_mask(7, 0, 5))
    assert attend_step(q, k, v, mask, 0.3) is None
    with torch.inference_mode():
        found = attend(q, k, v, mask)
    assert (found[1] == 0).all()
    assert (found[0] != 0).all()
    assert torch.allclose(found[2], F.scaled_dot_product_attention(q[2], k[2, :, :5], v[2, :, :5]), atol=1e-12)


def test_unsupported_cases_use_fused_path():
    by_token, by_head = parts("by token", 2), parts("by head", cpu.FEW + 1)
    assert attend_step(*by_token, None, 0.3) is None
    assert attend_step(*by_head, None, 0.3) is None
    q, k, v = parts("by head")
    assert attend_step(q, k[:, :2], v[:, :2], None, 0.3) is None  # grouped-query
    assert attend_step(*(x.bfloat16() for x in (q, k, v)), None, 0.3) is None
    assert attend_step(q, k, v, Mask(global_mask=key_mask(1, 1, 1)), 0.3) is None
    assert attend_step(q, k, v, None, 0.3, 0.1) is None  # dropout
    assert cpu.attend_step(q, k, v, None, 0.3) is None  # a gradient may be required
