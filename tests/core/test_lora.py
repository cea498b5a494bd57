"""Low-rank adaptation: its output, its gradients, what it replaces, and the merged model."""

import copy

import pytest
import torch
from cases import HEADS, E
from checks import difference, outputs_of
from rows import ROWS
from torch import nn

from mmattn import KERNELS, Encoder, FeedForward, LoRALinear, Mask, MultiHeadAttention, add_lora, merge_lora
from mmattn.backbones.segformer import MixFFN
from mmattn.linears import prepare
from mmattn.lora import TARGETS, LoRAConv2d
from mmattn.pretrained import load_pretrained
from tests.conftest import refused

OPTIONS = {"sliding_window": {"window": 3}, "low_rank": {"projected_length": 4, "max_len": 8}}


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


class One(nn.Module):
    """A model of one layer, as peft needs it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("adapt", "plain", "size"),
    [(LoRALinear, nn.Linear(6, 5), (4, 6)), (LoRAConv2d, nn.Conv2d(6, 5, 1), (2, 6, 3, 4))],
    ids=["linear", "conv"],
)
def test_equals_peft(adapt, plain, size):
    """Forward, gradients and merged weights of https://github.com/huggingface/peft, with the same A and B."""
    peft = pytest.importorskip("peft")
    plain, x = plain.double(), torch.randn(size, dtype=torch.float64)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["layer"], init_lora_weights=False)
    theirs = peft.inject_adapter_in_model(config, One(copy.deepcopy(plain))).double().layer
    ours = adapt(copy.deepcopy(plain), rank=3, alpha=7)
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    copy_updates([ours], [theirs])
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.lora_a.grad, a.grad.flatten(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.lora_b.grad, b.grad.flatten(1), rtol=1e-12, atol=1e-12)
    theirs.merge()
    torch.testing.assert_close(ours.merged().weight, theirs.base_layer.weight, rtol=1e-12, atol=1e-12)


def copy_updates(ours, theirs):
    """Gives our adapted maps the A and B of peft's, in the same order."""
    with torch.no_grad():
        for mine, given in zip(ours, theirs, strict=True):
            mine.lora_a.copy_(given.lora_A["default"].weight.flatten(1))
            mine.lora_b.copy_(given.lora_B["default"].weight.flatten(1))


