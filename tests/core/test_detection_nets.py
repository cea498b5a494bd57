"""Networks of detectors: what parity tests do not show, of residual networks with frozen norms, heads and positions."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from mmattn import cpu
from mmattn.backbones.deformable_detr import DeformableDetr
from mmattn.backbones.detection import above, cxcywh_to_xyxy, detect_by_sigmoid, detect_by_softmax, inverse_sigmoid
from mmattn.backbones.detr import Detr
from mmattn.backbones.resnet import ConvNorm, FrozenBatchNorm2d, ResNet, fold_norms
from mmattn.backbones.rt_detr import RepBlock, RTDetr
from mmattn.linears import prepare
from tests.conftest import assert_onnx_equals_eager, learn, refused, slow_but_first

NET = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False, "frozen": True}
LAYERS = {"num_encoder_layers": 1, "num_decoder_layers": 2, "num_heads": 2, "ffn_dim": 16}
COMMON = {"embed_dim": 32, "num_queries": 3, "backbone": NET}
DETECTORS = {
    "detr": lambda: Detr(2, **COMMON, **LAYERS),
    "detr, learned": lambda: Detr(2, **COMMON, **LAYERS, positions="learned"),
    "deformable": lambda: DeformableDetr(2, **COMMON, **LAYERS),
    "refined": lambda: DeformableDetr(2, **COMMON, **LAYERS, refine_boxes=True),
    "two stages": lambda: DeformableDetr(2, **COMMON, **LAYERS, refine_boxes=True, two_stage=True),
    "rt": lambda: RTDetr(2, **COMMON, encoder_dim=32, attended=(1,), num_layers=2, num_levels=4),
}
TOLERANCES = {torch.float64: {"rtol": 0, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}
STEPS = {"rt": 8}  # of the sizes of images, else 1


class Tensors(nn.Module):
    """A detector that returns only tensors, for export."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask):
        return tuple(tensor for tensor in self.model(pixel_values, pixel_mask) if tensor is not None)


def images(rows=2, height=48, width=64):
    """Images, of which the last is padded."""
    mask = torch.ones(rows, height, width, dtype=torch.bool)
    mask[-1, 30:] = mask[-1, :, 50:] = False
    return torch.randn(rows, 3, height, width).masked_fill(~mask[:, None], 0.0), mask


class TestDetectors:
    @pytest.mark.parametrize("name", DETECTORS)
    def test_every_parameter_gets_a_gradient(self, name):
        model = DETECTORS[name]()
        for layer in model.modules():  # boxes begin at their references, with weights of zero
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight)
        found = model(*images())
        sum(x.square().sum() for x in found if x is not None).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    @pytest.mark.parametrize("name", ["detr", "deformable", "rt"])
    def test_prepared_for_the_processor(self, name):
        """Positions are added to queries and keys, not values, so the three projections stay apart."""
        model, given = DETECTORS[name]().eval(), images()
        with torch.no_grad():
            expected = model(*given)
            found = prepare(model)(*given)
        torch.testing.assert_close(found[:2], expected[:2], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", DETECTORS)
    @pytest.mark.parametrize("mixed", [False, True])
    def test_half_precision(self, name, mixed):
        """References are counted in float32, where half precision does not know the cells of a large map."""
        model, (pixels, mask) = DETECTORS[name]().eval(), images()
        with torch.no_grad():
            expected = model(pixels, mask)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                found = model(pixels, mask) if mixed else model.bfloat16()(pixels.bfloat16(), mask)
        assert all(x.isfinite().all() for x in found if x is not None)
        assert "detr" in name or found.boxes_cxcywh.dtype == torch.float32
        if name in ("detr", "deformable", "refined"):  # proposals may be others
            torch.testing.assert_close(found.boxes_cxcywh.float(), expected.boxes_cxcywh, atol=0.03, rtol=0)

    @pytest.mark.parametrize("name", ["detr", "deformable", "two stages"])
    def test_a_sample_alone(self, name):
        """An image is detected as alone, but for what convolutions see at its border: here zeros in both cases."""
        model = DETECTORS[name]().double().eval()
        pixels, mask = images()
        pixels = pixels.double()
        with torch.no_grad():
            whole, alone = model(pixels, mask), model(pixels[:1])
        torch.testing.assert_close(whole.logits[:1], alone.logits)
        torch.testing.assert_close(whole.boxes_cxcywh[:1], alone.boxes_cxcywh)

    @pytest.mark.parametrize("name", slow_but_first(["detr", "detr, learned", "deformable", "two stages", "rt"]))
    def test_export_equals_eager(self, name):
        """Any number of images, of any size that has several cells in the coarsest map."""
        step = STEPS.get(name, 1)
        height, width = (Dim(side, min=40 // step, max=400 // step) for side in "yx")  # of at most 50 cells
        if step > 1:
            height, width = step * height, step * width
        sizes = ({0: Dim("batch"), 2: height, 3: width}, {0: Dim("batch"), 1: height, 2: width})
        model = Tensors(DETECTORS[name]().eval())
        program = export(model, images(), dynamic_shapes=sizes).module()
        with torch.no_grad():
            for given in (images(), images(5, 96, 56)):
                torch.testing.assert_close(program(*given), model(*given), atol=1e-5, rtol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["detr", "deformable", "two stages", "rt"])
    def test_onnx_equals_eager(self, name, tmp_path):
        sizes = ({0: Dim("batch")}, {0: Dim("batch")})
        others = [images(), images(5)]
        assert_onnx_equals_eager(Tensors(DETECTORS[name]()).requires_grad_(False), images(), others, sizes, tmp_path)

    def test_a_batch_is_learned(self):
        torch.manual_seed(0)
        model = Detr(2, **COMMON | {"num_queries": 2}, **LAYERS, dropout=0.0)
        given, labels = images(), torch.tensor([[0, 1], [1, 2]])
        boxes = torch.tensor(
            [[[0.3, 0.3, 0.2, 0.2], [0.7, 0.5, 0.4, 0.3]], [[0.5, 0.6, 0.5, 0.5], [0.1, 0.1, 0.2, 0.1]]]
        )

        def loss():
            found = model(*given)
            missed = nn.functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten())
            return missed + 5 * (found.boxes_cxcywh - boxes).abs().mean()

        losses = learn(torch.optim.AdamW(model.parameters(), 3e-3), 100, loss)
        assert losses[-1] < 0.2 * losses[0]


class TestDetections:
    def test_corners_and_sizes(self):
        boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
        torch.testing.assert_close(cxcywh_to_xyxy(boxes), torch.tensor([[[0.4, 0.3, 0.6, 0.7]]]))
        found = detect_by_softmax(torch.tensor([[[2.0, 0.0, 1.0]]]), boxes, torch.tensor([[100, 200]]))
        torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[[80.0, 30.0, 120.0, 70.0]]]))
        assert found.labels.tolist() == [[0]]

    def test_pairs_of_queries_and_classes(self):
        logits = torch.tensor([[[0.0, 3.0], [2.0, 1.0]]])
        boxes = torch.rand(1, 2, 4)
        found = detect_by_sigmoid(logits, boxes, top_k=3)
        assert found.labels.tolist() == [[1, 0, 1]]
        torch.testing.assert_close(found.scores, logits.new_tensor([[3.0, 2.0, 1.0]]).sigmoid())
        torch.testing.assert_close(found.boxes_xyxy, cxcywh_to_xyxy(boxes)[:, [0, 1, 1]])
        assert detect_by_sigmoid(logits, boxes).scores.shape == (1, 4)
        assert [len(image.scores) for image in above(found, 0.8)] == [2]

    def test_inverse_sigmoid(self):
        x = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
        torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x, atol=2e-5, rtol=0)
        assert inverse_sigmoid(x).isfinite().all()


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


