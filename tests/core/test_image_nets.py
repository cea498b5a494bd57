"""The residual net with channel attention by name, and the compact convolutional transformer."""

import math

import pytest
import torch
from torch import nn

from mmattn import CBAM, EfficientChannelAttention, SqueezeExcitation, capture
from mmattn.backbones.cct import CompactTransformer, ConvTokenizer, SequencePooling
from mmattn.backbones.conv import GATES, GatedResidual, ResidualNet
from mmattn.explain.relevance import Step, relevance
from tests.conftest import refused


class TestResidualNet:
    @pytest.mark.parametrize("gate", GATES)
    def test_shapes_and_gradients(self, gate):
        net = ResidualNet((8, 16, 24), blocks=(1, 2), gate=gate, stem_stride=2)
        out = net(torch.randn(2, 3, 40, 24))
        assert out.shape == (2, 24, 5, 3)
        assert (net.stride, net.out_channels) == (8, 24)
        out.square().sum().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []

    def test_gates_by_name(self):
        wanted = {"none": nn.Identity, "se": SqueezeExcitation, "eca": EfficientChannelAttention, "cbam": CBAM}
        for gate, kind in wanted.items():
            assert type(GatedResidual(16, gate).gate) is kind

    def test_residual_block_matches_definition(self):
        """relu(x + gate(norm(conv(relu(norm(conv x)))))), with an explicit squeeze-and-excitation gate."""
        block = GatedResidual(16, "se").double().eval()
        x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
        conv, _, norm, _ = block.first
        branch = block.norm(block.second(norm(conv(x)).relu()))
        gate = block.gate
        squeezed = branch.mean((2, 3)) @ gate.fc1.weight.T + gate.fc1.bias
        weights = (squeezed.relu() @ gate.fc2.weight.T + gate.fc2.bias).sigmoid()
        torch.testing.assert_close(block(x), (x + branch * weights[:, :, None, None]).relu(), atol=1e-8, rtol=0)

    def test_capture_records_the_gates(self):
        net = ResidualNet((8, 16), gate="cbam").eval()
        with capture(net) as maps:
            net(torch.randn(2, 3, 16, 16))
        assert {tuple(found[0].shape) for found in maps.values()} == {(2, 16, 1, 1), (2, 1, 8, 8)}

    def test_invalid_arguments(self):
        refused("unknown channel attention 'sse'; expected one of: none, se, eca, cbam", ResidualNet, gate="sse")
        refused("blocks has 3 numbers for the 2 stages", ResidualNet, (8, 16, 24), blocks=(1, 1, 1))


class TestCompactTransformer:
    def test_tokens_match_definition(self):
        """Equation 1: convolution, ReLU, 3x3 pooling of stride 2."""
        tokenizer = ConvTokenizer(8, num_layers=1).double()
        x = torch.randn(1, 3, 7, 6, dtype=torch.float64)
        weight = tokenizer.layers[0].weight
        padded = nn.functional.pad(x, (1, 1, 1, 1))
        map_ = torch.zeros(8, 7, 6, dtype=torch.float64)
        for i in range(7):
            for j in range(6):
                map_[:, i, j] = (weight * padded[0, :, i : i + 3, j : j + 3]).sum((1, 2, 3)).relu()
        expected = torch.zeros(8, 4, 3, dtype=torch.float64)
        for i in range(4):
            for j in range(3):
                rows, cols = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
                expected[:, i, j] = map_[:, rows, cols].amax((1, 2))
        torch.testing.assert_close(tokenizer(x)[0], expected, atol=1e-8, rtol=0)
        assert ConvTokenizer(8, num_layers=2)(torch.randn(1, 3, 7, 6)).shape == (1, 8, 2, 2)

    def test_sequence_pooling_matches_definition(self):
        pool, x = SequencePooling(6).double(), torch.randn(2, 5, 6, dtype=torch.float64)
        for b in range(2):
            scores = [(pool.score.weight[0] @ x[b, n] + pool.score.bias).item() for n in range(5)]
            total = sum(math.exp(score) for score in scores)
            expected = sum(math.exp(score) / total * x[b, n] for n, score in enumerate(scores))
            torch.testing.assert_close(pool(x)[b], expected, atol=1e-8, rtol=0)
        with capture(pool) as maps:
            pool(x)
        assert maps["read"][0].shape == (2, 1, 1, 5)
        torch.testing.assert_close(maps["read"][0].sum(-1), torch.ones(2, 1, 1, dtype=torch.float64))

    @pytest.mark.parametrize("pooling", CompactTransformer.POOLINGS)
    @pytest.mark.parametrize("size", [(32, 24), (30, 23), (48, 40)])
    def test_shapes_sizes_and_gradients(self, pooling, size):
        """Positions of another size than the image's are resized; every parameter gets a gradient."""
        model = CompactTransformer(16, 1, 2, image_size=(32, 24), tokenizer_layers=2, pooling=pooling)
        encoded = model(torch.randn(2, 3, *size))
        assert encoded.states.shape == (2, -(-size[0] // 4) * -(-size[1] // 4), 16)
        assert encoded.pooled.shape == (2, 16)
        encoded.pooled.square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    def test_published_parameter_count(self):
        """CCT-7/3x1 with ten classes has 3.76 million parameters in the paper's table 1 (with its classifier)."""
        model = CompactTransformer(256, 7, 4, ffn_dim=512, image_size=(32, 32))
        assert 3.7e6 < sum(p.numel() for p in model.parameters()) + 2570 < 3.8e6

    @pytest.mark.parametrize("kind", [{"kind": "sliding_window", "window": 4}, {"kind": "linear"}])
    def test_kernels_by_name(self, kind):
        model = CompactTransformer(16, 1, 2, image_size=(16, 16), attention=kind)
        assert model(torch.randn(2, 3, 16, 16)).pooled.isfinite().all()
        refused("'monotonic' does not support", CompactTransformer, 16, 1, 2, attention={"kind": "monotonic"})

    def test_relevance_propagates_through_pooling(self):
        model = CompactTransformer(16, 2, 2, image_size=(16, 16)).eval()
        plan = [Step(f"encoder.layers.{n}.attention", "cells", "cells") for n in range(2)]
        plan.append(Step("pool.read", "read", "cells"))
        x = torch.randn(3, 3, 16, 16)
        found = relevance(model, lambda: model(x).pooled[:, 0], plan)
        assert found["read", "cells"].shape == (3, 1, 64)
        assert (found["read", "cells"] >= 0).all()

    def test_invalid_arguments(self):
        refused("unknown pooling 'max'; expected one of: sequence, mean", CompactTransformer, 16, 1, 2, pooling="max")
