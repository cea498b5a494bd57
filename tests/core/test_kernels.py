import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn import KERNELS, ALiBi, Mask, T5Bias, build_kernel, kernel_options, kinds_supporting
from mmattn.functional import masked_softmax
from mmattn.kernels import Kernel
from mmattn.kernels.monotonic import _stops, expected_alignment

EVERY = sorted(KERNELS)


def make(kind, heads=2, dim=4, **options):
    torch.manual_seed(0)
    return build_kernel(kind, options, num_heads=heads, head_dim=dim).double().eval()


def draw(B, h, L, S, d=4, h_kv=None, d_v=3):
    shapes = ((h, L, d), (h_kv or h, S, d), (h_kv or h, S, d_v))
    return tuple(torch.randn(B, *shape, dtype=torch.float64) for shape in shapes)


def empty(B, h_kv=2, d=4, d_v=3):
    """No keys and no values yet, as a cache starts."""
    return tuple(torch.zeros(B, h_kv, 0, size, dtype=torch.float64) for size in (d, d_v))


class TestTable:
    def test_names_match(self):
        assert all(kernel.kind == kind and issubclass(kernel, Kernel) for kind, kernel in KERNELS.items())

    def test_options(self):
        assert kernel_options("sliding_window") == {"window": 64}
        assert kernel_options("linear") == {}
        assert kernel_options("sigmoid") == {"num_sigmoid_heads": None, "initial_bias": -4.0, "dropout": 0.0}

    def test_kinds_supporting(self):
        assert {"dense", "linear", "sliding_window"} <= set(kinds_supporting({"self"}))
        assert not {"monotonic"} & set(kinds_supporting({"self"}))
        assert not {"linear", "monotonic"} & set(kinds_supporting({"bias", "causal"}))

    @pytest.mark.parametrize(
        ("kind", "options", "needs", "message"),
        [
            ("dens", {}, (), r"unknown attention kind 'dens', did you mean 'dense'\?; the kinds are: additive, dense"),
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
                r"does not support cross-attention \(it supports: self, causal, bias, cache\)",
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
                r"'dense' has no option 'window' \(an option of sliding_window\); its options are",
            ),
            (
                "linear",
                {"dropout": 0.1},
                (),
                r"'linear' has no option 'dropout' \(an option of .*\); it has no options",
            ),
            ("sliding_window", {"window": 0}, (), "window must be at least 1 token, found 0"),
            ("sigmoid", {"num_sigmoid_heads": 3}, (), r"num_sigmoid_heads must be within 1\.\.2"),
        ],
    )
    def test_refusals_at_construction(self, kind, options, needs, message):
        with pytest.raises(ValueError, match=message):
            build_kernel(kind, options, num_heads=2, head_dim=4, needs=needs)


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
                with pytest.raises(ValueError, match=f"attention kind '{kind}' does not support"):
                    call()

    @pytest.mark.parametrize("kind", [k for k in EVERY if "cross" in KERNELS[k].supports])
    @pytest.mark.parametrize(("L", "S"), [(5, 7), (7, 5), (1, 6), (6, 1)])
    def test_weights_explain_the_output_at_any_lengths(self, kind, L, S):
        kernel = make(kind)
        q, k, v = draw(2, 2, L, S, h_kv=1)
        key_mask = torch.rand(2, S) > 0.5
        for is_causal in {False, "causal" in kernel.supports}:
            mask = Mask(key_mask, is_causal=is_causal)
            torch.testing.assert_close(kernel(q, k, v, mask), kernel.weights(q, k, mask) @ v, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("kind", ["additive", "dense", "sigmoid", "sliding_window", "monotonic"])
    @pytest.mark.parametrize("shape", [(9, 9), (2, 1, 9, 9), (2, 2, 9, 9), (1, 2, 1, 9)])
    def test_pair_masks(self, kind, shape):
        kernel, (q, k, v) = make(kind), draw(2, 2, 9, 9)
        if kind == "sliding_window":
            kernel.window, kernel.block = 2, 3
        attn_mask = torch.rand(shape) > 0.4
        mask = Mask(torch.rand(2, 9) > 0.2, attn_mask)
        weights = kernel.weights(q, k, mask)
        assert weights.masked_select(~mask.dense(9, 9).expand_as(weights)).abs().max() == 0
        torch.testing.assert_close(kernel(q, k, v, mask), weights @ v, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("kind", ["dense", "linear", "sliding_window"])
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
        torch.testing.assert_close(found, full[:, :, 4:], rtol=0, atol=1e-12)
        assert int(cache.length) == 6
        rebuilt = type(cache)(**cache.tensors())
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.tensors().values(), cache.tensors().values(), strict=True))

    @pytest.mark.parametrize("kind", ["additive", "dense", "sigmoid"])
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


