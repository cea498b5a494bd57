"""Packed linear maps: their outputs, their errors, and the outputs of a prepared model."""

import warnings

import pytest
import torch
from torch import nn

from mmattn import Encoder, Mask, MultiHeadAttention, linears
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.cpu import fuse_projections
from mmattn.generate import GenerationConfig
from mmattn.linears import PRECISIONS, Int8Linear, PackedLinear, make_linear, prepare
from tests.conftest import refused

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 3e-2}
BITS = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 2e-2}
CONFIG = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, max_new_tokens=8, num_beams=2)


def available(precision):
    reason = linears.why_not(precision)
    return pytest.param(precision, marks=pytest.mark.skipif(reason is not None, reason=f"{precision}: {reason}"))


HERE = [available(precision) for precision in PRECISIONS]


@pytest.mark.parametrize("precision", HERE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 5, 64), (160, 64)])
def test_matrix_products(precision, bias, shape):
    torch.manual_seed(0)
    plain, x = nn.Linear(64, 96, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        found, expected = make_linear(plain.weight, plain.bias, precision)(x), plain(x)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < TOLERANCE[precision]


@pytest.mark.parametrize("precision", HERE)
def test_strided_weights(precision):
    """A transposed weight and a bias that is a column."""
    torch.manual_seed(0)
    table, x = torch.randn(64, 64), torch.randn(5, 64)
    with torch.inference_mode():
        found = make_linear(table.mT, table[:, 3], precision)(x)
    expected = x @ table + table[:, 3]
    assert (found - expected).norm() / expected.norm() < TOLERANCE[precision]


@pytest.fixture
def always_pack(monkeypatch):
    """Packs small maps in float32, too, which is slower with AVX2 alone."""
    monkeypatch.setattr(linears, "MANY", 0)


@pytest.mark.parametrize("precision", HERE)
def test_prepared_model(precision, always_pack):
    torch.manual_seed(0)
    model = Seq2Seq(60, 32, 2, 4).eval()
    source = torch.randint(3, 60, (10, 7))
    key_mask = torch.arange(7) < torch.randint(2, 8, (10, 1))
    target = torch.randint(3, 60, (10, 5))
    with torch.inference_mode():
        expected = model(source, key_mask, target)
        before = model.generate(source, key_mask, CONFIG)
        assert prepare(model, precision) is model
        found = model(source, key_mask, target)
    assert not any(type(module) is nn.Linear for module in model.modules())
    seven_bits = precision == "int8" and linears._int8_product()[1]
    assert (found - expected).norm() / expected.norm() < BITS[precision] * (2 if seven_bits else 1)
    after = model.generate(source, key_mask, CONFIG)
    if precision == "float32":
        assert after.tokens() == before.tokens()
    assert torch.allclose(after.scores, before.scores, atol=10 * BITS[precision])


def test_fused_projections(always_pack):
    """Grouped-query, some biases, value heads of another size; cross-attention is not fused."""
    for keywords in ({"num_kv_heads": 2, "bias": ("q", "out")}, {"v_head_dim": 12}, {"rotary": True, "qk_norm": "rms"}):
        torch.manual_seed(0)
        attention = MultiHeadAttention(32, 4, needs=("causal",), **keywords).eval()
        x, mask = torch.randn(2, 5, 32), Mask(is_causal=True)
        with torch.inference_mode():
            expected = attention(x, mask=mask)
            fuse_projections(attention, lambda weight, bias: make_linear(weight, bias, "float32"))
            assert isinstance(attention.qkv_proj, PackedLinear)
            assert torch.allclose(attention(x, mask=mask), expected, atol=1e-5)
            refused("fused", attention, x, query_pos=x)
    cross = MultiHeadAttention(32, 4, needs=("cross",))
    fuse_projections(cross, lambda weight, bias: make_linear(weight, bias, "float32"))
    assert cross.qkv_proj is None


def test_shared_query_key_projection(always_pack):
    model = prepare(Encoder(32, 1, 4, attention={"kind": "lsh", "num_buckets": 2}))
    assert isinstance(model.layers[0].attention.q_proj, PackedLinear)


@pytest.mark.parametrize(("capability", "packed"), [("AVX2", [False, True]), ("AVX512", [True, True])])
def test_float32_is_packed_where_it_is_faster(capability, packed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = nn.Sequential(nn.Linear(8, linears.MANY - 1), nn.Linear(linears.MANY - 1, linears.MANY)).eval()
    x = torch.randn(3, 8)
    with torch.inference_mode():
        expected = model(x)
        assert [isinstance(linear, PackedLinear) for linear in prepare(model)] == packed
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_int8_products_of_large_values():
    """Where the sums of products saturate at 16 bits, activations have seven bits."""
    product = linears._int8_product()
    weight, x = torch.ones(16, 64), torch.ones(4, 64)
    weight[::2] *= -1
    for kind in linears.INT8:
        with torch.inference_mode():
            error = (Int8Linear(weight, None, *kind)(x) - x @ weight.mT).abs().max()
        if kind == product:
            assert error < 0.5
            break
        assert error > 1, "a faster kind is right, too"


def test_fallback_warns_with_a_reason():
    with pytest.warns(UserWarning, match=r"'int8' is not available.*float64"):
        model = prepare(nn.Sequential(nn.Linear(8, 8)).double(), "int8")
    assert type(model[0]) is nn.Linear


@pytest.fixture
def fresh_probe():
    """Clears the cached probes of supported operators before and after the test."""
    probes = (linears.why_not, linears._int8_product)
    for probe in probes:
        probe.cache_clear()
    yield
    for probe in probes:
        probe.cache_clear()


def test_broken_operators_are_detected(monkeypatch, fresh_probe):
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features))
    with pytest.warns(UserWarning, match="float32 is used: its products are wrong on this machine"):
        model = prepare(nn.Sequential(nn.Linear(8, 2048)), "int8")
    assert isinstance(model[0], PackedLinear)


def test_unsupported_operator_is_reported(monkeypatch, fresh_probe):
    def refuse(self, *arguments, **options):
        raise NotImplementedError("no such operator\nbacktrace")

    monkeypatch.setattr(Int8Linear, "__init__", refuse)
    assert linears.why_not("int8").endswith("on this machine: no such operator")


def test_quantized_engine_is_restored():
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Int8Linear(torch.randn(8, 8), None)
    assert torch.backends.quantized.engine == engine


def test_unknown_precision_raises():
    refused("unknown precision 'int4'; expected one of: float32, bfloat16, int8", prepare, nn.Linear(8, 8), "int4")
