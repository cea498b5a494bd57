"""The attention of recurrent decoders, monotonic and additive: properties not covered by rows_ground.py."""

from functools import partial

import pytest
import torch
from cases import Operations, close, draw, make
from torch.export import Dim, export

from mmattn import Mask
from mmattn.kernels import additive
from mmattn.kernels.monotonic import SCAN, MonotonicCache, _stops, expected_alignment, over_chunks
from tests.conftest import slow_but_first

make = partial(make, noise=0.05)


class TestMonotonic:
    @staticmethod
    def decode(kernel, q, k, v, mask=None):
        cache = kernel.make_cache(k[:, :, :0], v[:, :, :0], cross=True)
        return torch.cat([kernel(step, k, v, mask, cache) for step in q.split(1, dim=2)], dim=2), cache

    @pytest.mark.parametrize("chunk", slow_but_first([1, 3]))
    def test_decoding_step_exports_with_a_flat_cache(self, chunk):
        class Step(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.kernel = make("monotonic", chunk=chunk, initial_offset=-0.5)

            def forward(self, q, k, v, key_mask, position, seen):
                cache = MonotonicCache(position, seen)
                return self.kernel(q, k, v, Mask(key_mask), cache), cache.position, cache.seen

        step = Step().eval()

        def start(B, S):
            state = step.kernel.make_cache(torch.zeros(B, 1, 0, 4), torch.zeros(B, 1, 0, 3), cross=True)
            return (*draw(B, 2, 1, S, h_kv=1), torch.rand(B, S) > 0.2, *state.tensors().values())

        auto = Dim.AUTO
        shapes = ({0: auto}, {0: auto, 2: auto}, {0: auto, 2: auto}, {0: auto, 1: auto}, {0: auto}, {0: auto})
        program = export(step, start(2, 7), dynamic_shapes=shapes).module()
        for B, S in ((3, 70), (1, 2)):
            q, *rest, position, seen = start(B, S)
            ours = theirs = (position, seen)
            for _ in range(3):
                found, *theirs = program(q, *rest, *theirs)
                expected, *ours = step(q, *rest, *ours)
                torch.testing.assert_close(found, expected)
                assert torch.equal(theirs[0], ours[0])
                q = torch.randn_like(q)

    @pytest.mark.parametrize("chunk", [1, 4])
    @pytest.mark.parametrize(("L", "S"), [(1, 1), (6, 2), (5, 63), (5, 64), (7, 65), (9, 300)])
    def test_scan_equals_full_computation(self, chunk, L, S):
        kernel = make("monotonic", chunk=chunk, initial_offset=-1.5)
        q, k, v = draw(3, 2, L, S, h_kv=1)
        key_mask = torch.rand(3, S) > 0.3
        key_mask[0] = False
        pairs = torch.rand(L, S) > 0.2
        for mask in (None, Mask(key_mask), Mask(key_mask, pairs)):
            full = kernel(q, k, v, mask)
            cache = kernel.make_cache(k[:, :, :0], v[:, :, :0], cross=True)
            close(kernel(q, k, v, mask, cache), full)  # all queries at once
            if mask is None or mask.attn_mask is None:
                close(self.decode(kernel, q, k, v, mask)[0], full)

    @pytest.mark.parametrize("chunk", [1, 3])
    def test_output_does_not_depend_on_later_keys(self, chunk):
        """Keys after the one at which a query stopped may change without affecting its output."""
        kernel, (q, k, v) = make("monotonic", heads=1, chunk=chunk, initial_offset=0.0), draw(1, 1, 12, 60)
        cache = kernel.make_cache(k[:, :, :0], v[:, :, :0], cross=True)
        written, stops = [], []
        for step in q.split(1, dim=2):
            written.append(kernel(step, k, v, None, cache))
            stops.append(int(cache.position))
        assert len({stop for stop in stops if stop < 60}) > 3
        for i, stop in enumerate(stops):
            later_k, later_v = k.clone(), v.clone()
            later_k[:, :, stop + 1 :] = 50 * torch.randn_like(k[:, :, stop + 1 :])
            later_v[:, :, stop + 1 :] = 50 * torch.randn_like(v[:, :, stop + 1 :])
            past = torch.cat(written[: i + 1], dim=2)
            torch.testing.assert_close(self.decode(kernel, q[:, :, : i + 1], later_k, later_v)[0], past, rtol=0, atol=0)
            close(kernel(q[:, :, : i + 1], later_k, later_v), past)

    @pytest.mark.parametrize("chunk", slow_but_first([1, 3]))
    def test_decoding_is_linear(self, chunk):
        """Each key is read about once, not once per query; no operation creates a tensor as long as the source."""
        found = []
        for length in (1024, 2048):
            kernel = make("monotonic", heads=1, chunk=chunk, initial_offset=-2.5)
            q, k, v = draw(1, 1, length // 8, length)
            mask = Mask(torch.ones(1, length, dtype=torch.bool))
            with Operations() as reads:
                _, cache = self.decode(kernel, q, k, v, mask)
            assert int(cache.position) > length // 3  # it has advanced far
            assert reads.made < length
            found.append(reads.rows)
            # Every query scans at least one block and reads its chunk's keys and values; every key is passed once.
            assert reads.rows <= (length // 8 + length // SCAN + 1) * SCAN + length // 8 * 2 * chunk
        assert found[1] < 2.2 * found[0]

    @pytest.mark.parametrize("chunk", [1, 3, 30])
    def test_soft_equals_hard_for_certain_probabilities(self, chunk):
        kernel = make("monotonic", chunk=chunk, noise=0.0, initial_offset=0.0)
        with torch.no_grad():
            kernel.gain.fill_(1e4)
        q, k, v = draw(2, 2, 6, 20)
        torch.testing.assert_close(kernel(q, k, v), kernel.train()(q, k, v))

    def test_far_apart_energies_stay_finite(self):
        """The weights of a chunk whose energies are all far below the row's maximum still sum to one."""
        energy = torch.linspace(0, 5000, 50).view(1, 1, 1, 50).flip(-1).requires_grad_()
        alignment = torch.full((1, 1, 1, 50), 0.02)
        weights = over_chunks(alignment, energy, None, 4)
        weights.square().sum().backward()
        assert weights.sum().item() == pytest.approx(1, abs=1e-5)
        assert energy.grad.isfinite().all()

    @pytest.mark.parametrize(("L", "S"), [(1, 1), (1, 5), (5, 1), (13, 30), (30, 13)])
    def test_stops_equal_sequential_scan(self, L, S):
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


class TestAdditive:
    @pytest.mark.parametrize("piece", [1, 100, 1000])
    def test_chunked_equals_full(self, piece, monkeypatch):
        kernel, (q, k, v) = make("additive"), draw(2, 2, 9, 7, h_kv=1)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        found = []
        for size in (2**24, piece):
            monkeypatch.setattr(additive, "PIECE", size)
            out = kernel(q, k, v)
            found.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *kernel.parameters()])])
        close(*found)

    def test_chunking_bounds_memory(self, monkeypatch):
        kernel, (q, k, v) = make("additive", dim=32), draw(1, 2, 64, 64, d=32)
        monkeypatch.setattr(additive, "PIECE", 20_000)
        kept = []
        with (
            Operations() as reads,
            torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x),
        ):
            kernel(q, k, v)
        assert reads.made <= 20_000  # out of 262,144
        assert max(kept) <= 20_000
