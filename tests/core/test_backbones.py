import logging
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, export

from mmattn import capture
from mmattn.backbones import build_stem
from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.conv import ConvStem
from mmattn.backbones.pooling import mean_pooling, sentence_embedding
from mmattn.backbones.recurrent import RecurrentEncoder
from mmattn.backbones.text import TextEncoder
from mmattn.backbones.timm import TimmTrunk
from mmattn.backbones.vit import GridEncoder, PatchEmbed, VisionTransformer
from tests.conftest import refused, slow_but_first


def text(length=7):
    ids = torch.randint(1, 20, (3, length))
    key_mask = torch.ones(3, length, dtype=torch.bool)
    key_mask[1, 4:] = False
    key_mask[2] = False  # an empty text
    return ids, key_mask


class TestStems:
    @pytest.mark.parametrize(("name", "options"), [("conv", {}), ("vit", {}), ("timm/test_resnet", {"max_stride": 8})])
    @pytest.mark.parametrize("size", [(64, 64), (40, 72)])
    def test_feature_maps(self, name, options, size):
        if name.startswith("timm"):
            pytest.importorskip("timm")
        stem = build_stem(name, 16, **options)
        out = stem(torch.randn(2, 3, *size))
        assert out.shape == (2, 16, size[0] // 8, size[1] // 8)
        assert stem.stride == 8
        out.square().sum().backward()
        assert [n for n, p in stem.named_parameters() if p.grad is None] == []

    @pytest.mark.parametrize("norm", ["batch", "group", "none"])
    def test_norms(self, norm):
        kinds = {type(module) for module in ConvStem(16, channels=(12, 16), norm=norm).modules()}
        assert (nn.BatchNorm2d in kinds, nn.GroupNorm in kinds) == (norm == "batch", norm == "group")

    def test_patch_embedding_is_linear(self):
        stem = PatchEmbed(16, patch_size=4)
        image = torch.randn(1, 3, 8, 12)
        patch = image[0, :, 4:8, 8:12].flatten()
        expected = stem.proj.weight.flatten(1) @ patch + stem.proj.bias
        torch.testing.assert_close(stem(image)[0, :, 1, 2], expected)

    def test_invalid_arguments(self):
        refused(r"unknown backbone 'con', did you mean 'conv'\?", build_stem, "con", 8)
        refused("expected one of: conv, vit, timm/NAME", build_stem, "zzz", 8)
        refused("unknown norm 'layer'", ConvStem, 8, norm="layer")


class TestTimm:
    def test_fixed_size_and_channels_last(self):
        pytest.importorskip("timm")
        vit = build_stem("timm/test_vit", 8, image_size=(64, 96))
        assert vit(torch.randn(1, 3, 64, 96)).shape[-1] * 2 == vit(torch.randn(1, 3, 64, 96)).shape[-2] * 3
        swin = build_stem("timm/swin_tiny_patch4_window7_224", 8, max_stride=4, image_size=(56, 56))
        assert swin.channels_last
        assert swin(torch.randn(1, 3, 56, 56)).shape == (1, 8, 14, 14)

    def test_loads_weights_from_local_files(self, tmp_path, monkeypatch):
        timm = pytest.importorskip("timm")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        source = timm.create_model("test_resnet", pretrained=False)
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        torch.save(source.state_dict(), tmp_path / "model.pth")
        stems = [build_stem("timm/test_resnet", 8) for _ in range(2)]
        stems[0].load_weights(tmp_path / "model.safetensors")
        stems[1].load_weights(tmp_path / "model.pth")
        x = torch.randn(1, 3, 64, 64)
        expected = source.eval().forward_intermediates(x, intermediates_only=True)
        for stem in stems:
            found = stem.eval().body(x)[-1]
            assert any(found.shape == one.shape and torch.equal(found, one) for one in expected)

    def test_unused_weights_are_no_warning(self, tmp_path, caplog):
        timm = pytest.importorskip("timm")
        save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "model.safetensors")
        build_stem("timm/test_efficientnet", 8).load_weights(tmp_path / "model.safetensors")
        assert not caplog.records, "a model of features lacks the classifier"
        logging.getLogger("timm.models._builder").warning("Unexpected keys (classifier.bias)")
        assert len(caplog.records) == 1, "only while weights are loaded"

    def test_weights_of_gray_images(self, tmp_path):
        timm = pytest.importorskip("timm")
        source = timm.create_model("test_resnet", in_chans=1).eval()
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        stem = build_stem("timm/test_resnet", 8).eval()
        stem.load_weights(tmp_path / "model.safetensors")
        x = torch.randn(1, 3, 64, 64)
        gray = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * x).sum(1, keepdim=True)
        found, expected = stem.body(x)[-1], source.forward_intermediates(gray, intermediates_only=True)
        assert any(found.shape == one.shape and (found - one).abs().max() < 1e-4 for one in expected)

    def test_foreign_weights_raise(self, tmp_path):
        pytest.importorskip("timm")
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        stem = build_stem("timm/test_resnet", 8)
        message = r"other\.safetensors: not the weights of timm model 'test_resnet'"
        refused(message, stem.load_weights, tmp_path / "other.safetensors")

    def test_invalid_arguments(self, monkeypatch):
        pytest.importorskip("timm")
        refused("timm has no model 'resnet19'; near: ", build_stem, "timm/resnet19", 8)
        refused("'resnet18', did you mean 'timm/resnet18'", build_stem, "resnet18", 8)
        refused(r"none within max_stride=1", build_stem, "timm/test_resnet", 8, max_stride=1)
        monkeypatch.setitem(sys.modules, "timm", None)
        refused(r"pip install 'mmattn\[train\]'", build_stem, "timm/test_resnet", 8, error=ModuleNotFoundError)
        refused("'resnet18'; expected one of", build_stem, "resnet18", 8)  # without timm its names are unknown


