"""The segmentation model: the tests of every task's model, and its own."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.backbones.segformer import SegFormer
from mmattn.backbones.unet import GatedDecoder, UNetHead, build_pyramid
from mmattn.explain import capture
from mmattn.tasks.segmentation.losses import segmentation_loss
from mmattn.tasks.segmentation.model import SegmentationHead, SegmentationModel, best_classes
from tests.conftest import learn, refused
from tests.tasks.base import TaskModelTests

SMALL: dict[str, Any] = {"num_classes": 5, "channels": (6, 8, 12)}
SEGFORMER: dict[str, Any] = {"network": "segformer", "channels": (8, 16), "num_heads": (1, 2)}
SEGFORMER |= {"reductions": (2, 1), "decoder_channels": (12,)}


class TestSegmentationModel(TaskModelTests):
    task = "segmentation"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "plain skips": {"gates": False},
        "one score": {"deep_supervision": False, "dropout": 0.1},
        "coarse stem": {"stem_stride": 2, "num_blocks": 2, "decoder_channels": (4, 6)},
        "segformer": SEGFORMER,
        "segformer, linear": {**SEGFORMER, "attention": {"kind": "linear"}},
    }
    wrong: ClassVar = [
        ({"network": "fcn"}, "unknown network 'fcn'"),
        ({"backbone": "resnet"}, "unknown backbone 'resnet'"),
        ({"attention": {"kind": "linear"}}, "attention: of segformer alone"),
        ({"network": "segformer"}, "num_heads: expected one for each of the 3 stages"),
        ({"decoder_channels": (4,)}, "channels for 2 decoder maps, found 1"),
        ({"stem_stride": 3}, "stem_stride: expected 1, 2 or 4"),
    ]
    batch, rows, columns = Dim("batch", max=64), Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
    dynamic: ClassVar[dict[str, dict[int, Any]]] = {"pixel_values": {0: batch, 2: 8 * rows, 3: 8 * columns}}

    def build(self, **keywords: Any) -> nn.Module:
        return SegmentationModel(**{**SMALL, **keywords})

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        return {"pixel_values": torch.randn(batch, 3, 8 * length, 8 * (length + 2), generator=generator)}

    def heads(self) -> Any:
        head = SegmentationHead((16, 32, 64), num_classes=4)
        maps = [torch.randn(2, c, s, s + 1) for c, s in ((16, 12), (32, 6), (64, 3))]
        refused("expected 3 maps, found 2", head, maps[:2])
        return [(head, (maps,), [(2, 4, 12, 13), (2, 4, 6, 7)])]

    def test_scores_have_the_size_of_the_image(self, model: nn.Module) -> None:
        for size in ((37, 50), (64, 41)):
            output = model.eval()(torch.randn(2, 3, *size))
            assert output.logits.shape == (2, 5, *size)
            assert output.auxiliary == []

    def test_overfits_one_batch(self, model: nn.Module) -> None:
        pixels = self.inputs(2, 3)["pixel_values"]
        labels = torch.randint(5, (2, 3, 5), generator=torch.Generator().manual_seed(1))
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)

        def loss() -> Tensor:
            output = model(pixels)
            parts = [segmentation_loss({"cross_entropy": 1.0}, x, labels) for x in (output.logits, *output.auxiliary)]
            return torch.stack([part["cross_entropy"] for part in parts]).mean()

        assert learn(torch.optim.Adam(model.parameters(), lr=0.02), 60, loss)[-1] < 0.6


def test_deep_supervision_scores_each_map_of_the_decoder() -> None:
    found = SegmentationModel(5, channels=(6, 8, 12, 16))(torch.randn(2, 3, 40, 24)).auxiliary
    assert [tuple(x.shape[1:]) for x in found] == [(5, 20, 12), (5, 10, 6)]


@pytest.mark.parametrize("keywords", [{}, SEGFORMER], ids=["unet", "segformer"])
def test_attention_maps(keywords: dict[str, Any]) -> None:
    model = SegmentationModel(**{**SMALL, **keywords}).eval()
    pixels = torch.randn(2, 3, 32, 48)
    plain = model(pixels).logits
    with capture(model) as maps:
        logits = model(pixels).logits
        for calls in maps.values():
            calls[0].retain_grad()
        logits[:, 1].sum().backward()
    torch.testing.assert_close(plain, logits, atol=1e-5, rtol=0)
    seen = model.attention_maps(maps, (32, 48))
    spoke = model.attention_maps(maps, (32, 48), gradients=True)
    shapes = [(2, 32, 48), (2, 16, 24)] if not keywords else [(2, 4, 6), (2, 4, 6)]
    assert [tuple(x.shape) for x in seen] == [tuple(x.shape) for x in spoke] == shapes
    assert all((x >= 0).all() for x in (*seen, *spoke))
    if keywords:  # each query's weights sum to one
        torch.testing.assert_close(seen[0].sum((1, 2)), torch.ones(2))
    else:
        refused("neither gates nor self-attention", SegmentationModel(**SMALL, gates=False).attention_maps, {}, (8, 8))


def test_closed_gate_blocks_the_skip_connection() -> None:
    """With all gates closed the finest map has no effect; with open gates it has."""
    decoder = GatedDecoder((6, 8)).eval()
    fine, coarse = torch.randn(1, 6, 12, 8), torch.randn(1, 8, 6, 4)
    gate: Any = decoder.gates[0]
    with torch.no_grad():
        gate.psi.weight.zero_()
        gate.psi.bias.fill_(-200.0)
        shut = decoder([fine, coarse])[0]
        torch.testing.assert_close(shut, decoder([torch.randn_like(fine), coarse])[0])
        gate.psi.bias.fill_(0.0)
        assert not torch.allclose(shut, decoder([fine, coarse])[0])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timm_backbones(name: str) -> None:
    pytest.importorskip("timm")
    options = {"image_size": (64, 64)} if "swin" in name else {}
    pyramid = build_pyramid(f"timm/{name}", **options).eval()
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(pyramid.channels)
    assert UNetHead(pyramid.channels, 3).eval()(maps)[0].shape[:2] == (1, 3)


def test_sizes_and_units() -> None:
    assert SegmentationModel(3, channels=(4, 4, 4), stem_stride=2).unit == 8
    assert SegmentationModel(**{**SMALL, **SEGFORMER}).unit == 8
    pytest.importorskip("timm")
    model = SegmentationModel(3, backbone="timm/resnet18").eval()
    assert model(torch.randn(1, 3, 70, 50)).logits.shape == (1, 3, 70, 50)
    assert model.unit == 32


def test_stochastic_depth_drops_whole_branches() -> None:
    torch.manual_seed(0)
    net = SegFormer(None, embed_dims=(8,), num_layers=(2,), num_heads=(1,), reductions=(1,), drop_path=0.999)
    layer: Any = net.stages[0].layers[1]  # type: ignore[union-attr]
    x = torch.randn(4, 6, 8)
    assert torch.equal(layer.train()(x, (2, 3)), x)
    assert not torch.allclose(layer.eval()(x, (2, 3)), x)


def test_best_classes() -> None:
    logits = torch.randn(2, 5, 7, 9)
    enlarged = nn.functional.interpolate(logits, size=(20, 13), mode="bilinear")
    assert torch.equal(best_classes(logits, (20, 13)), enlarged.argmax(1).to(torch.uint8))
    assert torch.equal(best_classes(logits, (7, 9)), logits.argmax(1).to(torch.uint8))
