import pytest
import torch
from cases import close, draw, empty, equals_its_map, growth, make

from mmattn import KERNELS, ALiBi, Mask, T5Bias, build_kernel, capture, kernel_options, kinds_supporting
from mmattn.functional import masked_softmax
from mmattn.kernels import Kernel
from tests.conftest import refused

EVERY = sorted(KERNELS)
CAUSAL = Mask(is_causal=True)


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
    ("kind", "needs", "message"),
    [
        ("dens", (), r"unknown attention kind 'dens', did you mean 'dense'\?; the kinds are: .*dense"),
        ("monotonic", {"self"}, r"^attention kind 'monotonic' does not support bidirectional self-attention \("),
        ("monotonic", {"self"}, r"\(it supports: cross, cache\); kinds that do: .*dense, .*linear, .*sliding_window"),
        ("sliding_window", {"cross"}, r"support cross-attention \(it supports: self, causal, bias, cache, global\)"),
        ("sparse", {"cross"}, "'sparse' does not support cross-attention"),
        ("adaptive_span", {"cross"}, "'adaptive_span' does not support cross-attention"),
        ("low_rank", {"causal"}, "'low_rank' does not support causal attention"),
        ("linear", {"bias", "self"}, "'linear' does not support a position bias"),
        ("dense", {"global"}, "'dense' does not support global tokens .*; kinds that do: "),
        ("dense", {"casual"}, "unknown attention feature 'casual'; the features are: self, causal"),
    ],
)
def test_missing_features_raise(kind, needs, message):
    refused(message, build_kernel, kind, num_heads=2, head_dim=4, needs=needs)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sliding_window", {"windw": 3}, r"has no option 'windw', did you mean 'window'\?; its options are: window"),
        ("dense", {"window": 3}, r"'dense' has no option 'window' \(an option of .*sliding_window\); its options are"),
        ("linear", {"dropout": 0.1}, r"no option 'dropout' \(an option of .*\); its options are: feature_map"),
        ("sliding_window", {"window": 0}, "window must be at least 1 token, found 0"),
        ("sigmoid", {"num_sigmoid_heads": 3}, r"num_sigmoid_heads must be within 1\.\.2"),
        ("local", {"window": 0}, "window must be at least 1 token, found 0"),
        ("hard", {"top_k": 0}, "top_k must be at least 1 key, found 0"),
        ("adaptive_span", {"max_span": 0}, "max_span and ramp must be at least 1 token, found 0 and 32"),
        ("adaptive_span", {"ramp": 0}, "found 1024 and 0"),
        (
            "adaptive_span",
            {"max_span": 5, "initial_span": 6},
            r"initial_span must be within 0\.\.5 \(max_span\), found 6",
        ),
        ("monotonic", {"chunk": 0}, "chunk must be at least 1 key, found 0"),
        ("linear", {"feature_map": "relu"}, "feature_map must be one of elu, favor, found 'relu'"),
        ("linear", {"num_features": 8}, "options of feature_map='favor', not of 'elu'"),
        ("linear", {"seed": 1}, "options of feature_map='favor', not of 'elu'"),
        ("linear", {"feature_map": "favor", "num_features": 0}, "num_features must be at least 1, found 0"),
        ("low_rank", {"projected_length": 0}, "projected_length must be at least 1, found 0"),
        ("low_rank", {"rank": 0}, "rank must be at least 1, found 0"),
        ("low_rank", {"max_len": 0}, "max_len must be at least 1, found 0"),
        ("low_rank", {"share": "head"}, "share must be one of none, heads, keys_values, found 'head'"),
        ("low_rank", {"projected_length": None}, "needs projected_length, rank or both"),
        ("cosine", {"initial_scale": 0.0}, "scales must be 0 < initial_scale <= max_scale, found initial_scale="),
        ("cosine", {"initial_scale": 200.0}, "scales must be 0 < initial_scale <= max_scale, found initial_scale="),
        ("differential", {"dim": 3}, "head_dim must be even, found 3"),
        ("differential", {"lambda_init": 0.5, "layer": 2}, r"give lambda_init or layer, not both: found 0\.5 and 2"),
        ("differential", {"lambda_init": 1.0}, r"lambda_init must be within 0\.\.1, 1 excluded, found 1\.0"),
        ("sparse", {"block": 0}, "block must be at least 1 token, found 0"),
        ("sparse", {"num_global": -1}, "must be at least 0 blocks, found -1 and 3"),
        ("lsh", {"num_buckets": 3}, r"num_buckets must be even: .*, found 3"),
        ("lsh", {"num_hashes": 0}, "num_hashes and chunk must be at least 1, found 0 and 64"),
    ],
)
def test_invalid_options_raise(kind, options, message):
    refused(message, make, kind, **options)