class TestTimmTrunk:
    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet"])
    def test_equals_timm(self, name, tmp_path):
        """The map equals timm's features before pooling, from a file of weights with a classifier."""
        timm = pytest.importorskip("timm")
        from safetensors.torch import save_file

        theirs = timm.create_model(name, num_classes=7).eval()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        ours = TimmTrunk(name).eval()
        ours.load_weights(tmp_path / "model.safetensors")
        images = torch.randn(2, 3, 160, 160)
        expected, found = theirs.forward_features(images), ours(images)
        if expected.dim() == 3:
            expected = expected[:, theirs.num_prefix_tokens :].mT.reshape(found.shape)
        torch.testing.assert_close(found, expected)
        assert found.shape[1] == ours.channels
        assert build_stem(f"timm/{name}", 12, whole=True)(images).shape == (2, 12, *found.shape[2:])

    def test_other_weights_are_refused(self, tmp_path):
        timm = pytest.importorskip("timm")
        from safetensors.torch import save_file

        state = timm.create_model("test_resnet").state_dict()
        for other in ({**state, "x": torch.ones(1)}, {k: v for k, v in state.items() if k != "bn1.weight"}):
            save_file(other, tmp_path / "model.safetensors")
            with pytest.raises(ValueError, match="not the weights of timm model 'test_resnet': "):
                TimmTrunk("test_resnet").load_weights(tmp_path / "model.safetensors")


