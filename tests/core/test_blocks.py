import math

import pytest
import torch
from cases import close
from torch import nn
from torch.export import Dim, export

from mmattn import (
    AttentionPooling,
    CoAttention,
    Decoder,
    DecoderLayer,
    Encoder,
    FeedForward,
    Mask,
    MultimodalFusionBlock,
    capture,
)
from mmattn.backbones.conformer import Conformer
from mmattn.feedforward import ACTIVATIONS
from mmattn.positions import T5Bias
from tests.conftest import learn, refused, slow_but_first

STACKS = {
    "encoder": (lambda: Encoder(8, 2, 2, dropout=0.1), lambda m, x, y: m(x)),
    "decoder": (lambda: Decoder(8, 2, 2, dropout=0.1), lambda m, x, y: m(x, y, Mask(is_causal=True))),
    "co-attention": (lambda: CoAttention(8, 2, 2, dropout=0.1), lambda m, x, y: torch.cat(m(x, y), dim=1)),
    "conformer": (lambda: Conformer(8, 2, 2, kernel_size=3, dropout=0.1), lambda m, x, y: m(x)),
}
LOCAL, LOW_RANK = {"kind": "local", "window": 2}, {"kind": "low_rank", "projected_length": 3, "max_len": 9}


@pytest.mark.parametrize("name", STACKS)
def test_gradient_checkpointing_equals_plain(name):
    make, call = STACKS[name]
    model, x, y = make().train(), torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    found = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        out = call(model, x, y)
        out.square().sum().backward()
        found.append([out, *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", STACKS)
def test_capture_with_gradient_checkpointing(name):
    make, call = STACKS[name]
    model, x, y = make().train(), torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    model.gradient_checkpointing = True
    with capture(model) as maps:
        call(model, x, y).square().sum().backward()
    assert {len(found) for found in maps.values()} == {1}
    assert model.gradient_checkpointing


def test_checkpointing_saves_memory():
    """Only each layer's input is kept, not its intermediate tensors."""
    model, x = Encoder(8, 3, 2), torch.randn(2, 16, 8)

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(x)
        return sum(sizes)

    plain = kept()
    model.gradient_checkpointing = True
    assert kept() < plain / 3


def test_shared_bias_is_saved_once():
    model = Encoder(8, 3, 2, position_bias=T5Bias(2))
    assert [name for name in model.state_dict() if "position_bias" in name] == ["position_bias.weight"]


def test_post_norm_has_no_last_norm():
    assert isinstance(Encoder(8, 1, 2, norm_first=False).norm, nn.Identity)
    out = Encoder(8, 1, 2, norm_first=False)(torch.randn(2, 3, 8))
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_activations_match_their_formulas():
    formulas = {
        "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
        "relu": lambda x: (x + x.abs()) / 2,
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    }
    assert formulas.keys() == ACTIVATIONS.keys()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    for name, formula in formulas.items():
        ffn = FeedForward(8, 12, activation=name).double()
        close(ffn(x), ffn.fc2(formula(ffn.fc1(x))))
        gated = FeedForward(8, 12, activation=name, gated=True, bias=False).double()
        close(gated(x), (formula(x @ gated.fc1.weight.T) * (x @ gated.gate.weight.T)) @ gated.fc2.weight.T)


def test_norm_eps_and_biases_reach_every_layer():
    encoder = Encoder(8, 2, 2, norm_eps=1e-3, bias=("out",), activation="relu")
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}
    biased = {name.split(".")[-2] for name, _ in encoder.named_parameters() if name.endswith("_proj.bias")}
    assert biased == {"out_proj"}
    assert {layer.ffn.activation for layer in encoder.layers} == {"relu"}


def test_stack_options_reach_layers():
    """RMS norms, no biases, a separate head size: as in T5."""
    options = {"norm": "rms", "norm_eps": 1e-3, "bias": False, "gated": True, "head_dim": 3, "activation": "relu"}
    for stack, given in ((Encoder(8, 2, 2, **options), ()), (Decoder(8, 2, 2, **options), (torch.randn(2, 4, 8),))):
        assert not any(name.endswith("bias") for name, _ in stack.named_parameters())
        assert {m.eps for m in stack.modules() if isinstance(m, nn.RMSNorm)} == {1e-3}
        assert not any(isinstance(m, nn.LayerNorm) for m in stack.modules())
        assert {m.head_dim for m in stack.modules() if hasattr(m, "head_dim")} == {3}
        assert all(layer.ffn.gate is not None and layer.ffn.activation == "relu" for layer in stack.layers)
        x = torch.randn(2, 5, 8)
        out = stack(x, *given)
        torch.testing.assert_close(out.pow(2).mean(-1), torch.ones(2, 5), atol=5e-3, rtol=0)
    refused("unknown norm 'batch'; expected one of: layer, rms", Encoder, 8, 1, 2, norm="batch")


@pytest.mark.parametrize("norm_first", [True, False])
def test_hidden_states_equal_layer_outputs(norm_first):
    encoder = Encoder(8, 3, 2, norm_first=norm_first, position_bias=T5Bias(2))
    x, mask = torch.randn(2, 5, 8), Mask(torch.rand(2, 5) > 0.3)
    states = encoder.hidden_states(x, mask)
    assert len(states) == 4
    assert states[0] is x
    torch.testing.assert_close(encoder.norm(states[-1]), encoder(x, mask))
    seen = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, given, out: seen.append(out))
    encoder(x, mask)
    torch.testing.assert_close(states[1:], seen)


