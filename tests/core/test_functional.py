import pytest
import torch
import torch.nn.functional as F
from references_ground import masks, torch_attention

from mmattn import ALiBi, Mask, T5Bias, attend, functional
from tests.conftest import refused


@pytest.mark.parametrize(("L", "S"), [(6, 6), (3, 6), (6, 3), (1, 6)])
def test_equals_sdpa_with_every_mask_pair(L, S):
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.float64) for n in (L, S, S))
    for mask, dense in masks(2, 4, L, S):
        expected = F.scaled_dot_product_attention(q, k, v, dense)
        expected = expected.nan_to_num(0.0).masked_fill(~dense.any(-1, keepdim=True), 0.0)
        torch.testing.assert_close(attend(q, k, v, mask), expected, rtol=0, atol=1e-12)


def test_equals_multihead_attention_with_every_mask_pair():
    assert torch_attention() < 1e-10


def nan_where_empty(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **keywords):
    """What another device may return for a row of minus infinities: NaN, forward and backward."""
    scores = q @ k.mT
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("trusted", [True, False], ids=["zeroed by torch", "zeroed by us"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [None, ALiBi(4), T5Bias(4)], ids=["no bias", "ALiBi", "T5"])
def test_empty_rows(trusted, dtype, bias, monkeypatch):
    if not trusted:
        monkeypatch.setattr(functional, "_sdpa_zeroes_empty_rows", lambda q: False)
        monkeypatch.setattr(F, "scaled_dot_product_attention", nan_where_empty)
    key_mask = torch.ones(3, 6, dtype=torch.bool)
    key_mask[0] = False
    attn_mask = torch.ones(5, 6, dtype=torch.bool)
    attn_mask[2] = False
    for mask in (Mask(key_mask), Mask(None, attn_mask), Mask(key_mask, attn_mask, True)):
        mask = mask if bias is None else mask.with_bias(bias)
        q, k, v = (torch.randn(3, 4, n, 8).to(dtype).requires_grad_() for n in (5, 6, 6))
        out = attend(q, k, v, mask)
        out.float().square().sum().backward()
        empty = ~mask.dense(5, 6).expand(3, 4, 5, 6).any(-1)
        assert out[empty].abs().max() == 0
        assert q.grad[empty].abs().max() == 0
        assert all(t.grad.isfinite().all() for t in (q, k, v))
        if mask.key_mask is not None:
            assert k.grad[0].abs().max() == 0
            assert v.grad[0].abs().max() == 0


def test_fused_path_is_used(monkeypatch):
    """A padding mask stays (B, 1, 1, S), a causal mask is a flag, the last query needs no mask."""
    seen = []

    def spy(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **keywords):
        seen.append((None if attn_mask is None else tuple(attn_mask.shape), is_causal))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    x, key_mask = torch.randn(2, 4, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    attend(x, x, x)
    attend(x, x, x, Mask(key_mask))
    attend(x, x, x, Mask(is_causal=True))
    attend(x[:, :, :1], x, x, Mask(is_causal=True))
    attend(x[:, :, :2], x, x, Mask(is_causal=True))
    attend(x, x, x, Mask(key_mask, is_causal=True))
    shapes = [None, (2, 1, 1, 6), None, None, (2, 6), (2, 1, 6, 6)]
    assert seen == list(zip(shapes, [False, False, True, False, False, False], strict=True))


def test_scale_and_grouped_query():
    q, kv = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
    wide = kv.repeat_interleave(2, dim=1)
    torch.testing.assert_close(attend(q, kv, kv, scale=0.3), (0.3 * q @ wide.mT).softmax(-1) @ wide)
    refused("4 query heads cannot share 3 key heads", functional.repeat_heads, torch.randn(2, 3, 6, 8), 4)


def test_global_tokens_raise():
    q = torch.randn(1, 1, 3, 8)
    refused("global", attend, q, q, q, Mask(global_mask=torch.ones(1, 3, dtype=torch.bool)))