class TestGridEncoder:
    @pytest.mark.parametrize("positions", ["sinusoidal", "coordinates", "learned", "none"])
    def test_positions(self, positions):
        model = GridEncoder(PatchEmbed(8), 8, 1, 2, positions=positions, grid_size=(4, 4)).eval()
        image = torch.zeros(1, 3, 32, 32)
        moved = torch.zeros(1, 3, 32, 32)
        image[..., :8, :8] = moved[..., 24:, 24:] = 1.0
        there, here = model(moved)[0, :, 3, 3], model(image)[0, :, 0, 0]
        assert torch.allclose(there, here, atol=1e-5) == (positions == "none")

    def test_layout(self):
        """Tokens are ordered row by row and return to their positions."""
        model = GridEncoder(PatchEmbed(8), 8, 0, 2, positions="none")
        image = torch.randn(2, 3, 24, 40)
        torch.testing.assert_close(model(image), model.encoder.norm(model.stem(image).movedim(1, -1)).movedim(-1, 1))

    def test_grid_size_keeps_modes(self):
        """A frozen part of the stem stays in evaluation mode, and its statistics as they are."""
        model = GridEncoder(build_stem("conv", 8), 8, 1, 2)
        frozen = next(module for module in model.stem.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        modes = [module.training for module in model.modules()]
        size = model.grid_size(32)
        assert size == model(torch.randn(2, 3, 32, 32)).shape[2:]
        assert [module.training for module in model.modules()] == modes
        assert frozen.num_batches_tracked == 0

    @pytest.mark.slow
    def test_export_at_other_sizes(self):
        model = GridEncoder(build_stem("conv", 8), 8, 1, 2).eval()
        shapes = {"pixel_values": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
        program = export(model, (torch.randn(2, 3, 48, 64),), dynamic_shapes=shapes).module()
        x = torch.randn(3, 3, 72, 40)
        torch.testing.assert_close(program(x), model(x))


class TestText:
    @pytest.mark.parametrize("positions", TextEncoder.POSITIONS)
    def test_padding_invariance(self, positions):
        model, (ids, key_mask) = TextEncoder(20, 8, 2, 2, positions=positions).eval(), text()
        together = model(ids, key_mask)
        torch.testing.assert_close(together[1:2, :4], model(ids[1:2, :4]))
        assert together.isfinite().all()

    @pytest.mark.parametrize("positions", TextEncoder.POSITIONS)
    def test_order_matters_with_positions(self, positions):
        model, ids = TextEncoder(20, 8, 1, 2, positions=positions).eval(), torch.tensor([[3, 4, 5]])
        same = torch.allclose(model(ids)[0, 0], model(ids.flip(1))[0, 2], atol=1e-5)
        assert same == (positions == "none")

    def test_invalid_arguments(self):
        refused("unknown positions 'learnt'", TextEncoder, 20, 8, 1, 2, positions="learnt")
        refused("a sequence of 7 tokens is longer than max_len=5", TextEncoder(20, 8, 1, 2, max_len=5), text()[0])
        refused("'monotonic' does not support bidirectional", TextEncoder, 20, 8, 1, 2, attention={"kind": "monotonic"})


class TestBert:
    def test_left_padding_does_not_shift_positions(self):
        """RoBERTa's positions: the states of a text do not depend on the position of the padding."""
        model, ids = BertEncoder(20, 8, 2, 2, max_len=12, pad_id=1).eval(), torch.randint(2, 20, (1, 5))
        padded = torch.cat([torch.ones(1, 3, dtype=torch.long), ids], dim=1)
        torch.testing.assert_close(model(padded, padded != 1).states[:, 3:], model(ids).states)

    def test_token_types(self):
        model, ids = BertEncoder(20, 8, 1, 2).eval(), torch.randint(20, (1, 5))
        zeros = torch.zeros_like(ids)
        torch.testing.assert_close(model(ids, None, zeros).states, model(ids).states)
        assert not torch.allclose(model(ids, None, zeros + 1).states, model(ids).states)

    def test_size_of_the_embeddings(self):
        """ELECTRA: embeddings of size D before a linear map to E; of size E, the names of the weights are BERT's."""
        model, ids = BertEncoder(20, 8, 1, 2, token_dim=6), torch.randint(20, (2, 5))
        assert (model.embedding.embedding_dim, model.norm.weight.shape[0], model.embed_dim) == (6, 6, 8)
        assert model.embed(ids).shape == model(ids).states.shape == (2, 5, 8)
        plain = BertEncoder(20, 8, 1, 2)
        assert set(model.state_dict()) - set(plain.state_dict()) == {"project.weight", "project.bias"}
        assert BertEncoder(20, 8, 1, 2, token_dim=8).state_dict().keys() == plain.state_dict().keys()
        model(ids, None, torch.randint(2, (2, 5))).pooled.square().sum().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_hidden_states_and_pooled_output(self):
        model, (ids, key_mask) = BertEncoder(20, 8, 3, 2, pooler=False).eval(), text()
        layers, found = model.hidden_states(ids, key_mask), model(ids, key_mask)
        assert len(layers) == 4
        torch.testing.assert_close(layers[-1], found.states)
        torch.testing.assert_close(found.pooled, found.states[:, 0])

    def test_pooling(self):
        states, key_mask = torch.randn(3, 4, 8, requires_grad=True), torch.ones(3, 4, dtype=torch.bool)
        key_mask[1, 1:] = key_mask[2] = False
        found = mean_pooling(states, key_mask)
        torch.testing.assert_close(found, torch.stack([states[0].mean(0), states[1, 0], torch.zeros(8)]))
        torch.testing.assert_close(mean_pooling(states)[0], found[0])
        embedded = sentence_embedding(states, key_mask)
        torch.testing.assert_close(embedded.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0]))
        embedded.square().sum().backward()
        assert states.grad.isfinite().all()


