"""Linear maps by oneDNN: equal to torch's, forward and backward, and left to torch wherever that is needed."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmattn import LoRALinear, MultiHeadAttention, add_lora, onednn
from mmattn.linears import PackedLinear, prepare
from mmattn.onednn import OneDNNLinear, linear, use_onednn

ROWS = [(7,), (1,), (2, 5), (3, 1, 4)]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Small products are computed by oneDNN, too, and counted."""
    made, product = [], onednn._product

    def counted(x, weight, bias):
        made.append((x.shape, weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(onednn, "MANY", 0)
    monkeypatch.setattr(onednn, "NARROW", 0)
    monkeypatch.setattr(onednn, "is_available", lambda: True)
    monkeypatch.setattr(onednn, "_product", counted)
    return made


def gradients(function, *tensors):
    """The output and the gradients of a loss that weights each entry of it differently."""
    out = function(*tensors)
    loss = (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()
    return out, *torch.autograd.grad(loss, [t for t in tensors if t is not None and t.requires_grad])


@pytest.mark.parametrize(
    ("trained", "bias"), [*itertools.product(["xwb", "x", "w", "wb"], [True, False]), ("xb", True)]
)
@pytest.mark.parametrize("rows", ROWS)
def test_equals_torch(calls, rows, trained, bias):
    x, weight = torch.randn(*rows, 48), torch.randn(32, 48)
    b = torch.randn(32) if bias else None
    for name, tensor in (("x", x), ("w", weight), ("b", b)):
        if tensor is not None:
            tensor.requires_grad_(name in trained)
    for ours, wanted in zip(gradients(linear, x, weight, b), gradients(F.linear, x, weight, b), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1 + ("x" in trained) + ("w" in trained)  # no gradient of a frozen tensor is computed


def test_strides(calls, monkeypatch):
    whole, weight, biases = torch.randn(5, 6, 20, requires_grad=True), torch.randn(8, 16), torch.randn(8, 3)
    x, bias = whole.transpose(0, 1)[1:, :, :16], biases[:, 1]
    for function in (linear, F.linear):
        out = function(x, weight.requires_grad_(), bias)
        calls.append(torch.autograd.grad((out * torch.linspace(0, 1, 8)).transpose(0, 2).sum(), (whole, weight)))
    *products, ours, wanted = calls
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert len(products) == 3
    monkeypatch.setattr(onednn, "NARROW", 9)  # more than the weight's outputs: its gradient is left to torch
    torch.autograd.grad(linear(x, weight, bias).sum(), (whole, weight))
    assert len(calls) == 7
    linear(x, torch.randn(16, 8).T)  # not contiguous
    assert len(calls) == 7


def test_second_derivative():
    x, weight = torch.randn(4, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)

    def penalty(function):
        (slope,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    for ours, wanted in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)


def test_left_to_torch(calls, monkeypatch):
    x, weight = torch.randn(4, 16), torch.randn(8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    linear(x.double(), weight.double())
    assert torch.func.vmap(linear, (0, None))(x, weight).shape == (4, 8)
    assert torch.func.jvp(lambda x: linear(x, weight), (x,), (x,))[1].shape == (4, 8)
    assert linear(x.to("meta"), weight.to("meta")).shape == (4, 8)
    rows = ({0: torch.export.Dim("rows", max=10**6)},)
    program = torch.export.export(use_onednn(nn.Sequential(nn.Linear(16, 8))), (x,), dynamic_shapes=rows)
    assert "mkldnn" not in str(program.graph)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight)
    assert not calls
    monkeypatch.setattr(onednn, "MANY", 4 * 16 * 8 + 1)
    linear(x, weight)
    assert not calls
    monkeypatch.setattr(onednn, "MANY", 4 * 16 * 8)
    linear(x, weight)
    assert len(calls) == 1


def test_model_keeps_its_weights_and_classes():
    plain = nn.ModuleDict({"a": nn.Linear(16, 8), "b": MultiHeadAttention(16, 2), "c": nn.Bilinear(4, 4, 2)})
    plain["d"] = LoRALinear(nn.Linear(16, 8), 2)
    model = use_onednn(copy.deepcopy(plain))
    assert type(model["a"]) is type(model["b"].q_proj) is OneDNNLinear
    assert type(model["d"]) is LoRALinear
    assert list(model.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(model)
    assert type(again["a"]) is OneDNNLinear
    x = torch.randn(3, 5, 16)
    for name in ("a", "b", "d"):
        torch.testing.assert_close(again[name](x), plain[name](x), rtol=1e-4, atol=1e-4)
    assert add_lora(again, targets=("q_proj",)) == ["b.q_proj"]
    assert type(prepare(again)["a"]) in (PackedLinear, nn.Linear)


def test_result_is_checked_once(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert onednn.is_available.__wrapped__() is True
    monkeypatch.setattr(onednn, "_product", lambda x, weight, bias: 2 * F.linear(x, weight, bias))
    assert onednn.is_available.__wrapped__() is False
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert onednn.is_available.__wrapped__() is False