def test_positions_are_added_to_queries_and_keys_of_each_layer():
    """By definition: values have none, and cross-attention adds its own to each side."""
    x, memory, places, key_places = (torch.randn(2, n, 8, dtype=torch.float64) for n in (4, 5, 4, 5))
    encoder = Encoder(8, 2, 2, ffn_dim=8, norm_first=False).double()
    expected = x
    for layer in encoder.layers:
        attended = layer.attention(expected + places, expected + places, expected)
        expected = layer.attention_residual.norm(expected + attended)
        expected = layer.ffn_residual.norm(expected + layer.ffn(expected))
    close(encoder(x, query_pos=places), expected)
    layer = DecoderLayer(8, 2, ffn_dim=8, norm_first=False, needs={"self"}).double()
    expected = layer.self_residual.norm(x + layer.self_attention(x + places, x + places, x))
    attended = layer.cross_attention(expected + places, memory + key_places, memory)
    expected = layer.cross_residual.norm(expected + attended)
    expected = layer.ffn_residual.norm(expected + layer.ffn(expected))
    close(layer(x, memory, query_pos=places, key_pos=key_places), expected)


def test_unsupported_kernels_raise():
    refused("unknown activation 'glue'; expected one of: gelu, gelu_tanh", Encoder, 8, 1, 2, activation="glue")
    refused("'monotonic' does not support bidirectional", Encoder, 8, 1, 2, attention={"kind": "monotonic"})
    refused("'monotonic' does not support causal attention", Decoder, 8, 1, 2, attention={"kind": "monotonic"})
    refused("does not support a position bias", Encoder, 8, 1, 2, attention={"kind": "linear"}, position_bias=T5Bias(2))
    refused("'dense' has no option 'window'", Encoder, 8, 1, 2, attention={"kind": "dense", "window": 3})
    refused("does not support bidirectional", MultimodalFusionBlock, 8, 2, attention={"kind": "monotonic"})
    refused("does not support cross-attention", Decoder, 8, 1, 2, cross_attention={"kind": "sliding_window"})
    refused("does not support cross-attention", CoAttention, 8, 1, 2, cross_attention="sliding_window")
    refused("does not support cross-attention", AttentionPooling, 8, 2, attention="sliding_window")


def test_fusion_block_state_dict_is_stable():
    """Names and shapes of its parameters; its output is checked in its row."""
    block = MultimodalFusionBlock(8, 2, kv_dim=6, ffn_dim=12)
    sizes = {"self_attention": (8, 8, 8, 8), "cross_attention": (8, 6, 6, 8)}
    maps = {f"{name}.{p}_proj": (8, n) for name, given in sizes.items() for p, n in zip("qkvo", given, strict=True)}
    maps = {name.replace("o_proj", "out_proj"): shape for name, shape in maps.items()}
    maps |= {"ffn.fc1": (12, 8), "ffn.fc2": (8, 12)}
    maps |= {f"{name}_residual.norm": (8,) for name in ("self", "cross", "ffn")}
    expected = {f"{name}.weight": shape for name, shape in maps.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in maps.items()}
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == expected