class Sizes(TorchDispatchMode):
    """Records how many operations run and how large the largest result is."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


class TestLinearInLength:
    """Twice the length: twice the largest tensor and not one operation more, forward and backward."""

    @pytest.mark.parametrize("kind", ["linear", "sliding_window"])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("padded", [False, True])
    def test_growth(self, kind, is_causal, padded):
        kernel = build_kernel(kind, {"window": 32} if kind == "sliding_window" else {}, num_heads=2, head_dim=8)
        sizes = []
        for L in (512, 1024):
            q, k, v = (torch.randn(1, 2, L, 8, requires_grad=True) for _ in range(3))
            mask = Mask(torch.ones(1, L, dtype=torch.bool) if padded else None, is_causal=is_causal)
            with Sizes() as found:
                kernel(q, k, v, mask).sum().backward()
            sizes.append(found)
        assert sizes[1].count == sizes[0].count
        assert sizes[1].largest <= 2 * sizes[0].largest


class TestSlidingWindow:
    @pytest.mark.parametrize("L", [1, 63, 128, 129, 200, 256])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("bias", [None, ALiBi(2), T5Bias(2)], ids=["no bias", "ALiBi", "T5"])
    def test_blocks_equal_the_band(self, L, is_causal, bias):
        kernel = make("sliding_window", window=20)
        q, k, v = draw(2, 2, L, L, h_kv=1)
        key_mask = torch.rand(2, L) > 0.3
        key_mask[0, : L // 2] = False  # more than a window: rows without keys
        mask = Mask(key_mask, is_causal=is_causal, bias=None if bias is None else bias.double())
        weights = kernel.weights(q, k, mask)
        torch.testing.assert_close(kernel(q, k, v, mask), weights @ v, rtol=0, atol=1e-12)
        distance = (torch.arange(L)[:, None] - torch.arange(L)).abs()
        assert (weights * (distance > 20)).abs().max() == 0

    def test_a_window_wider_than_a_block_of_64(self):
        kernel, (q, k, v) = make("sliding_window", window=100), draw(1, 2, 450, 450)
        torch.testing.assert_close(kernel(q, k, v), kernel.weights(q, k) @ v, rtol=0, atol=1e-12)

    def test_cache_stops_growing(self):
        kernel = make("sliding_window", window=4)
        cache = kernel.make_cache(*empty(1))
        q, k, v = draw(1, 2, 30, 30)
        mask = Mask(is_causal=True)
        outs = [kernel(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1], mask, cache) for i in range(30)]
        torch.testing.assert_close(torch.cat(outs, 2), kernel(q, k, v, mask), rtol=0, atol=1e-12)
        assert cache.keys.shape[2] == 4
        assert int(cache.length) == 30

    def test_bias_in_the_cache(self):
        kernel, (q, k, v) = make("sliding_window", window=4), draw(1, 2, 12, 12)
        cache = kernel.make_cache(*empty(1))
        mask = Mask(is_causal=True, bias=T5Bias(2).double())
        pieces = zip(q.split([7, 1, 4], 2), k.split([7, 1, 4], 2), v.split([7, 1, 4], 2), strict=True)
        found = torch.cat([kernel(*piece, mask, cache) for piece in pieces], 2)
        torch.testing.assert_close(found, kernel(q, k, v, mask), rtol=0, atol=1e-12)

    def test_refusals(self):
        kernel, (q, k, v) = make("sliding_window"), draw(1, 2, 3, 4)
        with pytest.raises(ValueError, match="needs as many keys as queries, found 4 and 3"):
            kernel(q, k, v)
        q, k, v = draw(1, 2, 3, 3)
        cache = kernel.make_cache(*empty(1))
        with pytest.raises(ValueError, match="decodes with a cache causally"):
            kernel(q, k, v, None, cache)
        with pytest.raises(ValueError, match="takes no attn_mask beside a cache"):
            kernel(q, k, v, Mask(None, torch.ones(3, 3, dtype=torch.bool), True), cache)
        with pytest.raises(ValueError, match="does not support cross-attention"):
            kernel.make_cache(*empty(1), cross=True)


class TestLinear:
    def test_chunks_do_not_show(self):
        kernel, (q, k, v) = make("linear"), draw(1, 2, 150, 150)
        mask = Mask(is_causal=True)
        torch.testing.assert_close(kernel(q, k, v, mask), kernel.weights(q, k, mask) @ v, rtol=0, atol=1e-12)

    def test_state_does_not_grow(self):
        kernel, (q, k, v) = make("linear"), draw(1, 2, 9, 9)
        cache = kernel.make_cache(*empty(1))
        shapes = set()
        for i in range(9):
            kernel(q[:, :, i : i + 1], k[:, :, i : i + 1], v[:, :, i : i + 1], None, cache)
            shapes.add(tuple(cache.state.shape))
        assert shapes == {(1, 2, 4, 4)}

    def test_large_future_leaves_no_trace_in_single_precision(self):
        kernel = make("linear").float()
        kernel.chunk = 4
        q, k, v = (t.float() for t in draw(1, 2, 12, 12))
        before = kernel(q, k, v, Mask(is_causal=True))
        v[:, :, 9:] = 1e8
        assert torch.equal(kernel(q, k, v, Mask(is_causal=True))[:, :, :9], before[:, :, :9])

    def test_refusals(self):
        kernel, (q, k, v) = make("linear"), draw(1, 2, 3, 3)
        pairs = Mask(None, torch.ones(3, 3, dtype=torch.bool))
        for call in (lambda: kernel(q, k, v, pairs), lambda: kernel.weights(q, k, pairs)):
            with pytest.raises(ValueError, match="takes a key_mask, not an attn_mask"):
                call()
        cache = kernel.make_cache(*empty(1))
        with pytest.raises(ValueError, match="decodes with a cache causally"):
            kernel(q, k, v, None, cache)


class TestMonotonic:
    def test_soft_is_hard_where_probabilities_are_certain(self):
        certain = (torch.rand(2, 3, 6, 9) > 0.6).double()
        stops = _stops(certain.bool())
        hard = (stops.unsqueeze(-1) == torch.arange(9)).double()
        torch.testing.assert_close(expected_alignment(certain), hard)

    @pytest.mark.parametrize(("L", "S"), [(1, 1), (1, 5), (5, 1), (13, 30), (30, 13)])
    def test_stops_equal_a_scan(self, L, S):
        stop = torch.rand(2, 2, L, S) > 0.7
        start = torch.randint(0, S + 1, (2, 2))
        found = _stops(stop, start)
        for b in range(2):
            for h in range(2):
                position = int(start[b, h])
                for i in range(L):
                    while position < S and not stop[b, h, i, position]:
                        position += 1
                    assert found[b, h, i] == position

    def test_extreme_probabilities_stay_finite(self):
        """The published closed form divides by a product that is zero here."""
        energy = torch.randn(1, 2, 30, 400).mul(60).requires_grad_()
        alignment = expected_alignment(energy.sigmoid())
        alignment.square().sum().backward()
        assert alignment.min() >= 0
        assert alignment.sum(-1).max() <= 1 + 1e-5
        assert energy.grad.isfinite().all()

    def test_noise_only_in_training(self):
        kernel, (q, k, _) = make("monotonic"), draw(1, 2, 3, 4)
        assert torch.equal(kernel.weights(q, k), kernel.weights(q, k))
        kernel.train()
        assert not torch.equal(kernel.weights(q, k), kernel.weights(q, k))

    def test_it_never_goes_back(self):
        kernel, (q, k, _) = make("monotonic", initial_offset=0.5), draw(2, 2, 8, 20)
        weights = kernel.weights(q, k)
        places = torch.where(weights.any(-1), weights.argmax(-1), 20)
        assert (places.diff(dim=-1) >= 0).all()
        assert set(weights.unique().tolist()) == {0.0, 1.0}

    def test_refusals(self):
        kernel, (q, k, v) = make("monotonic"), draw(1, 2, 3, 3)
        with pytest.raises(ValueError, match="decodes cross-attention only"):
            kernel.make_cache(*empty(1))
        cache = kernel.make_cache(*empty(1), cross=True)
        with pytest.raises(ValueError, match="only in evaluation"):
            kernel.train()(q, k, v, None, cache)


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