X = torch.zeros(1, 2, 3, 4)
PAIRS = Mask(None, torch.ones(3, 3, dtype=torch.bool))
CAUSAL_PAIRS = Mask(None, torch.ones(3, 3, dtype=torch.bool), True)
CAUSAL_GLOBALS = Mask(is_causal=True, global_mask=torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        ("sliding_window", lambda kernel: kernel(X[:, :, :2], X, X), "needs as many keys as queries, found 3 and 2"),
        ("sparse", lambda kernel: kernel(X[:, :, :2], X, X), "'sparse' needs as many keys as queries, found 3 and 2"),
        ("linear", lambda kernel: kernel(X, X, X, PAIRS), "takes a key_mask, not an attn_mask"),
        ("linear", lambda kernel: kernel.weights(X, X, PAIRS), "takes a key_mask, not an attn_mask"),
        ("low_rank", lambda kernel: kernel(X, X, X, PAIRS), "takes a key_mask, not an attn_mask"),
        ("lsh", lambda kernel: kernel(X, X, X, PAIRS), r"'lsh' .* supports key_mask, but not attn_mask"),
        ("lsh", lambda kernel: kernel.weights(X, X, PAIRS), r"'lsh' .* supports key_mask, but not attn_mask"),
        ("lsh", lambda kernel: kernel(X, X[:, :1], X), r"k must be q, found shapes \(1, 1, 3, 4\) and \(1, 2, 3, 4\)"),
        ("lsh", lambda kernel: kernel.make_cache(*empty(1)), "'lsh' does not support cached decoding"),
        ("low_rank", lambda kernel: kernel.make_cache(*empty(1)), "decodes cross-attention only"),
        ("monotonic", lambda kernel: kernel.make_cache(*empty(1)), "decodes cross-attention only"),
        ("sliding_window", lambda kernel: kernel.make_cache(*empty(1), cross=True), "does not support cross-attention"),
        ("adaptive_span", lambda kernel: kernel.make_cache(*empty(1), cross=True), "does not support cross-attention"),
    ],
)
def test_invalid_calls_raise(kind, call, message):
    refused(message, call, make(kind))


def test_soft_alignment_cannot_be_decoded():
    kernel = make("monotonic")
    refused("only in evaluation", kernel.train(), X, X, X, None, kernel.make_cache(*empty(1), cross=True))


@pytest.mark.parametrize(
    ("kind", "mask", "message"),
    [
        ("linear", None, "'linear' decodes with a cache causally"),
        ("sparse", None, "'sparse' decodes with a cache causally"),
        ("sliding_window", None, "'sliding_window' decodes with a cache causally"),
        ("sliding_window", CAUSAL_PAIRS, "takes no attn_mask beside a cache"),
        ("sliding_window", CAUSAL_GLOBALS, "takes no global_mask beside a cache"),
        ("adaptive_span", CAUSAL_PAIRS, "takes no attn_mask beside a cache"),
    ],
)
def test_unsupported_calls_with_a_cache_raise(kind, mask, message):
    kernel = make(kind)
    refused(message, kernel, X, X, X, mask, kernel.make_cache(*empty(1, d_v=4)))