BERT = {  # the names of the maps in transformers
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "out_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


@pytest.mark.parity
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], list(BERT)], ids=len)
def test_equals_peft_on_bert(targets, tmp_path):
    """A BERT of transformers with peft's updates, and ours with its converted weights: outputs and merged weights."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes, **dropouts)).double()
    base.save_pretrained(tmp_path / "base")
    ours = load_pretrained(tmp_path / "base", dtype=torch.float64)
    paths = [path.rpartition(".") for path in add_lora(ours, 3, 7.0, targets=targets)]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, lora_dropout=0.0, init_lora_weights=False, target_modules=[BERT[name] for name in targets]
    )
    theirs = peft.get_peft_model(base, config).double().eval()
    adapted = [
        theirs.base_model.model.get_submodule(f"{layer.removesuffix('.attention').removesuffix('.ffn')}.{BERT[name]}")
        for layer, _, name in ((layer.replace("layers", "layer"), dot, name) for layer, dot, name in paths)
    ]
    copy_updates([ours.get_submodule("".join(path)) for path in paths], adapted)
    ids, mask = torch.randint(1, 30, (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [1]])
    expected = theirs(input_ids=ids, attention_mask=mask.long())
    found = ours(ids, mask)
    torch.testing.assert_close(found.states[mask], expected.last_hidden_state[mask], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.pooled, expected.pooler_output, rtol=1e-10, atol=1e-10)
    plain = load_pretrained(tmp_path / "base", dtype=torch.float64)
    assert (plain(ids, mask).states - found.states).abs().max() > 0.01
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_pretrained(tmp_path / "merged", dtype=torch.float64)
    ours, merged = (dict(model.state_dict()) for model in (merge_lora(ours), merged))
    torch.testing.assert_close(ours, merged, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")])
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


def assert_adapts(module, call):
    """Asserts that all maps can be adapted: the identity at first, gradients in all updates, and equal when merged."""
    plain = outputs_of(call(module))
    known = [name for name in TARGETS if any(path.rpartition(".")[2] == name for path in maps_of(module))]
    paths = add_lora(module.requires_grad_(False), 2, targets=known)
    assert sorted(paths) == sorted(maps_of(module)), "each matrix of a layer has a name"
    assert difference(call(module), plain) < 1e-12  # a product of three maps is rounded differently
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert trained.keys() == {f"{path}.lora_{letter}" for path in paths for letter in "ab"}
    for name, parameter in trained.items():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter)
    outputs = outputs_of(call(module))
    assert difference(outputs, plain) > 1e-3
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    assert [name for name, parameter in trained.items() if not parameter.grad.abs().max() > 0] == []
    merged = merge_lora(module)
    assert not any(isinstance(m, (LoRALinear, LoRAConv2d)) for m in merged.modules())
    assert difference(call(merged), outputs) < 1e-10


def maps_of(model):
    """The paths of the matrices in attention and feed-forward layers: all maps of vectors to more than one number."""
    return [
        path
        for path, m in model.named_modules()
        if (isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)))
        and len(m.weight) > 1
        and not path.endswith("pooler.dense")  # behind the layers of BERT
    ]


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in ROWS
        if not row.name.startswith("kernel")
        and row.name not in ("SpatialAttention", "EfficientChannelAttention", "BiDAF")  # vectors alone
    ],
    ids=lambda row: row.name,
)
def test_every_attention(row):
    module, inputs = row.module(), row.inputs()
    assert_adapts(module, lambda module: row.call(module, *inputs, None, None, row.causal[0]))


@pytest.mark.parametrize("kind", [kind for kind in KERNELS if kind != "hard"])  # whose weights have no gradient
def test_every_kernel(kind):
    crosses = "self" not in KERNELS[kind].supports
    module = MultiHeadAttention(E, HEADS, kind=kind, options=OPTIONS.get(kind), needs={"cross" if crosses else "self"})
    module, x = module.double().train(kind == "monotonic"), torch.randn(2, 7, E, dtype=torch.float64)
    memory = torch.randn(2, 6, E, dtype=torch.float64) if crosses else None

    def call(module):
        torch.manual_seed(1)  # of the noise in training
        return module(x, memory)

    assert_adapts(module, call)


@pytest.mark.parametrize("kind", ["plain", "gated", "mix"])
def test_every_feed_forward(kind):
    module = MixFFN(E, 12) if kind == "mix" else FeedForward(E, 12, gated=kind == "gated")
    x = torch.randn(2, 6, E, dtype=torch.float64)
    assert_adapts(module.double(), lambda module: module(x, (2, 3)) if kind == "mix" else module(x))


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


def test_packed_model_keeps_its_updates():
    _, model = adapted()
    model, x = model.float(), torch.randn(2, 5, 16)
    with torch.inference_mode():
        torch.testing.assert_close(prepare(copy.deepcopy(model))(x), model(x), rtol=1e-4, atol=1e-4)


def test_errors():
    model = Encoder(16, 1, 4, gated=True)
    known = "targets: expected some of q_proj, k_proj, v_proj, out_proj, fc1, gate, fc2; found"
    refused(rf"{known} \['proj', 'query'\]", add_lora, model, targets=["q_proj", "query", "proj"])
    refused(rf"{known} \[\]", add_lora, model, targets=[])
    refused(f"{known} 'q_proj'", add_lora, model, targets="q_proj")
    refused("rank: expected a whole number of at least 1, found 0", add_lora, model, rank=0)
    refused("rank: expected a whole number of at least 1, found 'x'", add_lora, model, rank="x")
    shared = MultiHeadAttention(16, 4, kind="lsh")
    refused(r"some of q_proj, v_proj, out_proj; found \['k_proj'\]", add_lora, shared, targets=["q_proj", "k_proj"])
    refused("the model has none", add_lora, nn.Sequential(nn.Linear(4, 4)))
    refused("expected a convolution of one cell", LoRAConv2d, nn.Conv2d(4, 4, 3), 2)
    add_lora(model)
    refused(r"some of k_proj, out_proj, fc1, gate, fc2; found \['q_proj', 'v_proj'\]", add_lora, model)


def test_weights_choose_the_maps():
    model = Encoder(16, 2, 4)
    names = [name for name, _ in model.named_parameters() if name.startswith("layers.1.")]
    assert add_lora(model, 2, weights=names) == ["layers.1.attention.q_proj", "layers.1.attention.v_proj"]
    attention = MultiHeadAttention(16, 4)
    assert add_lora(attention, targets=["q_proj"], weights=["q_proj.weight"]) == ["q_proj"]
