"""The modules that are not kernels, beyond their rows: options, errors, size-one inputs, ONNX, captured maps."""

import pytest
import torch
from cases import HEADS, E
from checks import OfTensors, difference, masks_of
from rows_modules import ROWS
from torch import nn
from torch.export import Dim

from mmattn import (
    CBAM,
    AttentionGate,
    BiDAF,
    DeformableAttention,
    DividedSpaceTimeLayer,
    EfficientChannelAttention,
    Encoder,
    HierarchicalAttention,
    MapPooling,
    Mask,
    PositionAttention,
    Recurrent,
    SpatialAttention,
    SqueezeExcitation,
    capture,
    flatten_maps,
)
from tests.conftest import assert_onnx_equals_eager, refused

BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_size_one_inputs(row):
    module, (x, y) = row.module(), row.inputs(1, (1, 1))
    assert difference(row.call(module, x, y, None, None, False), row.naive(module, x, y, None, None, False)) < 1e-8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bfloat16_is_close(row):
    module, (x, y) = row.module(), row.inputs()
    masks = masks_of(row, x, y, 0, 0)
    exact = row.call(module, x, y, *masks, False)
    half = row.call(module.bfloat16(), x.bfloat16(), y.bfloat16(), *masks, False)
    for a, b in zip(*((out,) if isinstance(out, torch.Tensor) else out for out in (exact, half)), strict=True):
        assert b.dtype == torch.bfloat16
        assert difference(a, b.double()) < 0.1 * float(a.detach().abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CBAM", "AttentionGate", "DeformableAttention", "DividedSpaceTimeLayer", "BiDAF"])
def test_onnx_equals_eager_at_other_sizes(name, tmp_path):
    row = BY_NAME[name]
    model = OfTensors(row, False).float().eval()

    def arguments(batch, lengths):
        x, y = row.inputs(batch, lengths)
        return x.float(), y.float(), *masks_of(row, x, y, 0, 0)

    given = arguments(2, row.lengths)
    shapes = tuple(
        None if tensor is None else dict.fromkeys(range(tensor.dim() - tensor.is_floating_point()), Dim.DYNAMIC)
        for tensor in given
    )
    assert_onnx_equals_eager(model, given, [arguments(3, (6, 9))], shapes, tmp_path)


# Captured maps.


def test_gates_are_captured_by_path():
    model = nn.ModuleDict({"cbam": CBAM(8, reduction=2), "skip": AttentionGate(8, 6), "squeeze": SqueezeExcitation(8)})
    x, g = torch.randn(2, 8, 5, 4), torch.randn(2, 6, 3, 2)
    with capture(model) as maps:
        out = model["squeeze"](model["skip"](model["cbam"](x), g))
        model["skip"](x, g)
    shapes = {path: [tuple(gate.shape) for gate in found] for path, found in maps.items()}
    assert shapes == {
        "cbam.channel.gate": [(2, 8, 1, 1)],
        "cbam.spatial.gate": [(2, 1, 5, 4)],
        "skip.gate": [(2, 1, 5, 4), (2, 1, 5, 4)],
        "squeeze.gate": [(2, 8, 1, 1)],
    }
    assert all(bool(((gate > 0) & (gate < 1)).all()) for found in maps.values() for gate in found)
    (gradient,) = torch.autograd.grad(out.sum(), maps["skip.gate"][0])
    assert gradient.abs().min() > 0
    torch.testing.assert_close(model["skip"](x, g), x * maps["skip.gate"][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_gate_has_gradients_on_demand():
    gate = SqueezeExcitation(8).requires_grad_(False)
    with capture(gate, differentiable=True) as maps:
        out = gate(torch.randn(2, 8, 5, 4))
    (gradient,) = torch.autograd.grad(out.sum(), maps["gate"][0])
    assert gradient.abs().min() > 0


def test_captured_maps_of_hierarchical_attention_and_bidaf():
    model = HierarchicalAttention(4, 6)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[0, 1], mask[1, 2, 1:] = False, False
    with capture(model) as maps:
        model(torch.randn(2, 3, 5, 4), mask)
    words, sentences = maps["pool_words.weights"][0].view(2, 3, 5), maps["pool_sentences.weights"][0]
    torch.testing.assert_close(words.sum(2), mask.any(2).float())
    torch.testing.assert_close(sentences.sum(1), torch.ones(2))
    assert sentences[0, 1] == 0
    assert words[1, 2].tolist() == [1, 0, 0, 0, 0]

    flow = BiDAF(4)
    with capture(flow) as maps:
        flow(torch.randn(2, 5, 4), torch.randn(2, 3, 4))
    assert {path: tuple(found[0].shape) for path, found in maps.items()} == {"a_to_b": (2, 5, 3), "b_to_a": (2, 5)}


# Channels and cells.


def test_eca_kernel_sizes():
    """The odd number nearest to (log2 C + 1) / 2: 4 for 128 channels, where the authors round up."""
    sizes = {channels: EfficientChannelAttention(channels).conv.kernel_size[0] for channels in (8, 64, 128, 256, 2048)}
    assert sizes == {8: 3, 64: 3, 128: 5, 256: 5, 2048: 7}
    assert EfficientChannelAttention(8, kernel_size=7).conv.kernel_size == (7,)


def test_invalid_arguments():
    refused("kernel_size must be odd", EfficientChannelAttention, 8, kernel_size=4)
    refused("kernel_size must be odd", SpatialAttention, 4)
    refused("not divisible by num_heads=4", PositionAttention, 10, num_heads=4)
    refused("not divisible by num_heads=4", DeformableAttention, 10, 4)
    refused("does not divide over two directions", Recurrent, 4, 5)
    refused("unknown recurrent kind 'rnn'; expected one of: lstm, gru", Recurrent, 4, 6, kind="rnn")
    refused("did you mean 'monotonic'", MapPooling, 8, 2, attention="monotonc")
    refused("bidirectional self-attention", DividedSpaceTimeLayer, 8, 2, temporal_attention="monotonic")
    refused("supports a key mask alone", Recurrent(4, 6), torch.randn(1, 3, 4), Mask(is_causal=True))


def test_position_attention_starts_as_identity_and_then_learns():
    module, x = PositionAttention(8), torch.randn(2, 8, 5, 4)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 0


def test_query_changes_map_pooling():
    torch.manual_seed(0)
    module, x = MapPooling(8, 2), torch.randn(1, 8, 5, 4)
    with capture(module) as maps:
        module(x), module(x, None, 3 * torch.randn(1, 1, 8))
    plain, steered = maps["pooling.attention"]
    assert (plain - steered).abs().max() > 0.01


# Deformable.


def test_initial_deformable_offsets():
    """Eight heads: k cells in each of eight directions, equal weights (Zhu et al. 2021, appendix A.4)."""
    module = DeformableAttention(32, 8, num_levels=2, num_points=3)
    offsets = module.offset_proj(torch.randn(32)).view(8, 2, 3, 2)
    ways = {tuple(way) for way in offsets[:, 1, 0].round().int().tolist()}
    assert ways == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)} - {(0, 0)}
    for k in range(3):
        torch.testing.assert_close(offsets[:, :, k], (k + 1) * offsets[:, :, 0])
    with capture(module) as maps:
        value, shapes = flatten_maps([torch.randn(2, 32, 4, 6), torch.randn(2, 32, 2, 3)])
        module(torch.randn(2, 5, 32), value, shapes, torch.rand(2, 5, 1, 2))
    assert maps["locations"][0].shape == (2, 8, 5, 2, 3, 2)
    torch.testing.assert_close(maps["weights"][0], torch.full((2, 8, 5, 2, 3), 1 / 6))


def test_invalid_deformable_inputs_raise():
    module, query = DeformableAttention(8, 2, num_levels=2), torch.randn(1, 3, 8)
    value, shapes = flatten_maps([torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3)])
    refused(r"expected 2 maps \(num_levels\), found 1 shapes", module, query, value, shapes[:1], torch.rand(1, 3, 1, 2))
    refused(r"have 28 cells, value has 30", module, query, value, [(4, 6), (2, 2)], torch.rand(1, 3, 1, 2))
    refused("reference must be", module, query, value, shapes, torch.rand(1, 3, 2))