def test_decoder_learns_to_copy_monotonically():
    """Overfits one batch with a kernel that is soft in training and hard in evaluation: finally both agree."""
    torch.manual_seed(0)
    source = torch.randint(0, 6, (8, 5))
    table, head = nn.Embedding(6, 16), nn.Linear(16, 6)
    attention = {"kind": "monotonic", "noise": 1.0}
    decoder = Decoder(16, 1, 2, ffn_dim=32, cross_attention=attention)
    places = nn.Parameter(torch.randn(5, 16))
    parameters = [*table.parameters(), *head.parameters(), *decoder.parameters(), places]

    def logits():
        return head(decoder(places.expand(8, -1, -1), table(source) + places, Mask(is_causal=True)))

    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    learn(optimizer, 150, lambda: nn.functional.cross_entropy(logits().flatten(0, 1), source.flatten()))
    decoder.eval()
    assert (logits().argmax(-1) == source).float().mean() > 0.9


@pytest.mark.parametrize(
    "kinds",
    [
        {"attention": LOCAL, "cross_attention": LOCAL},
        {"attention": LOCAL | {"predict": False}, "cross_attention": LOCAL | {"predict": False}},
        {"cross_attention": LOW_RANK},
    ],
    ids=["local", "local, own position", "low_rank"],
)
def test_decoder_steps_equal_single_pass(kinds):
    decoder = Decoder(8, 2, 2, **kinds).double().eval()
    x, memory = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 7, 8, dtype=torch.float64)
    mask, cache = Mask(is_causal=True), decoder.make_cache(2)
    steps = [decoder(x[:, i : i + 1], memory, mask, None, cache) for i in range(6)]
    close(torch.cat(steps, 1), decoder(x, memory, mask))


class Step(nn.Module):
    """One decoding step as a module of tensors: the cache is passed and returned as a flat list."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x, memory_mask, tensors):
        caches = unflatten(self.decoder, tensors)
        out = self.decoder(x, x[:, :0], Mask(is_causal=True), Mask(memory_mask), caches)
        return out, flatten(caches)


def flatten(caches):
    return [tensor for cache in caches for tensor in cache.tensors().values()]


def unflatten(decoder, tensors):
    tensors = iter(tensors)
    caches = decoder.make_cache(1)
    for cache in caches:
        own = cache.self_attention
        cache.self_attention = type(own)(**{name: next(tensors) for name in own.tensors()})
        cache.cross_attention.keys, cache.cross_attention.values = next(tensors), next(tensors)
    return caches


@pytest.mark.parametrize("kind", slow_but_first(["dense", "sliding_window", "linear"]))
def test_decoding_step_exports_with_a_flat_cache(kind):
    decoder = Decoder(8, 2, 2, attention={"kind": kind}, rotary=True).eval()

    def start(batch, length, memory_length):
        caches = decoder.make_cache(batch)
        memory_mask = torch.rand(batch, memory_length) > 0.2
        memory = torch.randn(batch, memory_length, 8)
        decoder(torch.randn(batch, length, 8), memory, Mask(is_causal=True), Mask(memory_mask), caches)
        return caches, memory_mask

    caches, memory_mask = start(2, 4, 5)
    shapes = [{i: Dim.AUTO for i in range(tensor.dim()) if i in (0, 2)} for tensor in flatten(caches)]
    example = (torch.randn(2, 1, 8), memory_mask, flatten(caches))
    program = export(
        Step(decoder), example, dynamic_shapes=({0: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}, shapes)
    ).module()
    caches, memory_mask = start(3, 7, 9)
    tensors = flatten(caches)
    for _ in range(3):
        x = torch.randn(3, 1, 8)
        expected = decoder(x, x[:, :0], Mask(is_causal=True), Mask(memory_mask), caches)
        found, tensors = program(x, memory_mask, tensors)
        torch.testing.assert_close(found, expected)
        for a, b in zip(tensors, flatten(caches), strict=True):
            torch.testing.assert_close(a, b)
