"""Kernels that select keys: properties that their rows in rows_hard.py do not cover."""

from functools import partial

import pytest
import torch
from cases import Operations, close, draw, equals_its_map, make
from torch.export import export

from mmattn import Encoder, Mask, MultiHeadAttention, T5Bias, aux_losses, capture
from mmattn.kernels import local
from tests.conftest import learn

make = partial(make, noise=0.05)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("local", {"window": 50, "predict": False}),
        ("hard", {"top_k": 50}),
        ("adaptive_span", {"max_span": 200, "initial_span": 100}),
    ],
)
def test_reach_beyond_the_sequence_equals_dense(kind, options, is_causal):
    kernel, tensors = make(kind, **options), draw(2, 2, 20, 20, h_kv=1)
    key_mask = torch.rand(2, 20) > 0.3
    key_mask[1] = False
    for mask in (Mask(None, None, is_causal), Mask(key_mask, None, is_causal)):
        close(kernel(*tensors, mask), make("dense")(*tensors, mask))


class TestLocal:
    @pytest.mark.parametrize(("L", "S"), [(1, 1), (4, 3), (5, 5)])
    def test_window_longer_than_the_sequence(self, L, S):
        """Only the Gaussian remains."""
        kernel, (q, k, _) = make("local", window=50), draw(2, 2, L, S, h_kv=1)
        weights = kernel.weights(q, k)
        expected = make("dense").weights(q, k)
        torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected, atol=0.02, rtol=0)

    def test_padding_at_any_position(self):
        """Local-p counts real keys only: padding on the left, on the right or in between has no effect."""
        kernel, (q, k, v) = make("local", window=2), draw(1, 2, 5, 4)
        alone = kernel(q, k, v)
        for places in ([0, 1, 2, 3], [3, 4, 5, 6], [0, 2, 3, 6]):
            _, padded_k, padded_v = draw(1, 2, 5, 7)
            padded_k[:, :, places], padded_v[:, :, places] = k, v
            key_mask = torch.zeros(1, 7, dtype=torch.bool)
            key_mask[:, places] = True
            close(kernel(q, padded_k, padded_v, Mask(key_mask)), alone)

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize(("L", "S"), [(100, 100), (7, 60), (70, 60), (1, 41)])
    def test_gathered_windows_equal_full(self, is_causal, L, S, monkeypatch):
        monkeypatch.setattr(local, "WORTH", 8)
        key_mask = torch.rand(2, S) > 0.4
        key_mask[0] = False
        for mask in (Mask(None, None, is_causal), Mask(key_mask, None, is_causal)):
            equals_its_map(make("local", window=2), *draw(2, 2, L, S, h_kv=1), mask, atol=1e-10)

    def test_gathering_memory_is_linear(self):
        kernel, (q, k, v) = make("local", window=2, heads=1), draw(1, 1, 500, 500)
        with Operations() as found:
            kernel(q, k, v)
        assert found.largest <= 500 * 5 * 4  # queries, keys of a window, channels of a key

    def test_predicted_position_is_learned(self):
        """Only the Gaussian depends on it: a target far to the right moves it there."""
        kernel, (q, k, _) = make("local", window=6), draw(1, 2, 3, 12)
        places = torch.arange(12, dtype=torch.float64)

        def center():
            weights = kernel.weights(q, k)
            return ((weights * places).sum(-1) / weights.sum(-1)).mean()

        before = center()
        learn(torch.optim.Adam(kernel.parameters(), lr=0.05), 40, lambda: -center())
        assert center() > before + 2

    def test_long_sequences_in_half_precision(self):
        """Positions above 256, which bfloat16 cannot distinguish."""
        kernel = make("local", window=4).to(torch.bfloat16)
        q, k, _ = (x.to(torch.bfloat16) for x in draw(1, 2, 2, 3000))
        reached = kernel.weights(q, k) > 0
        assert (reached.sum(-1) >= 7).all()
        assert (reached.sum(-1) <= 9).all()


