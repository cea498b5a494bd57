import pytest
import torch
from cases import close, draw, empty, growth, make

from mmattn import KERNELS, ALiBi, Mask, T5Bias, build_kernel, kernel_options, kinds_supporting
from mmattn.functional import masked_softmax
from mmattn.kernels import Kernel
from tests.conftest import refused

EVERY = sorted(KERNELS)


class TestTable:
    def test_names_match(self):
        assert all(kernel.kind == kind and issubclass(kernel, Kernel) for kind, kernel in KERNELS.items())

    def test_options(self):
        assert kernel_options("sliding_window") == {"window": 64}
        assert kernel_options("linear") == {"feature_map": "elu", "num_features": None, "seed": 0}
        assert kernel_options("sigmoid") == {"num_sigmoid_heads": None, "initial_bias": -4.0, "dropout": 0.0}

    def test_kinds_supporting(self):
        assert {"dense", "linear", "sliding_window"} <= set(kinds_supporting({"self"}))
        assert not {"monotonic"} & set(kinds_supporting({"self"}))
        assert not {"linear", "monotonic"} & set(kinds_supporting({"bias", "causal"}))

    @pytest.mark.parametrize(
        ("kind", "options", "needs", "message"),
        [
            ("dens", {}, (), r"unknown attention kind 'dens', did you mean 'dense'\?; the kinds are: .*dense"),
            (
                "monotonic",
                {},
                ("self",),
                r"^attention kind 'monotonic' does not support bidirectional self-attention "
                r"\(it supports: cross, cache\); kinds that do: .*dense, .*linear, .*sliding_window",
            ),
            (
                "sliding_window",
                {},
                ("cross",),
                r"does not support cross-attention \(it supports: self, causal, bias, cache, global\)",
            ),
            ("linear", {}, ("bias", "self"), "'linear' does not support a position bias"),
            ("dense", {}, ("global",), "'dense' does not support global tokens .*; kinds that do: "),
            ("dense", {}, ("casual",), "unknown attention feature 'casual'; the features are: self, causal"),
            (
                "sliding_window",
                {"windw": 3},
                (),
                r"'sliding_window' has no option 'windw', did you mean 'window'\?; its options are: window",
            ),
            (
                "dense",
                {"window": 3},
                (),
                r"'dense' has no option 'window' \(an option of .*sliding_window\); its options are",
            ),
            (
                "linear",
                {"dropout": 0.1},
                (),
                r"'linear' has no option 'dropout' \(an option of .*\); its options are: feature_map, num_features",
            ),
            ("sliding_window", {"window": 0}, (), "window must be at least 1 token, found 0"),
            ("sigmoid", {"num_sigmoid_heads": 3}, (), r"num_sigmoid_heads must be within 1\.\.2"),
        ],
    )
    def test_refusals_at_construction(self, kind, options, needs, message):
        refused(message, build_kernel, kind, options, num_heads=2, head_dim=4, needs=needs)