# Frames.


def test_frame_mask_equals_patch_mask():
    layer, x, cls = DividedSpaceTimeLayer(8, 2), torch.randn(2, 4, 3, 8), torch.randn(2, 1, 8)
    frames = torch.tensor([[True, True, True, False], [True, False, False, False]])
    for a, b in zip(layer(x, cls, frames), layer(x, cls, frames[:, :, None].expand(2, 4, 3)), strict=True):
        assert torch.equal(a, b)


def test_patches_without_a_class_token():
    layer, x = DividedSpaceTimeLayer(8, 2), torch.randn(2, 4, 3, 8)
    alone, none = layer(x)
    assert none is None
    cls = torch.randn(2, 0, 8)
    torch.testing.assert_close(layer(x, cls)[0], alone)


def test_any_kernel_over_time_and_over_space():
    layer = DividedSpaceTimeLayer(
        8, 2, attention="additive", temporal_attention={"kind": "sliding_window", "window": 1}
    )
    x = torch.randn(1, 6, 3, 8)
    far = x.clone()
    far[:, 5] = torch.randn(3, 8)
    same = (layer(x)[0] - layer(far)[0]).abs().amax((0, 2, 3)) < 1e-6  # (T,)
    assert same.tolist() == [True, True, True, True, False, False]  # a window of one frame per side


# Documents.


def test_word_and_sentence_encoders_can_differ():
    model = HierarchicalAttention(E, word_encoder=Encoder(E, 1, HEADS))
    assert isinstance(model.sentence_encoder, Recurrent)
    assert model(torch.randn(2, 3, 4, E)).shape == (2, E)
