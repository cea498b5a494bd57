"""The kernels linear, low_rank, cosine and differential: properties that their rows do not cover."""

import math
from itertools import pairwise

import pytest
import torch
from cases import close, draw, empty, equals_its_map, make

from mmattn import Mask, build_kernel
from mmattn.kernels.linear import orthogonal_features
from tests.conftest import refused

MAPS = [{}, {"feature_map": "favor", "num_features": 5}]


class TestLinear:
    @pytest.mark.parametrize("options", MAPS)
    @pytest.mark.parametrize("L", [1, 64, 128, 150])
    def test_chunks_equal_full(self, options, L):
        kernel, (q, k, v) = make("linear", **options), draw(1, 2, L, L)
        equals_its_map(kernel, q, k, v, Mask(is_causal=True))

    @pytest.mark.parametrize("options", MAPS)
    def test_state_size_is_constant(self, options):
        kernel, (q, k, v) = make("linear", **options), draw(1, 2, 9, 9)
        cache = kernel.make_cache(*empty(1))
        shapes = set()
        for i in range(9):
            kernel(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1], None, cache)
            shapes.add(tuple(cache.state.shape))
        assert shapes == {(1, 2, kernel.num_features, 4)}

    @pytest.mark.parametrize("options", MAPS)
    def test_large_future_does_not_leak_in_single_precision(self, options):
        kernel = make("linear", **options).float()
        kernel.chunk = 4
        q, k, v = (t.float() for t in draw(1, 2, 12, 12))
        before = kernel(q, k, v, Mask(is_causal=True))
        v[:, :, 9:] = 1e8
        k[:, :, 9:] *= 100
        assert torch.equal(kernel(q, k, v, Mask(is_causal=True))[:, :, :9], before[:, :, :9])

    def test_long_sequences_in_half_precision(self):
        """In bfloat16 a sum of 256 ones plus one is 256: the state must be kept in higher precision."""
        kernel, ones = make("linear").bfloat16(), torch.ones(1, 2, 600, 4, dtype=torch.bfloat16)
        cache = kernel.make_cache(*empty(1, d_v=4, dtype=torch.bfloat16))
        for i in range(300):
            kernel(ones[:, :, i : i + 1], ones[:, :, i : i + 1], ones[:, :, i : i + 1], None, cache)
        kernel(ones[:, :, 300:], ones[:, :, 300:], ones[:, :, 300:], Mask(is_causal=True), cache)
        torch.testing.assert_close(cache.state, torch.full((1, 2, 4, 5), 1200.0))  # 600 times elu(1) + 1