class TestFolded:
    """Batch norms folded into convolutions."""

    @staticmethod
    def measure(model):
        for module in model.modules():
            if hasattr(module, "running_var"):
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(module, name).data.uniform_(0.5, 2.0)
        return model.eval()

    @pytest.fixture(autouse=True)
    def folds(self, monkeypatch):
        """Small maps are folded, too; returns the shapes of weights."""
        made, convolution = [], cpu.convolution

        def counted(x, weight, *others):
            made.append(tuple(weight.shape))
            return convolution(x, weight, *others)

        monkeypatch.setattr(cpu, "MANY", 0)
        monkeypatch.setattr(cpu, "convolution", counted)
        return made

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("frozen", [True, False])
    @pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
    @pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)])
    def test_equals_norm_of_convolution(self, folds, sizes, activation, frozen, dtype):
        kernel, stride, dilation = sizes
        kind = {"stride": stride, "dilation": dilation, "activation": activation, "frozen": frozen, "norm_eps": 0.1}
        model = self.measure(ConvNorm(4, 6, kernel, **kind).to(dtype))
        x = torch.randn(2, 4, 33, 30, dtype=dtype)
        expected = model(x).detach()  # with gradients
        fold_norms(model)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, **TOLERANCES[dtype])
            assert folds == [(6, 4, kernel, kernel)]
            model(x[:, :, :3, :3])
            assert len(folds) == 1 + (kernel == 1 and stride == 1), "fewer cells than weights of a channel"

    def test_branches_become_one(self, folds):
        model = self.measure(RepBlock(8).double())
        x = torch.randn(2, 8, 20, 20, dtype=torch.float64)
        expected = model(x).detach()
        fold_norms(model)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
        assert folds == [(8, 8, 3, 3)]

    def test_detector(self, folds):
        model = self.measure(DETECTORS["rt"]().double())
        pixels = images(height=256, width=256)[0].double()
        expected = model(pixels)
        assert not folds, "not with gradients"
        with torch.no_grad():
            found = model(pixels)
        assert folds
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted.detach(), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("change", ["training", "hook", "norm", "half", "bias"])
    def test_not_folded(self, folds, change):
        model = ConvNorm(4, 6, 1).eval()
        fold_norms(model)
        x = torch.randn(2, 4, 8, 8)
        if change == "training":
            model.train()
        elif change == "hook":
            model.conv.register_forward_hook(lambda *_: None)
        elif change == "norm":
            model.norm = nn.InstanceNorm2d(6)
        elif change == "half":
            model, x = model.bfloat16(), x.bfloat16()
        else:
            model.conv.bias = nn.Parameter(torch.ones(6))
        with torch.no_grad():
            assert model(x).shape == (2, 6, 8, 8)
        assert not folds