class TestHard:
    @pytest.mark.parametrize("top_k", [1, 2])
    def test_ties_select_the_earlier_key(self, top_k):
        kernel, (q, k, v) = make("hard", top_k=top_k), draw(1, 2, 3, 6)
        k[:] = k[:, :, :1]
        key_mask = torch.tensor([[False, True, True, False, True, True]])
        places = torch.tensor([1, 2][:top_k])
        weights = kernel.weights(q, k, Mask(key_mask))
        assert torch.equal(weights, (torch.isin(torch.arange(6), places) / top_k).double().expand_as(weights))
        torch.testing.assert_close(kernel(q, k, v, Mask(key_mask)), v[:, :, places].mean(2, True).expand(1, 2, 3, 3))

    def test_weights_are_exactly_one_hot(self):
        """Exactly one key: not 0.9999999 of it, as adding and subtracting the softmax would give."""
        kernel = make("hard").float()
        q, k, v = (x.float() for x in draw(2, 2, 30, 40))
        with capture(kernel) as maps:
            out = kernel(q, k, v)
        (weights,) = maps.values()
        assert set(weights[0].unique().tolist()) == {0.0, 1.0}
        best = (q @ k.transpose(-2, -1)).argmax(-1)
        assert torch.equal(out, v.gather(2, best[..., None].expand(-1, -1, -1, 3)))

    @pytest.mark.slow
    def test_export_with_fewer_keys_than_top_k(self):
        attention = MultiHeadAttention(8, 2, kind="hard", options={"top_k": 5}).eval()
        dynamic = torch.export.Dim.AUTO
        program = export(attention, (torch.randn(2, 9, 8),), dynamic_shapes=({0: dynamic, 1: dynamic},)).module()
        for length in (2, 5, 12):
            x = torch.randn(2, length, 8)
            torch.testing.assert_close(program(x), attention(x))

    def test_learns_to_select_the_useful_key(self):
        """The arg-max moves to the useful key, which was not selected initially."""
        kernel, (q, k, v) = make("hard", heads=1), draw(1, 1, 1, 5)
        v[:] = 0
        v[0, 0, 3] = 1
        k[0, 0, 3] = -q[0, 0, 0]
        q.requires_grad_()
        assert kernel(q, k, v).sum() == 0
        learn(torch.optim.Adam([q], lr=0.1), 100, lambda: (kernel(q, k, v).sum() - 3).square())
        assert kernel(q, k, v).sum() == 3


class TestAdaptiveSpan:
    def test_span_extent(self):
        """Full weight up to z, none beyond z + ramp, and none beyond max_span."""
        kernel = make("adaptive_span", noise=0.0, max_span=10, ramp=4, initial_span=2.5)
        with torch.no_grad():
            kernel.fraction[1] = 1.0
        q, k, _ = draw(1, 2, 30, 30)
        distance = (torch.arange(30)[:, None] - torch.arange(30)).abs()
        reached = kernel.weights(q, k)[0] > 0
        assert torch.equal(reached[0], distance < 7)
        assert torch.equal(reached[1], distance <= 10)
        causal = kernel.weights(q, k, Mask(is_causal=True))[0] > 0
        assert torch.equal(causal, reached.tril())

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("bias", [None, T5Bias(2)], ids=["no bias", "T5"])
    def test_blocks_equal_full(self, is_causal, bias):
        """Output and gradients, with more consecutive masked keys than a span."""
        kernel, (q, k, v) = make("adaptive_span", max_span=30, ramp=10, initial_span=9), draw(2, 2, 300, 300, h_kv=1)
        key_mask = torch.rand(2, 300) > 0.3
        key_mask[0, 50:150] = False
        for pairs in (None, torch.rand(300, 300) > 0.1, torch.rand(2, 1, 300, 300) > 0.1):
            mask = Mask(key_mask, pairs, is_causal, None if bias is None else bias.double())
            weights = equals_its_map(kernel, q, k, v, mask, atol=1e-10)
            assert (weights[0, :, 100] == 0).all()  # all keys in reach are masked

    def test_span_penalty(self):
        kernel = make("adaptive_span", noise=0.0, max_span=50, initial_span=20, penalty=0.1)
        assert kernel.aux_loss().item() == pytest.approx(2.0)
        kernel.aux_loss().backward()
        torch.testing.assert_close(kernel.fraction.grad, torch.full((2,), 0.1 * 50 / 2).double())
        options = {"kind": "adaptive_span", "initial_span": 20, "penalty": 0.1}
        assert aux_losses(Encoder(8, 3, 2, attention=options)).item() == pytest.approx(6.0)
        assert make("adaptive_span", penalty=0.0).aux_loss() is None

    def test_penalty_shrinks_spans_to_zero(self):
        """And a span at its bound grows again if the loss requires it."""
        kernel = make("adaptive_span", 1, noise=0.0, max_span=8, ramp=2, initial_span=4, penalty=0.1)
        q, k, v = draw(1, 1, 9, 9)
        v[:] = 0
        v[:, :, 0] = 1  # useful and far away
        optimizer = torch.optim.SGD(kernel.parameters(), lr=0.1)
        learn(optimizer, 60, kernel.aux_loss)
        assert kernel.spans.item() == 0
        learn(optimizer, 60, lambda: -10 * kernel(q, k, v, Mask(is_causal=True)).sum())
        assert kernel.spans.item() > 2

    def test_spans_beyond_the_bounds_recover(self):
        kernel = make("adaptive_span", noise=0.0, penalty=1.0)
        kernel.aux_loss().backward()
        assert kernel.fraction.grad.tolist() == [0, 0]  # at 0, with a penalty that pushes outside
        with torch.no_grad():
            kernel.fraction.fill_(1.5)
        assert kernel.spans.tolist() == [kernel.max_span] * 2
        kernel.zero_grad()
        kernel.aux_loss().backward()
        assert (kernel.fraction.grad > 0).all()
        (-kernel.spans.sum()).backward(inputs=[kernel.fraction])
        assert (kernel.fraction.grad > 0).all()
