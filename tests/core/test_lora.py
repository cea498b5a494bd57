"""Low-rank adaptation: its output, its gradients, what it replaces, and the merged model."""

import copy

import pytest
import torch
from torch import nn

from mmattn import Encoder, LoRALinear, Mask, MultiHeadAttention, add_lora, merge_lora
from mmattn.linears import prepare
from mmattn.lora import TARGETS
from tests.conftest import refused


def adapted(targets=("q_proj", "v_proj"), **options):
    """An encoder with updates that are not zero, and the encoder without them."""
    plain = Encoder(16, 2, 4, ffn_dim=24).double().eval()
    model = copy.deepcopy(plain)
    add_lora(model, 3, 6.0, targets=targets, **options)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b)
    return plain, model.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_is_the_formula(bias):
    plain = nn.Linear(5, 7, bias=bias).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    layer = LoRALinear(copy.deepcopy(plain), rank=2, alpha=3.0)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)  # B is zero
    assert layer.lora_a.abs().max() <= 5**-0.5
    nn.init.normal_(layer.lora_b)
    expected = plain(x) + 1.5 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.merged()(x), expected, rtol=1e-12, atol=1e-12)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_equals_peft():
    """Forward, gradients and merged weights of https://github.com/huggingface/peft, with the same A and B."""
    peft = pytest.importorskip("peft")

    class Net(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    plain, x = nn.Linear(6, 5).double(), torch.randn(4, 6, dtype=torch.float64)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["layer"], init_lora_weights=False)
    theirs = peft.inject_adapter_in_model(config, Net(copy.deepcopy(plain))).double().layer
    ours = LoRALinear(copy.deepcopy(plain), rank=3, alpha=7)
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    with torch.no_grad():
        ours.lora_a.copy_(a)
        ours.lora_b.copy_(b)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.lora_a.grad, a.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.lora_b.grad, b.grad, rtol=1e-12, atol=1e-12)
    theirs.merge()
    torch.testing.assert_close(ours.merged().weight, theirs.base_layer.weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), TARGETS])
def test_merged_model_has_the_same_outputs_and_names(targets):
    plain, model = adapted(targets)
    x, mask = torch.randn(3, 7, 16, dtype=torch.float64), Mask(torch.arange(7) < torch.tensor([[7], [4], [1]]))
    expected = model(x, mask)
    assert (expected - plain(x, mask)).abs().max() > 0.1
    merged = merge_lora(model)
    torch.testing.assert_close(merged(x, mask), expected, rtol=1e-10, atol=1e-10)
    before, after = plain.state_dict(), merged.state_dict()
    assert list(after) == list(before)
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(targets)


def test_gradients_reach_the_updates_alone_if_the_rest_is_frozen():
    plain = Encoder(16, 1, 4).requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    paths = add_lora(plain, 2, dropout=0.5)
    assert paths == ["layers.0.attention.q_proj", "layers.0.attention.v_proj"]
    plain(torch.randn(2, 5, 16)).sum().backward()
    trained = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert set(trained) == {f"{path}.lora_{letter}" for path in paths for letter in "ab"}
    assert all(trained[f"{path}.lora_b"].abs().sum() > 0 for path in paths)
    loaded = plain.load_state_dict(before, strict=False)
    assert not loaded.unexpected_keys, "frozen weights keep their names"


def test_merged_model_is_packed():
    _, model = adapted()
    model, x = merge_lora(model.float()), torch.randn(2, 5, 16)
    with torch.inference_mode():
        torch.testing.assert_close(prepare(copy.deepcopy(model))(x), model(x), rtol=1e-4, atol=1e-4)


def test_errors():
    model = Encoder(16, 1, 4)
    refused("targets: expected some of q_proj.*found \\['query'\\]", add_lora, model, targets=["query"])
    refused("targets: expected some of", add_lora, model, targets=[])
    refused("rank: expected a whole number of at least 1, found 0", add_lora, model, rank=0)
    refused("rank: expected a whole number of at least 1, found 'x'", add_lora, model, rank="x")
    shared = MultiHeadAttention(16, 4, kind="lsh")
    refused("no plain linear map k_proj", add_lora, shared, targets=["q_proj", "k_proj"])
    add_lora(model)
    refused("no plain linear map q_proj", add_lora, model)
