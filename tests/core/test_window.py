"""Sliding windows beyond the rows: both paths, global tokens of any number and position, precision, cost, export."""

import pytest
import torch
from cases import close, draw, equals_its_map, growth, make
from torch import nn

from mmattn import ALiBi, Mask, T5Bias, build_kernel
from mmattn.kernels import banded, sliding_window
from mmattn.kernels.banded import bands
from tests.conftest import assert_onnx_equals_eager


@pytest.fixture(params=["in place", "side by side"])
def path(request, monkeypatch):
    """Both implementations of windows."""
    if request.param == "side by side":
        monkeypatch.setattr(sliding_window, "_in_place", lambda q: False)
    return request.param


def window(size=3, block=4, heads=4):
    kernel = make("sliding_window", heads=heads, window=size)
    kernel.block = block
    return kernel


def marked(length, *places):
    mask = torch.zeros(len(places), length, dtype=torch.bool)
    for sample, marks in enumerate(places):
        mask[sample, list(marks)] = True
    return mask


class TestBothPaths:
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("has_globals", [False, True])
    @pytest.mark.parametrize("pairs", [None, (41, 41), (2, 1, 41, 41), (1, 4, 41, 41), (2, 1, 1, 41)])
    def test_all_masks_combined(self, path, is_causal, has_globals, pairs):
        """Padding on the right and holes, pair masks, a learned bias, grouped queries, values of another size."""
        torch.manual_seed(1)
        key_mask = torch.rand(2, 41) > 0.2
        key_mask[0, 30:] = False
        bias = T5Bias(4).double()
        nn.init.normal_(bias.weight)
        global_mask = marked(41, (0, 13), (2, 25, 40)) if has_globals else None
        mask = Mask(key_mask, None if pairs is None else torch.rand(pairs) > 0.3, is_causal, bias, global_mask)
        equals_its_map(window(), *draw(2, 4, 41, 41, h_kv=2), mask)

    @pytest.mark.parametrize("block", [1, 3, 64])
    @pytest.mark.parametrize("size", [1, 10, 70])
    def test_block_size_invariance(self, path, block, size):
        equals_its_map(window(size, block, heads=2), *draw(1, 2, 150, 150), Mask(global_mask=marked(150, (77,))))

    @pytest.mark.parametrize("length", [1, 2, 6, 63, 256, 257, 400])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("has_globals", [False, True])
    def test_any_length(self, path, length, is_causal, has_globals):
        """Blocks of 64; more consecutive masked keys than a window is long."""
        key_mask = torch.rand(2, length) > 0.3
        key_mask[0, : length // 2] = False
        global_mask = marked(length, (length - 1,), ()) if has_globals else None
        mask = Mask(key_mask, None, is_causal, ALiBi(2).double(), global_mask)
        equals_its_map(window(20, 64, heads=2), *draw(2, 2, length, length, h_kv=1), mask)

    def test_memory_layout_invariance(self, path):
        """Heads interleaved, as a projection leaves them, or contiguous."""
        kernel, tensors = window(), draw(2, 4, 30, 30)
        beside = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
        close(kernel(*beside), kernel(*tensors), 1e-14)


def test_block_batching_respects_the_memory_limit(monkeypatch):
    kernel, tensors = window(), draw(1, 4, 60, 60)
    mask = Mask(bias=ALiBi(4).double())
    whole = kernel(*tensors, mask)
    monkeypatch.setattr(banded, "SCORES", 2 * 4 * 10)
    assert [piece.blocks for piece in bands(60, 4, 3, 3)] == [1, 2, 2, 2, 2, 2, 2, 1, 1]
    close(kernel(*tensors, mask), whole, 1e-14)
    equals_its_map(kernel, *tensors, mask)


@pytest.mark.parametrize(("left", "right"), [(1, 1), (5, 0), (4, 4), (9, 9)])
@pytest.mark.parametrize("length", [1, 4, 5, 37])
def test_bands_cover_all_queries_and_their_keys(length, left, right):
    queries = []
    for piece in bands(length, 4, left, right):
        for i in range(piece.blocks):
            start = piece.start + i * piece.rows
            first = piece.low + i * piece.rows
            queries += range(start, start + piece.rows)
            assert first == max(0, start - left)
            assert first + piece.width == min(length, start + piece.rows + right)
            assert piece.column == first - (start - left)
    assert queries == list(range(length))


class TestGlobalTokens:
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("places", [((), ()), ((), (5,)), ((29,), (0, 1, 2, 3)), (range(30), (7,))])
    def test_any_number_at_any_position(self, path, places, is_causal):
        weights = equals_its_map(
            window(), *draw(2, 4, 30, 30), Mask(is_causal=is_causal, global_mask=marked(30, *places))
        )
        distance = torch.arange(30) - torch.arange(30)[:, None]
        for sample, marks in enumerate(places):
            seen = distance.abs() <= 3
            seen[list(marks)] = seen[:, list(marks)] = True
            seen = seen & (distance <= 0) if is_causal else seen
            assert torch.equal(weights[sample, 0] > 0, seen)

    def test_masked_global_tokens_are_not_attended(self, path):
        key_mask = torch.ones(2, 30, dtype=torch.bool)
        key_mask[0, 20:], key_mask[1] = False, False
        weights = equals_its_map(window(), *draw(2, 4, 30, 30), Mask(key_mask, global_mask=marked(30, (4, 25), (0,))))
        assert weights[0, :, :, 20:].abs().max() == 0
        assert weights[0, 0, 25, :20].min() > 0  # masked as a key, it still attends
        assert weights[1].abs().max() == 0

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_cost_is_linear_in_length(self, path, is_causal):
        """Twice the length: twice the largest tensor and no more operations, forward and backward."""
        kernel = build_kernel("sliding_window", {"window": 32}, num_heads=2, head_dim=8)
        sizes = growth(kernel, (512, 1024), lambda L: Mask(is_causal=is_causal, global_mask=marked(L, (0, 300))))
        assert sizes[1].count == sizes[0].count
        assert sizes[1].largest <= 2 * sizes[0].largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Scores far above one, a sample without keys; sums are kept in single precision for correct global weights."""
    kernel, (q, k, v) = window(), draw(2, 4, 40, 40, d_v=4)
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    key_mask[0] = False
    mask = Mask(key_mask, global_mask=marked(40, (), (3, 20)))
    halves = [(4 * x).to(dtype).requires_grad_() for x in (q, k, v)]
    found = kernel.to(dtype)(*halves, mask)
    found.float().square().sum().backward()
    exact = kernel(*(x.detach().double() for x in halves), mask)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() < 40 * torch.finfo(dtype).eps
    assert all(x.grad.isfinite().all() for x in halves)


@pytest.mark.slow
def test_onnx_accepts_any_number_of_global_tokens(tmp_path):
    class Window(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = window(heads=2).float()

        def forward(self, x, global_mask):
            q, k, v = x.split(2, dim=1)
            return self.kernel(q, k, v, Mask(is_causal=True, global_mask=global_mask))

    def arguments(batch, length, *places):
        return torch.randn(batch, 6, length, 4), marked(length, *places)

    dynamic = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    dynamic = (*dynamic, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC})
    others = (arguments(1, 20, (3, 9, 19)), arguments(2, 9, (), ()), arguments(3, 1, (0,), (), ()))
    assert_onnx_equals_eager(Window(), arguments(2, 13, (3, 4), (0,)), others, dynamic, tmp_path)