class TestViT:
    def make(self, **keywords):
        return VisionTransformer(8, 2, 2, image_size=(16, 24), patch_size=8, **keywords).eval()

    def test_mean_pooling_excludes_prefix_tokens(self):
        model, image = self.make(pooling="mean"), torch.randn(2, 3, 16, 24)
        states, pooled = model(image)
        torch.testing.assert_close(model.encoder.norm(model.hidden_states(image)[-1]), states)
        torch.testing.assert_close(pooled, states[:, 1:].mean(1))

    def test_norm_after_pooling(self):
        model = self.make(pooling="mean", norm_pooled=True, num_prefix=0, pooler_dim=3)
        image = torch.randn(2, 3, 16, 24)
        states, pooled = model(image)
        torch.testing.assert_close(states, model.hidden_states(image)[-1])
        torch.testing.assert_close(pooled, model.pooler(model.norm(states.mean(1))))

    @pytest.mark.parametrize("resize", slow_but_first(VisionTransformer.RESIZES))
    def test_resizing_to_the_same_size_is_identity(self, resize):
        """An exported model always resizes: at the original size this must be the identity."""
        model, image = self.make(resize_positions=resize).double(), torch.randn(2, 3, 16, 24, dtype=torch.float64)
        shapes = {"pixel_values": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
        program = export(model, (torch.randn(2, 3, 40, 32).double(),), dynamic_shapes=shapes).module()
        for given in (image, torch.randn(3, 3, 24, 56, dtype=torch.float64)):
            torch.testing.assert_close(program(given), model(given), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("kind", ["linear", "sliding_window"])
    def test_other_kernels(self, kind):
        model = self.make(attention=kind)
        with capture(model) as maps:
            out = model(torch.randn(2, 3, 16, 24))
        assert out.states.isfinite().all()
        assert [found[0].shape for found in maps.values()] == [(2, 2, 7, 7)] * 2


class TestRecurrent:
    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("both", [True, False])
    def test_equals_torch_on_packed_sequences(self, kind, layers, both):
        options = {"num_layers": layers, "bidirectional": both}
        model, (ids, key_mask) = RecurrentEncoder(20, 6, 8, kind=kind, **options).eval(), text()
        size = model.forwards[0].hidden_size
        theirs = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](6, size, batch_first=True, **options)
        for nets, way in ((model.forwards, ""), (model.backwards, "_reverse")):
            for i, net in enumerate(nets):
                for name, parameter in net.named_parameters():
                    getattr(theirs, name.replace("_l0", f"_l{i}{way}")).data = parameter.data
        states, summary = model(ids, key_mask)
        lengths = key_mask.sum(1)[:2]
        embedded = model.embedding(ids[:2])
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        out, last = theirs(packed)
        last = last[0] if kind == "lstm" else last  # (layers * 2, B, size)
        expected, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        torch.testing.assert_close(states[:2], expected)
        torch.testing.assert_close(summary[:2], torch.cat([*last[-2 if both else -1 :]], dim=-1))
        assert states[2].abs().max() == summary[2].abs().max() == 0  # the empty text

    @pytest.mark.parametrize("kind", ["lstm", "gru"])
    def test_every_parameter_gets_a_gradient(self, kind):
        model = RecurrentEncoder(20, 6, 8, kind=kind, num_layers=2)
        states, _ = model(*text())
        states.square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_invalid_arguments(self):
        refused("unknown recurrent kind 'rnn'; expected one of: lstm, gru", RecurrentEncoder, 20, 6, 8, kind="rnn")
        refused("hidden_dim=7 does not divide", RecurrentEncoder, 20, 6, 7)