class TestEvery:
    @pytest.mark.parametrize("kind", EVERY)
    def test_what_it_lacks_it_refuses(self, kind):
        kernel, (q, k, v) = make(kind), draw(1, 2, 3, 3)
        masks = {
            "causal": Mask(is_causal=True),
            "bias": Mask(bias=ALiBi(2)),
            "global": Mask(global_mask=torch.ones(1, 3, dtype=torch.bool)),
        }
        for feature, mask in masks.items():
            if feature in kernel.supports:
                kernel(q, k, v, mask)
                continue
            for call in (lambda mask=mask: kernel(q, k, v, mask), lambda mask=mask: kernel.weights(q, k, mask)):
                refused(f"attention kind '{kind}' does not support", call)

    @pytest.mark.parametrize("kind", [k for k in EVERY if "cross" in KERNELS[k].supports])
    @pytest.mark.parametrize(("L", "S"), [(5, 7), (7, 5), (1, 6), (6, 1)])
    def test_weights_explain_the_output_at_any_lengths(self, kind, L, S):
        kernel = make(kind)
        q, k, v = draw(2, 2, L, S, h_kv=1)
        key_mask = torch.rand(2, S) > 0.5
        for is_causal in {False, "causal" in kernel.supports}:
            mask = Mask(key_mask, is_causal=is_causal)
            explained = kernel.finish(kernel.weights(q, k, mask) @ v)
            close(kernel(q, k, v, mask), explained)

    @pytest.mark.parametrize("kind", sorted({*KERNELS} - {"linear", "low_rank", "lsh"}))
    @pytest.mark.parametrize("shape", [(9, 9), (2, 1, 9, 9), (2, 2, 9, 9), (1, 2, 1, 9)])
    def test_pair_masks(self, kind, shape):
        kernel, (q, k, v) = make(kind), draw(2, 2, 9, 9)
        if kind == "sliding_window":
            kernel.window, kernel.block = 2, 2
        attn_mask = torch.rand(shape) > 0.4
        mask = Mask(torch.rand(2, 9) > 0.2, attn_mask)
        weights = kernel.weights(q, k, mask)
        assert weights.masked_select(~mask.dense(9, 9).expand_as(weights)).abs().max() == 0
        close(kernel(q, k, v, mask), kernel.finish(weights @ v))

    @pytest.mark.parametrize("kind", sorted({*kinds_supporting({"causal", "cache"})} - {"additive", "sigmoid"}))
    def test_cache_follows_the_beams(self, kind):
        kernel, (q, k, v) = make(kind), draw(3, 2, 6, 6)
        order = torch.tensor([2, 0, 0])
        cache = kernel.make_cache(*empty(3))
        mask = Mask(is_causal=True)
        kernel(q[:, :, :4], k[:, :, :4], v[:, :, :4], mask, cache)
        cache.select(order)
        found = kernel(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], mask, cache)
        past_k, past_v = k[order, :, :4], v[order, :, :4]
        full = kernel(
            torch.cat([q[order, :, :4], q[:, :, 4:]], 2),
            torch.cat([past_k, k[:, :, 4:]], 2),
            torch.cat([past_v, v[:, :, 4:]], 2),
            mask,
        )
        close(found, full[:, :, 4:])
        assert int(cache.length) == 6
        rebuilt = type(cache)(**cache.tensors())
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.tensors().values(), cache.tensors().values(), strict=True))

    @pytest.mark.parametrize("kind", ["adaptive_span", "additive", "cosine", "dense", "hard", "local", "sigmoid"])
    def test_dropout_only_in_training(self, kind):
        kernel, (q, k, v) = make(kind, dropout=0.5), draw(1, 2, 20, 20)
        assert torch.equal(kernel(q, k, v), kernel(q, k, v))
        kernel.train()
        assert not torch.equal(kernel(q, k, v), kernel(q, k, v))

    def test_masked_softmax_is_zero_where_nothing_is_allowed(self):
        scores = torch.randn(1, 1, 2, 3, requires_grad=True)
        weights = masked_softmax(scores, torch.tensor([[True, False, True], [False] * 3]))
        weights.square().sum().backward()
        assert weights[0, 0, 1].tolist() == [0, 0, 0]
        assert scores.grad[0, 0, 1].tolist() == [0, 0, 0]
        assert weights[0, 0, 0].sum().item() == pytest.approx(1)


class TestLinearInLength:
    """Twice the length: twice the largest tensor and not one operation more, forward and backward."""

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("linear", {}),
            ("linear", {"feature_map": "favor"}),
            ("low_rank", {"max_len": 2048}),
            ("sliding_window", {"window": 32}),
        ],
    )
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("padded", [False, True])
    def test_growth(self, kind, options, is_causal, padded):
        kernel = build_kernel(kind, options, num_heads=2, head_dim=8)
        if is_causal and "causal" not in kernel.supports:
            return
        real = torch.ones(1, 1024, dtype=torch.bool) if padded else None
        sizes = growth(kernel, (512, 1024), lambda L: Mask(real if real is None else real[:, :L], is_causal=is_causal))
        assert sizes[1].count == sizes[0].count
        assert sizes[1].largest <= 2 * sizes[0].largest