class TestEveryKernel:
    @pytest.mark.parametrize("kind", EVERY)
    def test_unsupported_features_raise(self, kind):
        kernel, (q, k, v) = make(kind), draw(1, 2, 3, 3)
        masks = {"causal": CAUSAL, "bias": Mask(bias=ALiBi(2)), "global": Mask(global_mask=torch.ones(1, 3).bool())}
        for feature, mask in masks.items():
            if feature in kernel.supports:
                kernel(q, k, v, mask)
                continue
            for call in (lambda mask=mask: kernel(q, k, v, mask), lambda mask=mask: kernel.weights(q, k, mask)):
                refused(f"attention kind '{kind}' does not support", call)

    @pytest.mark.parametrize("kind", [k for k in EVERY if "cross" in KERNELS[k].supports])
    @pytest.mark.parametrize(("L", "S"), [(5, 7), (7, 5), (1, 6), (6, 1)])
    def test_weights_reproduce_the_output_at_any_length(self, kind, L, S):
        kernel = make(kind)
        for is_causal in {False, "causal" in kernel.supports}:
            mask = Mask(torch.rand(2, S) > 0.5, is_causal=is_causal)
            equals_its_map(kernel, *draw(2, 2, L, S, h_kv=1), mask)

    @pytest.mark.parametrize("kind", sorted({*KERNELS} - {"linear", "lsh"}))
    @pytest.mark.parametrize("shape", [(50, 50), (2, 1, 50, 50), (2, 2, 50, 50), (1, 2, 1, 50)])
    def test_pair_masks(self, kind, shape):
        """In small windows and blocks."""
        options = {"low_rank": {"projected_length": None, "rank": 2}, "sliding_window": {"window": 2}}
        kernel = make(kind, **options.get(kind, {}))
        kernel.block = 2
        mask = Mask(torch.rand(2, 50) > 0.2, torch.rand(shape) > 0.4)
        weights = equals_its_map(kernel, *draw(2, 2, 50, 50), mask)
        assert weights.masked_select(~mask.dense(50, 50).expand_as(weights)).abs().max() == 0

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("linear", {}),
            ("linear", {"feature_map": "favor", "num_features": 5}),
            ("low_rank", {}),
            ("low_rank", {"projected_length": None, "rank": 2}),
            ("low_rank", {"projected_length": 2, "share": "none", "rank": 2}),
            ("cosine", {}),
            ("differential", {}),
            ("sparse", {"block": 2, "num_random": 1}),
            ("lsh", {"chunk": 4}),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_kept_and_finite(self, kind, options, dtype):
        """All tensors in half precision: large inputs, a sample without keys, zero vectors; also captured."""
        kernel = make(kind, heads=4, **options).to(dtype)
        inputs = draw(2, 4, 40, 40, h_kv=4 if kernel.shares_qk else 2)
        q, k, v = (x.mul(scale).to(dtype) for x, scale in zip(inputs, (30, 30, 1), strict=True))
        if kernel.shares_qk:
            k = q  # the gradient of normalizing a zero key overflows in half precision
        else:
            q[1, :, 0] = k[1, :, 0] = 0
        for x in (q, k, v):
            x.requires_grad_()
        mask = Mask(torch.rand(2, 40) > 0.3)
        mask.key_mask[0] = False
        out = kernel(q, k, v, mask)
        with capture(kernel):
            captured = kernel(q, k, v, mask)
        out.float().square().sum().backward()
        assert out.dtype == captured.dtype == dtype
        assert out[0].abs().max() == 0
        assert out.isfinite().all()
        assert all(x.grad.isfinite().all() for x in (q, k, v, *kernel.parameters()))

    @pytest.mark.parametrize(
        ("kind", "cross"),
        [
            *((kind, False) for kind in sorted({*kinds_supporting({"causal", "cache"})} - {"additive", "sigmoid"})),
            ("local", True),  # its cache counts the queries
        ],
    )
    def test_cache_is_reordered_with_beams(self, kind, cross):
        kernel, tensors = make(kind, **({"window": 1, "predict": False} if cross else {})), draw(3, 2, 6, 6)
        cache, mask, order = kernel.make_cache(*empty(3), cross=cross), Mask(is_causal=not cross), [2, 0, 0]

        def attend(q, k, v, new):
            return kernel(q[:, :, new], *(x if cross else x[:, :, new] for x in (k, v)), mask, cache)

        attend(*tensors, slice(4))
        cache.select(torch.tensor(order))
        tensors = [x[order] for x in tensors]
        close(attend(*tensors, slice(4, 6)), kernel(*tensors, mask)[:, :, 4:])
        assert int(cache.length) == 6
        assert not cross or make("local").make_cache(*empty(3), cross=True) is None  # a predicted position needs none
        rebuilt = type(cache)(**cache.tensors())
        assert all(torch.equal(a, b) for a, b in zip(rebuilt.tensors().values(), cache.tensors().values(), strict=True))

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("sliding_window", {"window": 4}),
            ("sparse", {"block": 2, "num_random": 1}),
            ("cosine", {}),
            ("differential", {}),
        ],
    )
    @pytest.mark.parametrize("bias", [ALiBi(4), T5Bias(4)], ids=["ALiBi", "T5"])
    def test_cached_decoding_with_bias(self, kind, options, bias):
        """With masked keys and grouped heads."""
        kernel, tensors = make(kind, heads=4, **options), draw(2, 4, 40, 40, h_kv=2)
        mask, cache = Mask(torch.rand(2, 40) > 0.3, is_causal=True, bias=bias.double()), kernel.make_cache(*empty(2))
        full, found, seen = kernel(*tensors, mask), [], 0
        for step in (29, 1, 1, 9):
            new, seen = slice(seen, seen + step), seen + step
            part = Mask(mask.key_mask[:, :seen], is_causal=True, bias=mask.bias)
            found.append(kernel(*(x[:, :, new] for x in tensors), part, cache))
        close(torch.cat(found, 2), full)
        equals_its_map(kernel, *tensors, mask)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("sliding_window", {"window": 4}), ("adaptive_span", {"max_span": 4, "ramp": 2, "initial_span": 2})],
    )
    def test_cache_size_is_bounded(self, kind, options):
        kernel, (q, k, v) = make(kind, noise=0.05, **options), draw(1, 2, 30, 30)
        cache = kernel.make_cache(*empty(1))
        outs = [kernel(*(x[:, :, i : i + 1] for x in (q, k, v)), CAUSAL, cache) for i in range(30)]
        close(torch.cat(outs, 2), kernel(q, k, v, CAUSAL))
        assert cache.keys.shape[2] == 4
        assert int(cache.length) == 30

    @pytest.mark.parametrize(
        "kind", ["adaptive_span", "additive", "cosine", "dense", "hard", "local", "monotonic", "sigmoid"]
    )
    def test_dropout_and_noise_only_in_training(self, kind):
        kernel, (q, k, v) = make(kind, **({} if kind == "monotonic" else {"dropout": 0.5})), draw(1, 2, 20, 20)
        assert torch.equal(kernel(q, k, v), kernel(q, k, v))
        kernel.train()
        assert not torch.equal(kernel(q, k, v), kernel(q, k, v))

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("linear", {}),
            ("linear", {"feature_map": "favor"}),
            ("low_rank", {"max_len": 2048}),
            ("sliding_window", {"window": 32}),
            ("sparse", {"block": 16, "num_random": 1}),
            ("lsh", {"chunk": 16}),
        ],
    )
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("plain", [True, False])
    def test_cost_is_linear_in_length(self, kind, options, is_causal, plain):
        """Twice the length: twice the largest tensor and no more operations, except in chunks; padded and biased."""
        kernel = build_kernel(kind, options, num_heads=2, head_dim=8)
        if is_causal and "causal" not in kernel.supports:
            return
        bias = None if plain or "bias" not in kernel.supports else ALiBi(2)
        lengths = (1024, 2048) if kind in ("sparse", "lsh") else (512, 1024)
        padding = None if plain else torch.ones(1, 2048, dtype=torch.bool)
        sizes = growth(kernel, lengths, lambda L: Mask(None if plain else padding[:, :L], None, is_causal, bias))
        assert sizes[1].largest <= 2 * sizes[0].largest
        assert sizes[1].largest < lengths[1] ** 2
        assert sizes[1].count == sizes[0].count or kind in ("sparse", "lsh")

    def test_masked_softmax_of_empty_rows_is_zero(self):
        scores = torch.randn(1, 1, 2, 3, requires_grad=True)
        weights = masked_softmax(scores, torch.tensor([[True, False, True], [False] * 3]))
        weights.square().sum().backward()
        assert weights[0, 0, 1].tolist() == [0, 0, 0]
        assert scores.grad[0, 0, 1].tolist() == [0, 0, 0]
        assert weights[0, 0, 0].sum().item() == pytest.approx(1)


class TestSigmoid:
    def test_sigmoid_weights_count_matches(self):
        """Weights sum to the number of matching keys, which a softmax cannot represent."""
        kernel = make("sigmoid", heads=1, dim=1, initial_bias=-20.0)
        k = torch.tensor([1.0, -1.0, 1.0, 1.0]).view(1, 1, 4, 1).double()
        q = torch.full((1, 1, 1, 1), 40.0).double()
        assert kernel(q, k, torch.ones_like(k)).item() == pytest.approx(3, abs=1e-6)

    def test_other_heads_are_softmax(self):
        sigmoid, dense, (q, k, _) = make("sigmoid", num_sigmoid_heads=1), make("dense"), draw(1, 2, 3, 4)
        torch.testing.assert_close(sigmoid.weights(q, k)[:, 1], dense.weights(q, k)[:, 1])
        assert (sigmoid.weights(q, k)[:, 0].sum(-1) - 1).abs().min() > 1e-3
