import copy

import pytest
import torch
from torch import nn

from mmattn import ALiBi, Mask, MultiHeadAttention, T5Bias, aux_losses, split_attention
from tests.conftest import refused, slow_but_first

CAUSAL = Mask(is_causal=True)


def test_value_may_differ_from_key():
    attention = MultiHeadAttention(8, 2, kv_dim=6, v_head_dim=5, head_dim=3)
    x, key, value = torch.randn(2, 3, 8), torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    assert attention.out_proj.in_features == 10
    assert not torch.equal(attention(x, key, value), attention(x, key))
    torch.testing.assert_close(attention(x, key, key), attention(x, key))


def test_not_causal_by_default():
    attention, x = MultiHeadAttention(8, 2), torch.randn(1, 4, 8)
    changed = torch.cat([x[:, :3], torch.randn(1, 1, 8)], dim=1)
    assert not torch.allclose(attention(x)[:, 0], attention(changed)[:, 0])


def test_cross_cache_projects_once():
    attention = MultiHeadAttention(8, 2).eval()
    calls = []
    attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    cache = attention.make_cache(2, cross=True)
    outs = [attention(x[:, i : i + 1], memory, cache=cache) for i in range(3)]
    assert len(calls) == 1
    torch.testing.assert_close(torch.cat(outs, dim=1), attention(x, memory))
    assert set(cache.tensors()) == {"keys", "values"}
    cache.select(torch.tensor([1]))
    torch.testing.assert_close(attention(x[1:], memory[1:], cache=cache), attention(x, memory)[1:])


def test_monotonic_cache_keeps_position():
    attention = MultiHeadAttention(8, 2, kind="monotonic", options={"initial_offset": 0.5}, needs={"cross"}).eval()
    x, memory = torch.randn(2, 6, 8), torch.randn(2, 9, 8)
    cache = attention.make_cache(2, cross=True)
    outs = [attention(x[:, i : i + 1], memory, cache=cache) for i in range(6)]
    torch.testing.assert_close(torch.cat(outs, dim=1), attention(x, memory))
    assert set(cache.tensors()) == {"keys", "values", "state.position", "state.seen"}
    cache.select(torch.tensor([1, 1]))
    assert torch.equal(cache.state.position[0], cache.state.position[1])


def test_decoding_keeps_full_precision_state_under_autocast():
    attention = MultiHeadAttention(8, 2).eval()
    cache = attention.make_cache(1)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert attention(torch.randn(1, 1, 8), mask=CAUSAL, cache=cache).isfinite().all()
    assert cache.keys.dtype == torch.bfloat16
    assert cache.length == 3


def test_state_dict_round_trip_and_deep_copy():
    attention = MultiHeadAttention(8, 2, kind="additive", position_bias=T5Bias(2))
    other = MultiHeadAttention(8, 2, kind="additive", position_bias=T5Bias(2))
    other.load_state_dict(attention.state_dict())
    x = torch.randn(2, 3, 8)
    assert torch.equal(other(x), attention(x))
    assert torch.equal(copy.deepcopy(attention)(x), attention(x))


def test_split_attention():
    assert split_attention({"kind": "linear"}) == ("linear", {})
    assert split_attention("linear") == ("linear", {})
    assert split_attention({"dropout": 0.1}) == ("dense", {"dropout": 0.1})
    config = {"kind": "sliding_window", "window": 3}
    split_attention(config)
    assert config == {"kind": "sliding_window", "window": 3}


def test_auxiliary_losses():
    class WithLoss(nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def aux_loss(self):
            return self.loss

    assert aux_losses(MultiHeadAttention(8, 2)) is None
    assert aux_losses(nn.Sequential(WithLoss(torch.tensor(1.0)), WithLoss(None), WithLoss(torch.tensor(2.5)))) == 3.5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"embed_dim": 9}, "embed_dim=9 is not divisible by num_heads=2"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"kind": "linear", "dropout": 0.1}, "'linear' has no option 'dropout'"),
        ({"kind": "linear", "position_bias": ALiBi(2)}, "'linear' does not support a position bias"),
        ({"position_bias": ALiBi(4)}, "position_bias is for 4 heads, the attention has 2"),
        ({"kind": "monotonic", "needs": {"self"}}, "'monotonic' does not support bidirectional self-attention"),
        ({"rotary": True, "head_dim": 3}, "even head_dim"),
        ({"bias": "qv"}, "bias must be true, false, or a list of q, k, v, out; found"),
        ({"bias": ["q", "value"]}, "bias must be true, false, or a list of q, k, v, out; found"),
        ({"qk_norm": "batch"}, "unknown qk_norm 'batch'; expected one of: layer, rms"),
        ({"num_kv_heads": 1, "kind": "lsh"}, "num_kv_heads=1 must be 2"),
    ],
)
def test_invalid_construction_raises(keywords, message):
    refused(message, MultiHeadAttention, **{"embed_dim": 8, "num_heads": 2} | keywords)


X, Y = torch.zeros(1, 3, 8), torch.zeros(1, 4, 8)


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        ({}, lambda a: a(X, None, X), "a value needs a key"),
        ({}, lambda a: a(X, key_pos=X), "omit key_pos"),
        ({"kv_dim": 6}, lambda a: a(X), "self-attention needs kv_dim == embed_dim, found 6 and 8"),
        ({"rotary": True}, lambda a: a(X, Y), "not for cross-attention"),
        ({"kind": "monotonic"}, lambda a: a(X), "does not support bidirectional self-attention"),
        ({"kind": "monotonic"}, lambda a: a(X, mask=CAUSAL), "does not support causal attention"),
        ({"kind": "sliding_window"}, lambda a: a(X, Y), "does not support cross-attention"),
        ({"position_bias": ALiBi(2)}, lambda a: a(X, mask=Mask(bias=ALiBi(2))), "already has a position bias"),
        ({}, lambda a: a(X, cache=a.make_cache(1, cross=True)), r"not for self-attention: make_cache\(cross=False\)"),
        ({}, lambda a: a(X, Y, cache=a.make_cache(1)), r"not for cross-attention: make_cache\(cross=True\)"),
    ],
)
def test_invalid_calls_raise(make, call, message):
    refused(message, call, MultiHeadAttention(8, 2, **make).eval())


@pytest.mark.parametrize("kind", slow_but_first(["dense", "sliding_window", "linear"]))
def test_compiles_full_graph_at_changing_lengths(kind):
    attention = MultiHeadAttention(8, 2, kind=kind, rotary=True)

    def run(x, key_mask):
        return attention(x, mask=Mask(key_mask, is_causal=True))

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for length in (5, 9, 140):
        x, key_mask = torch.randn(2, length, 8), torch.rand(2, length) > 0.3
        torch.testing.assert_close(compiled(x, key_mask), run(x, key_mask))
    torch._dynamo.reset()


def test_selected_biases():
    attention = MultiHeadAttention(8, 2, bias=["q", "v", "out"])  # as Whisper
    found = {name for name, _ in attention.named_parameters() if name.endswith("bias")}
    assert found == {"q_proj.bias", "v_proj.bias", "out_proj.bias"}


def test_dense_mask_is_cached():
    mask = Mask(torch.ones(2, 5, dtype=torch.bool), is_causal=True)
    assert mask.dense(5, 5) is mask.dense(5, 5)
    with torch.inference_mode():
        mask.dense(5, 5)
    assert not mask.dense(5, 5).is_inference()