class TestFavor:
    def test_random_features(self):
        """Orthogonal within a block of d, with the norms of Gaussian vectors, and deterministic per seed."""
        features = orthogonal_features(300, 16, seed=0).double()
        block = features[:16]
        products = block @ block.T
        assert (products - products.diagonal().diag()).abs().max() < 1e-5
        assert features.square().sum(-1).mean().item() == pytest.approx(16, rel=0.1)
        assert features.mean(0).abs().max() < 0.2
        assert torch.equal(orthogonal_features(300, 16, seed=0).double(), features)
        assert (orthogonal_features(300, 16, seed=1).double() - features).abs().max() > 0.1
        assert make("linear", dim=64, feature_map="favor").features.shape == (266, 64)

    def test_features_are_saved(self):
        kernel, other = make("linear", **MAPS[1]), make("linear", **MAPS[1], seed=7)
        inputs = draw(1, 2, 3, 3)
        assert not torch.equal(kernel(*inputs), other(*inputs))
        other.load_state_dict(kernel.state_dict())
        assert torch.equal(kernel(*inputs), other(*inputs))

    def test_random_features_are_unbiased(self):
        """The mean of the products of features is exp(q k), within four standard errors of the mean."""
        torch.manual_seed(0)
        q, k = torch.randn(6, 8).double(), torch.randn(6, 8).double()
        q, k = q / 8**0.25, k / 8**0.25
        estimates = []
        for seed in range(800):
            features = orthogonal_features(8, 8, seed).double()
            left, right = ((x @ features.T - x.square().sum(-1, keepdim=True) / 2).exp() for x in (q, k))
            estimates.append(left @ right.T / 8)
        estimates = torch.stack(estimates)
        error = estimates.mean(0) - (q @ k.T).exp()
        assert (error.abs() < 4 * estimates.std(0) / math.sqrt(len(estimates))).all()

    def test_more_features_approximate_softmax_better(self):
        torch.manual_seed(0)
        q, k, v = draw(2, 2, 20, 30, d=8)
        q, k = 0.7 * q, 0.7 * k  # the variance grows exponentially with the scores
        dense = make("dense", dim=8)
        for mask in (Mask(), Mask(is_causal=True)):
            errors = []
            for count in (16, 128, 1024, 8192):
                kernels = [make("linear", dim=8, feature_map="favor", num_features=count, seed=s) for s in range(5)]
                exact = dense(q, k, v, mask)
                errors.append(torch.stack([(kernel(q, k, v, mask) - exact).square().mean() for kernel in kernels]))
            errors = [float(error.mean().sqrt()) for error in errors]
            assert all(more < 0.7 * few for few, more in pairwise(errors))
            assert errors[3] < 0.03

    def test_scaling_keys_cannot_overflow(self):
        """A key that equals a feature reaches the largest possible exponent."""
        kernel = make("linear", dim=256, feature_map="favor", num_features=300).float()
        k = 256**0.25 * kernel.features[:4].view(1, 2, 2, 256).clone().requires_grad_()
        out = kernel(k, k, torch.randn(1, 2, 2, 3))
        out.sum().backward()
        assert out.isfinite().all()


class TestLowRank:
    def test_short_inputs_use_the_first_columns(self):
        kernel, (q, k, v) = make("low_rank", projected_length=3, max_len=8), draw(1, 2, 4, 5)
        before = kernel(q, k, v)
        with torch.no_grad():
            kernel.key_length[:, :, 5:] = kernel.value_length[:, :, 5:] = math.nan
        assert torch.equal(kernel(q, k, v), before)

    @pytest.mark.parametrize(("share", "count"), [("none", 4), ("heads", 2), ("keys_values", 1)])
    def test_parameter_sharing(self, share, count):
        kernel = make("low_rank", heads=2, projected_length=3, max_len=8, share=share)
        assert sum(p.numel() for p in kernel.parameters()) == count * 3 * 8

    def test_invalid_arguments(self):
        kernel, (q, k, v) = make("low_rank", max_len=4), draw(1, 2, 5, 5)
        for call in (lambda: kernel(q, k, v), lambda: kernel.weights(q, k)):
            refused("was made for max_len=4 keys, found 5", call)


class TestCosine:
    def test_scale_is_clamped(self):
        kernel, (q, k, v) = make("cosine", max_scale=20.0), draw(1, 2, 4, 5)
        kernel.log_scale.data.fill_(math.log(20.0))
        before = kernel(q, k, v)
        kernel.log_scale.data.fill_(9.0)
        close(kernel(q, k, v), before)


class TestDifferential:
    def test_lambda_by_layer(self):
        assert make("differential").lambda_init == 0.8
        assert make("differential", lambda_init=0.3).lambda_init == 0.3
        found = [make("differential", layer=layer).lambda_init for layer in (0, 1, 20)]
        assert found == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8], abs=2e-3)


def test_chunked_inference_equals_full():
    """Without gradients long sequences are processed in chunks of keys and of queries."""
    kernel = build_kernel("linear", {}, num_heads=4, head_dim=8).double()
    kernel.piece = 3
    q, k, v = (torch.randn(2, h, n, 8, dtype=torch.float64) for h, n in ((4, 8), (2, 11), (2, 11)))
    mask = Mask(torch.rand(2, 11) > 0.4)
    with torch.no_grad():
        pieces = kernel(q, k, v, mask)
    close(pieces, kernel(q.requires_grad_(), k, v, mask).detach())
