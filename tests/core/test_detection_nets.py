"""Networks of detectors: what parity tests do not show, of residual networks with frozen norms, heads and positions."""

import pytest
import torch
from torch import nn

from mmattn.backbones.resnet import FrozenBatchNorm2d, ResNet
from tests.conftest import refused


class TestResNet:
    def test_frozen_norm_equals_evaluation(self):
        norm, frozen = nn.BatchNorm2d(4, eps=0.1).eval(), FrozenBatchNorm2d(4, eps=0.1)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.5, 2)
        state = {name: tensor for name, tensor in norm.state_dict().items() if "tracked" not in name}
        frozen.load_state_dict(state)
        x = torch.randn(2, 4, 3, 5)
        torch.testing.assert_close(frozen.train()(x), norm(x))
        assert not list(frozen.parameters())

    @pytest.mark.parametrize("variant", ["b", "d"])
    @pytest.mark.parametrize("bottleneck", [False, True])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_shapes_and_gradients(self, variant, bottleneck, frozen):
        kind = {"variant": variant, "bottleneck": bottleneck, "frozen": frozen}
        net = ResNet((8, 8, 16), depths=(1, 2, 1), stem_dim=8, out_stages=(2, 0), **kind)
        maps = net(torch.randn(2, 3, 70, 40))
        assert [tuple(x.shape) for x in maps] == [(2, 8, 18, 10), (2, 16, 5, 3)]
        assert net.out_channels == (8, 16)
        sum(x.square().sum() for x in maps).backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []

    def test_dilation_keeps_the_stride(self):
        image = torch.randn(1, 3, 64, 64)
        sizes = {
            stride: ResNet((4, 4, 4, 4), depths=(1, 1, 1, 1), output_stride=stride)(image)[-1].shape[2]
            for stride in (None, 32, 16, 8)
        }
        assert sizes == {None: 2, 32: 2, 16: 4, 8: 8}

    def test_invalid_arguments(self):
        refused("unknown variant of ResNet 'c'; expected one of: b, d", ResNet, variant="c")
        refused("depths: expected one for each of the 4 stages, found \\[1, 1\\]", ResNet, depths=(1, 1))
        refused("some of the stages 0 to 3, found \\[4\\]", ResNet, out_stages=(4,))