class TestSlidingWindow:
    @pytest.mark.parametrize("L", [1, 63, 256, 257, 400])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("bias", [None, ALiBi(2), T5Bias(2)], ids=["no bias", "ALiBi", "T5"])
    def test_blocks_equal_the_band(self, L, is_causal, bias):
        kernel = make("sliding_window", window=20)
        q, k, v = draw(2, 2, L, L, h_kv=1)
        key_mask = torch.rand(2, L) > 0.3
        key_mask[0, : L // 2] = False  # more than a window: rows without keys
        mask = Mask(key_mask, is_causal=is_causal, bias=None if bias is None else bias.double())
        weights = kernel.weights(q, k, mask)
        close(kernel(q, k, v, mask), weights @ v)
        distance = (torch.arange(L)[:, None] - torch.arange(L)).abs()
        assert (weights * (distance > 20)).abs().max() == 0

    def test_a_window_wider_than_a_block_of_64(self):
        kernel, (q, k, v) = make("sliding_window", window=100), draw(1, 2, 450, 450)
        close(kernel(q, k, v), kernel.weights(q, k) @ v)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("sliding_window", {"window": 4}), ("adaptive_span", {"max_span": 4, "ramp": 2, "initial_span": 2})],
    )
    def test_cache_stops_growing(self, kind, options):
        kernel, (q, k, v) = make(kind, noise=0.05, **options), draw(1, 2, 30, 30)
        cache, mask = kernel.make_cache(*empty(1)), Mask(is_causal=True)
        outs = [kernel(*(x[:, :, i : i + 1] for x in (q, k, v)), mask, cache) for i in range(30)]
        close(torch.cat(outs, 2), kernel(q, k, v, mask))
        assert cache.keys.shape[2] == 4
        assert int(cache.length) == 30

    @pytest.mark.parametrize(
        ("kind", "options"), [("sliding_window", {"window": 4}), ("sparse", {"block": 2, "num_random": 1})]
    )
    def test_bias_in_the_cache(self, kind, options):
        kernel, (q, k, v) = make(kind, **options), draw(1, 2, 40, 40)
        cache = kernel.make_cache(*empty(1))
        mask = Mask(is_causal=True, bias=T5Bias(2).double())
        pieces = zip(*(x.split([30, 1, 9], 2) for x in (q, k, v)), strict=True)
        close(torch.cat([kernel(*piece, mask, cache) for piece in pieces], 2), kernel(q, k, v, mask))

    def test_refusals(self):
        kernel, (q, k, v) = make("sliding_window"), draw(1, 2, 3, 4)
        refused("needs as many keys as queries, found 4 and 3", kernel, q, k, v)
        q, k, v = draw(1, 2, 3, 3)
        cache = kernel.make_cache(*empty(1))
        refused("decodes with a cache causally", kernel, q, k, v, None, cache)
        with pytest.raises(ValueError, match="takes no attn_mask beside a cache"):
            kernel(q, k, v, Mask(None, torch.ones(3, 3, dtype=torch.bool), True), cache)
        refused("does not support cross-attention", kernel.make_cache, *empty(1), cross=True)


class TestSigmoid:
    def test_it_counts(self):
        """Weights add up to the number of keys that match, which a softmax cannot tell."""
        kernel = make("sigmoid", heads=1, dim=1, initial_bias=-20.0)
        k = torch.tensor([1.0, -1.0, 1.0, 1.0]).view(1, 1, 4, 1).double()
        q = torch.full((1, 1, 1, 1), 40.0).double()
        assert kernel(q, k, torch.ones_like(k)).item() == pytest.approx(3, abs=1e-6)

    def test_other_heads_are_softmax(self):
        sigmoid, dense, (q, k, _) = make("sigmoid", num_sigmoid_heads=1), make("dense"), draw(1, 2, 3, 4)
        torch.testing.assert_close(sigmoid.weights(q, k)[:, 1], dense.weights(q, k)[:, 1])
        assert (sigmoid.weights(q, k)[:, 0].sum(-1) - 1).abs().min() > 1e-3
