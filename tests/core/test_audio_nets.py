"""The audio encoders, transformer and conformer, full and chunked; the LSTM decoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

from mmattn import Mask, capture, kinds_supporting
from mmattn.backbones.audio import AudioEncoder, ConvSubsampling, chunk_mask
from mmattn.backbones.conformer import Conformer, ConformerLayer, ConvolutionModule, DepthwiseConv
from mmattn.backbones.recurrent import RecurrentDecoder
from mmattn.generate import GenerationConfig
from tests.conftest import learn, refused

KINDS = AudioEncoder.KINDS
NEEDED = {"sliding_window": {"window": 3}, "local": {"window": 3}, "low_rank": {}}


def make(kind="conformer", **keywords):
    torch.manual_seed(0)
    options = {"ffn_dim": 24, "kernel_size": 5, "channels": 4} | keywords
    return AudioEncoder(10, 16, 2, 4, kind=kind, **options).double().eval()


def clips(*lengths, seed=1, bands=10):
    """Clips as one batch, padded with loud noise, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    features = torch.randn(*mask.shape, bands, generator=generator, dtype=torch.float64)
    return torch.where(mask[:, :, None], features, 100 * features), mask


@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_initial_frames_have_unit_scale(subsampling):
    """With torch's default initialization the deviation is 0.11, and CTC needs many epochs before it learns."""
    torch.manual_seed(0)
    net = ConvSubsampling(40, 96, subsampling=subsampling)
    frames, _ = net(torch.randn(4, 200, 40), None)  # (B, S, E)
    assert 0.7 < frames.std() < 1.4
    share = frames.std((0, 1)).square().sum() / frames.square().mean((0, 1)).sum()
    assert share > 0.5, "the share that differs between frames"


