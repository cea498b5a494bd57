import math

import pytest
import torch
from naive import bias_at

from mmattn import ALiBi, LearnedPositions, Rotary, SinusoidalPositions, T5Bias
from mmattn.positions import GridPositions, sinusoidal_1d, sinusoidal_2d, sinusoidal_in_mask
from tests.conftest import refused


def test_sinusoidal_1d():
    table = sinusoidal_1d(torch.arange(7), 6)
    for p in range(7):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert table[p, i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[p, 3 + i] == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoidal_2d():
    table = sinusoidal_2d(3, 5, 8)
    assert torch.equal(table[2, :, :4], sinusoidal_1d(torch.tensor(2), 4).expand(5, 4))
    assert torch.equal(table[:, 4, 4:], sinusoidal_1d(torch.tensor(4), 4).expand(3, 4))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_sinusoidal_in_mask(shift):
    """Each image's cells are at the same places with and without padding, from 0 to 2 pi."""
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[0, :3, :4] = True
    mask[1] = True
    found = sinusoidal_in_mask(mask, 8, shift=shift, dtype=torch.float64)
    alone = sinusoidal_in_mask(mask[:1, :3, :4], 8, shift=shift, dtype=torch.float64)
    assert torch.equal(found[:1, :3, :4], alone)
    for row, column in ((0, 0), (2, 1)):
        for start, place in ((0, (row + 1 - shift) / (3 + 1e-6)), (4, (column + 1 - shift) / (4 + 1e-6))):
            angles = [place * 2 * math.pi / 10000 ** (2 * i / 4) for i in range(2)]
            wanted = [f(angle) for angle in angles for f in (math.sin, math.cos)]
            assert found[0, row, column, start : start + 4].tolist() == pytest.approx(wanted, abs=1e-9)
    assert sinusoidal_in_mask(mask, 8, dtype=torch.bfloat16).dtype == torch.bfloat16
    refused("divisible by 4, found 6", sinusoidal_in_mask, mask, 6, dtype=torch.float32)


@pytest.mark.parametrize("positions", [SinusoidalPositions(8), LearnedPositions(9, 8)], ids=["sinusoidal", "learned"])
def test_offset_continues_positions(positions):
    x = torch.randn(2, 9, 8)
    whole = positions(x)
    assert not torch.equal(whole, x)
    torch.testing.assert_close(positions(x[:, 6:], 6), whole[:, 6:])
    torch.testing.assert_close(positions(x[:, 6:], torch.tensor(6)), whole[:, 6:])


def test_rotary():
    rotary = Rotary(8)
    q, k = torch.randn(1, 1, 12, 8, dtype=torch.float64), torch.randn(1, 1, 12, 8, dtype=torch.float64)
    turned_q, turned_k = rotary(q, k)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))
    # Scores depend only on offsets: shifting all positions by five gives the same.
    later_q, later_k = rotary(q, k, 5)
    torch.testing.assert_close(turned_q @ turned_k.mT, later_q @ later_k.mT)
    torch.testing.assert_close(rotary(q[:, :, 5:], k[:, :, 5:], torch.tensor(5))[0], turned_q[:, :, 5:])


def test_rotary_is_accurate_at_far_positions_in_half_precision():
    q = torch.randn(1, 1, 4, 8)
    exact, _ = Rotary(8)(q, q, 5000)
    half, _ = Rotary(8)(q.bfloat16(), q.bfloat16(), 5000)
    assert (exact - half).abs().max() < 0.05


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets(bidirectional):
    bias = T5Bias(2, num_buckets=16, max_distance=40, bidirectional=bidirectional).requires_grad_(False)
    offsets = torch.arange(-100, 101)
    expected = [[float(bias_at(bias, h, int(o))) for o in offsets] for h in range(2)]
    torch.testing.assert_close(bias.offsets(offsets), torch.tensor(expected))


def test_alibi_slopes():
    assert ALiBi(8).slopes.tolist() == [2.0**-i for i in range(1, 9)]
    # Twelve heads: those of eight, then every other one of sixteen (the paper's code).
    expected = [2.0**-i for i in range(1, 9)] + [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)]
    torch.testing.assert_close(ALiBi(12).slopes, torch.tensor(expected))
    assert not ALiBi(4).state_dict()  # no parameters to save


@pytest.mark.parametrize("bias", [T5Bias(2), ALiBi(2)], ids=["T5", "ALiBi"])
def test_dense_bias_is_bottom_right_aligned(bias):
    whole = bias.dense(6, 6)
    assert whole.shape == (2, 6, 6)
    assert torch.equal(bias.dense(2, 6), whole[:, 4:])
    assert torch.equal(bias.dense(6, 6)[:, 3], bias.offsets(torch.arange(-3, 3)))


def test_grid_positions():
    x = torch.zeros(2, 8, 3, 5)
    assert torch.equal(GridPositions(8)(x)[0], sinusoidal_2d(3, 5, 8).permute(2, 0, 1))
    assert torch.equal(GridPositions(8, "none")(x), x)
    coordinates = GridPositions(2, "coordinates")
    torch.nn.init.eye_(coordinates.project.weight)
    torch.nn.init.zeros_(coordinates.project.bias)
    grid = coordinates(torch.zeros(1, 2, 2, 4))[0]
    torch.testing.assert_close(grid[0], torch.tensor([[-0.5] * 4, [0.5] * 4]))
    torch.testing.assert_close(grid[1], torch.tensor([[-0.75, -0.25, 0.25, 0.75]] * 2))
    learned = GridPositions(8, "learned", grid_size=(3, 5))
    assert torch.equal(learned(x)[0], learned.weight[0])
    assert learned(torch.zeros(1, 8, 6, 10)).shape == (1, 8, 6, 10)


def test_invalid_arguments():
    refused("even embed_dim", sinusoidal_1d, torch.arange(3), 5)
    refused("even embed_dim", SinusoidalPositions, 5)
    refused("divisible by 4", sinusoidal_2d, 2, 2, 6)
    refused("divisible by 4", GridPositions, 6)
    refused("unknown grid positions 'learnt'", GridPositions, 8, "learnt")
    refused("need a grid_size", GridPositions, 8, "learned")
    refused("even head_dim", Rotary, 5)
    refused("a sequence of 4 tokens is longer than max_len=3", LearnedPositions(3, 4), torch.zeros(1, 4, 4))
