import pytest
import torch
from torch import nn

from mmattn import CoAttention, Encoder, Mask, MultiHeadAttention, MultimodalFusionBlock, capture
from tests.conftest import learn


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_maps_are_keyed_by_path():
    model = nn.ModuleDict({"encoder": Encoder(8, 2, 2), "fusion": MultimodalFusionBlock(8, 2)})
    x, y = torch.randn(3, 4, 8), torch.randn(3, 6, 8)
    with capture(model) as maps:
        model["encoder"](x)
        model["fusion"](x, y)
        model["fusion"](x[:, :2], y)
    assert {name: [tuple(map_.shape) for map_ in found] for name, found in maps.items()} == {
        "encoder.layers.0.attention": [(3, 2, 4, 4)],
        "encoder.layers.1.attention": [(3, 2, 4, 4)],
        "fusion.self_attention": [(3, 2, 4, 4), (3, 2, 2, 2)],
        "fusion.cross_attention": [(3, 2, 4, 6), (3, 2, 2, 6)],
    }
    torch.testing.assert_close(maps["fusion.cross_attention"][0].sum(-1), torch.ones(3, 2, 4))
    assert hooks(model) == 0


def test_attention_supervision_reaches_projections():
    model, x = Encoder(8, 1, 2).train(), torch.randn(2, 5, 8)

    def on_first():
        with capture(model) as maps:
            model(x)
        return maps["layers.0.attention"][0][..., 0].mean()

    before = on_first()
    learn(torch.optim.SGD(model.parameters(), lr=5.0), 10, lambda: -on_first().log())
    assert on_first() > before + 0.2


def test_hooks_are_removed_after_errors():
    model = Encoder(8, 1, 2)
    model.gradient_checkpointing = True
    with pytest.raises(RuntimeError, match="stop"), capture(model):
        raise RuntimeError("stop")
    assert hooks(model) == 0
    assert model.gradient_checkpointing


def test_nested_capture():
    model, x = Encoder(8, 1, 2), torch.randn(2, 5, 8)
    plain = model(x)
    with capture(model) as outer:
        with capture(model) as inner:
            torch.testing.assert_close(model(x), plain)
        model(x)
    assert len(inner["layers.0.attention"]) == 1
    assert len(outer["layers.0.attention"]) == 2
    assert hooks(model) == 0


def test_captured_kernels_compute_once_and_others_remain_fused(monkeypatch):
    model, x = Encoder(8, 2, 2), torch.randn(2, 5, 8)
    plain, kernel = model(x), model.layers[0].attention.kernel
    with capture(model, only=["layers.1.attention"]) as maps:
        torch.testing.assert_close(model(x), plain)
    assert set(maps) == {"layers.1.attention"}
    monkeypatch.setattr(type(kernel), "forward", None)
    with capture(model):
        torch.testing.assert_close(model(x), plain)
    with pytest.raises(TypeError), capture(model, only=["layers.1.attention"]):
        model(x)


def test_capture_of_a_submodule():
    model, x, y = CoAttention(8, 1, 2), torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    with capture(model.layers[0].exchange) as maps:
        model(x, y)
    assert set(maps) == {"a_to_b", "b_to_a"}
    attention = MultiHeadAttention(8, 4, num_kv_heads=2, v_head_dim=3)
    with capture(attention) as maps:
        attention(x)
    assert {path: found[0].shape for path, found in maps.items()} == {"": (1, 4, 3, 3)}


def test_attention_dropout_is_active_in_training():
    attention = MultiHeadAttention(8, 2, dropout=0.5).train()
    x = torch.randn(2, 5, 8)
    with capture(attention) as maps:
        first, second = attention(x), attention(x)
    assert not torch.equal(first, second)
    assert torch.equal(*maps[""])  # the map itself


def test_cached_decoding_raises():
    attention = MultiHeadAttention(8, 2)
    cache = attention.make_cache(1)
    with capture(attention), pytest.raises(ValueError, match="one pass over the whole sequence"):
        attention(torch.randn(1, 1, 8), mask=Mask(is_causal=True), cache=cache)


@pytest.mark.parametrize("how", ["module", "in place"])
def test_compiled_models_run_eagerly(how):
    model, x = Encoder(8, 1, 2), torch.randn(2, 5, 8)
    plain = model(x)
    if how == "module":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    torch.testing.assert_close(model(x), plain)
    with capture(model) as maps:
        torch.testing.assert_close(model(x), plain)
    assert {name: len(found) for name, found in maps.items()} == {"layers.0.attention": 1}
    torch.testing.assert_close(model(x), plain)
    assert len(maps["layers.0.attention"]) == 1
    torch._dynamo.reset()