class TestPadding:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("subsampling", [1, 2, 4])
    @pytest.mark.parametrize("keywords", [{}, {"rotary": False}, {"chunk_frames": 3, "left_chunks": 1}], ids=str)
    def test_single_clip_equals_batched(self, kind, subsampling, keywords):
        net, lengths = make(kind, subsampling=subsampling, **keywords), (31, 17, 6, 1)
        features, mask = clips(*lengths)
        states, state_mask = net(features, mask)
        for n, length in enumerate(lengths):
            short = -(-length // subsampling)
            alone, alone_mask = net(features[n : n + 1, :length])
            assert int(state_mask[n].sum()) == alone.shape[1] == short
            assert alone_mask.all()
            torch.testing.assert_close(states[n : n + 1, :short], alone, atol=1e-8, rtol=0)

    @pytest.mark.parametrize("attention", sorted(set(kinds_supporting({"self"}))))
    def test_every_kernel_by_name(self, attention):
        net = make(attention={"kind": attention} | NEEDED.get(attention, {}))
        features, mask = clips(20, 11)
        states, _ = net(features, mask)
        alone, _ = net(features[1:, :11])
        torch.testing.assert_close(states[1:, :6], alone, atol=1e-8, rtol=0)
        with capture(net) as maps:
            captured, _ = net(features, mask)
        assert list(maps) == [f"encoder.layers.{n}.attention" for n in range(2)]
        torch.testing.assert_close(captured[1:, :6], alone, atol=1e-8, rtol=0)

    def test_all_padding_clip_is_finite(self):
        features, mask = clips(9, 9)
        mask[1] = False
        states, state_mask = make()(features, mask)
        assert states.isfinite().all()
        assert state_mask.any(1).tolist() == [True, False]


class TestChunks:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("subsampling", [1, 2, 4])
    @pytest.mark.parametrize("left_chunks", [None, 0, 2])
    def test_output_does_not_depend_on_later_chunks(self, kind, subsampling, left_chunks):
        net = make(kind, subsampling=subsampling, chunk_frames=3, left_chunks=left_chunks)
        features, _ = clips(40)
        states, _ = net(features)
        for chunk in range(1, 40 // (3 * subsampling)):
            later = features.clone()
            later[:, 3 * chunk * subsampling :] *= -3
            found, _ = net(later)
            assert torch.equal(found[:, : 3 * chunk], states[:, : 3 * chunk])
            assert not torch.allclose(found[:, 3 * chunk :], states[:, 3 * chunk :])
            cut, _ = net(features[:, : 3 * chunk * subsampling])  # as if the stream ended there
            torch.testing.assert_close(cut, states[:, : 3 * chunk], atol=1e-8, rtol=0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_attention_is_bidirectional_within_a_chunk(self, kind):
        net, (features, _) = make(kind, chunk_frames=4, subsampling=2), clips(24)
        features.requires_grad_()
        (gradient,) = torch.autograd.grad(net(features)[0][0, 4, 0], features)
        seen = gradient[0].abs().sum(1) > 0
        assert seen[:16].all()
        assert not seen[16:].any()

    def test_chunk_mask(self):
        assert chunk_mask(4, 3).int().tolist() == [[1, 1, 1, 0]] * 3 + [[1, 1, 1, 1]]
        assert chunk_mask(4, 1, 0).equal(torch.eye(4, dtype=torch.bool))

    @pytest.mark.parametrize("attention", ["additive", "sliding_window", "differential"])
    def test_other_kernels(self, attention):
        net = make(chunk_frames=3, attention={"kind": attention} | NEEDED.get(attention, {}))
        features, _ = clips(20)
        later = features.clone()
        later[:, 12:] = 5
        torch.testing.assert_close(net(later)[0][:, :6], net(features)[0][:, :6], atol=1e-8, rtol=0)

    def test_kernel_without_attn_mask_raises(self):
        refused(r"'linear' .* not an attn_mask", make(chunk_frames=3, attention="linear"), *clips(20))


class TestDefinitions:
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_depthwise_convolution(self, is_causal):
        conv = DepthwiseConv(6, 5, is_causal=is_causal).double()
        x = clips(9, 9, bands=6)[0]
        expected = conv.conv.bias.expand(2, 9, 6).clone()
        for t in range(9):
            for k in range(5):
                source = t + k - (4 if is_causal else 2)
                if 0 <= source < 9:
                    expected[:, t] = expected[:, t] + conv.conv.weight[:, 0, k, 0] * x[:, source]
        torch.testing.assert_close(conv(x), expected, atol=1e-8, rtol=0)

    def test_convolution_module(self):
        module = ConvolutionModule(6, 5).double()
        x, mask = clips(9, 4, bands=6)
        values, gates = module.pointwise_in(x).chunk(2, -1)
        inner = (values * gates.sigmoid()).masked_fill(~mask[:, :, None], 0)
        conv = module.depthwise.conv
        inner = F.conv1d(inner.mT, conv.weight[..., 0], conv.bias, padding=2, groups=6).mT
        inner = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        inner = inner * module.norm.weight + module.norm.bias
        torch.testing.assert_close(module(x, mask), module.pointwise_out(inner * inner.sigmoid()), atol=1e-8, rtol=0)

    def test_conformer_layer_is_a_macaron(self):
        layer = ConformerLayer(8, 2, ffn_dim=12, kernel_size=3).double().eval()
        x, key_mask = clips(9, 4, bands=8)
        mask = Mask(key_mask)
        expected = x + layer.ffn_in(layer.ffn_in_residual.norm(x)) / 2
        expected = expected + layer.attention(layer.attention_residual.norm(expected), mask=mask)
        expected = expected + layer.conv(layer.conv_residual.norm(expected), key_mask)
        expected = expected + layer.ffn_out(layer.ffn_out_residual.norm(expected)) / 2
        torch.testing.assert_close(layer(x, mask), layer.norm(expected), atol=1e-8, rtol=0)

    def test_subsampling_by_four(self):
        stem = ConvSubsampling(10, 6, subsampling=4, channels=3).double()
        x, _ = clips(13)
        maps = x[:, None]
        for conv in stem.convs:
            maps = F.conv2d(maps, conv.weight, conv.bias, stride=2, padding=1).relu()
        found, mask = stem(x, None)
        assert mask is None
        torch.testing.assert_close(found, stem.proj(maps.transpose(1, 2).flatten(2)), atol=1e-8, rtol=0)
        assert found.shape == (1, 4, 6)


class TestAudioEncoder:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("keywords", [{}, {"chunk_frames": 4}], ids=str)
    def test_every_parameter_gets_a_gradient(self, kind, keywords):
        net = make(kind, dropout=0.1, **keywords).train()
        states, mask = net(*clips(20, 13))
        (states * torch.randn_like(states))[mask].sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("keywords", [{}, {"chunk_frames": 3, "left_chunks": 1}], ids=str)
    def test_export_at_other_sizes(self, kind, keywords):
        net, dims = make(kind, **keywords), {0: Dim.AUTO, 1: Dim.AUTO}
        program = export(net, clips(20, 13), dynamic_shapes={"features": dims, "feature_mask": dims}).module()
        for lengths in ((31, 7, 4), (5,), (3, 1)):  # at least two encoded frames: torch specializes size one
            given = clips(*lengths)
            for found, expected in zip(program(*given), net(*given), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_compiled_equals_eager(self, kind):
        net, given = make(kind), clips(20, 13)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*given)[0], net(*given)[0], atol=1e-8, rtol=0)

    def test_learns_to_locate_a_click(self):
        """A conformer overfits one batch: each state classifies whether its frame holds a click."""
        torch.manual_seed(0)
        net = nn.ModuleList([AudioEncoder(10, 16, 1, 2, kind="conformer", kernel_size=3), nn.Linear(16, 1)])
        features = torch.randn(8, 24, 10)
        places = torch.randint(12, (8,))
        features[torch.arange(8), 2 * places] += 3.0

        def loss():
            return F.cross_entropy(net[1](net[0](features)[0])[..., 0], places)

        learn(torch.optim.Adam(net.parameters(), 1e-2), 30, loss)
        assert loss() < 0.05

    def test_invalid_arguments(self):
        for keywords, message in (
            ({"kind": "rnn"}, "unknown audio encoder 'rnn'; expected one of: transformer, conformer"),
            ({"subsampling": 3}, "subsampling=3: there are 1, 2, 4"),
            ({"kernel_size": 4}, "kernel_size=4: .* odd"),
            ({"chunk_frames": 0}, "chunk_frames=0"),
            ({"left_chunks": 2}, "left_chunks=2 .* needs chunk_frames"),
            ({"attention": "monotonic"}, "does not support bidirectional self-attention"),
        ):
            refused(message, make, **keywords)
        refused("kernel", Conformer, 16, 1, 2, kernel=3, error=TypeError)


class TestRecurrentDecoder:
    @staticmethod
    def make(**keywords):
        torch.manual_seed(0)
        options = {"memory_dim": 10, "num_layers": 2, "num_heads": 2} | keywords
        return RecurrentDecoder(9, 6, 8, **options).double().eval()

    def test_memory_padding_invariance(self):
        decoder, (memory, mask) = self.make(), clips(12, 5)
        ids = torch.randint(9, (2, 4))
        alone = decoder(memory[1:, :5], None, ids[1:])
        torch.testing.assert_close(decoder(memory, mask, ids)[1:], alone, atol=1e-8, rtol=0)

    @pytest.mark.parametrize(
        "cross", ["additive", "dense", {"kind": "monotonic"}, {"kind": "local", "window": 4}], ids=str
    )
    def test_stepwise_equals_single_pass(self, cross):
        decoder, (memory, mask) = self.make(cross_attention=cross), clips(12, 5)
        ids, state = torch.randint(9, (2, 4)), decoder.start_from(memory, mask)
        steps = torch.stack([decoder.step(new, state) for new in ids.split(1, dim=1)], dim=1)
        if cross == {"kind": "monotonic"}:  # trained on the expectation, decoded with hard attention
            assert steps.isfinite().all()
        else:
            torch.testing.assert_close(steps, decoder(memory, mask, ids), atol=1e-8, rtol=0)

    @pytest.mark.parametrize("cross", ["additive", {"kind": "monotonic"}], ids=str)
    def test_beams_share_the_memory(self, cross):
        decoder, (memory, mask) = self.make(cross_attention=cross), clips(12, 5, 9)
        config = GenerationConfig(num_beams=3, decoder_start_token_id=1, eos_token_id=2, max_new_tokens=6)
        together = decoder.generate(memory, mask, config)
        for n in range(3):
            alone = decoder.generate(memory[n : n + 1], mask[n : n + 1], config)
            assert alone.tokens()[0] == together.tokens()[n]
        state = decoder.start_from(memory, mask)
        decoder.step(torch.ones(3, 1, dtype=torch.long), state)
        state.select(torch.tensor([[1, 1], [2, 2]]))
        shared = cross == "additive"
        assert len(state.memory) == (2 if shared else 4)
        assert state.hidden.shape == (2, 4, 8)
        again = decoder.step(torch.full((4, 1), 3), state)
        state.select(torch.tensor([[3, 2]]))
        assert len(state.memory) == (1 if shared else 2)
        torch.testing.assert_close(again[0], again[1])
        alone = decoder.start_from(memory[2:], mask[2:])
        expected = [decoder.step(torch.full((1, 1), token), alone) for token in (1, 3, 3)][-1]
        torch.testing.assert_close(decoder.step(torch.full((2, 1), 3), state)[0], expected[0])

    def test_every_parameter_gets_a_gradient(self):
        decoder = self.make(tied_output=False)
        decoder(*clips(12, 5), torch.randint(9, (2, 4))).square().sum().backward()
        assert [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
