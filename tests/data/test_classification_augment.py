"""Augmentation of whole batches: draws depend only on each image's seed, and every operation is as documented."""

from __future__ import annotations

import pytest
import torch

from mmattn.data.errors import ConfigError
from mmattn.data.image.augment import OPERATIONS, BatchAugment, operate
from mmattn.data.options import from_options
from mmattn.data.seeds import SeededRandom
from tests.conftest import refused

SEEDS = list(range(100, 108))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (8, 3, 16, 12), dtype=torch.uint8)


def test_draws_are_uniform_and_deterministic() -> None:
    u = SeededRandom(range(20_000))(4)
    assert u.shape == (4, 20_000)
    assert 0 <= u.min() < u.max() < 1
    assert (u.mean(1) - 0.5).abs().max() < 0.01
    assert torch.corrcoef(u)[0, 1:].abs().max() < 0.03
    torch.testing.assert_close(SeededRandom([7, 9])(3)[:, 1], SeededRandom([9])(3)[:, 0])
    assert SeededRandom([2**63 - 1])(1).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{"pad": 3}, {"flip": True}, {"zoom": 0.4}, {"erase": 1.0}, {"rand_augment": 2}, {"pad": 2, "flip": True}],
)
def test_single_image_equals_batched(images: torch.Tensor, options: dict) -> None:
    augment, targets = BatchAugment(**options), torch.eye(8)
    state = torch.random.get_rng_state()
    together, same = augment(images, targets, SEEDS)
    alone = torch.cat([augment(images[n : n + 1], targets[:1], SEEDS[n : n + 1])[0] for n in range(8)])
    torch.testing.assert_close(together, alone)
    assert torch.equal(same, targets)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not used"
    assert not torch.equal(together.float(), images.float())
    other, _ = augment(images, targets, [seed + 50 for seed in SEEDS])
    assert not torch.equal(other, together)


def test_shifts_and_zoom(images: torch.Tensor) -> None:
    """A shifted image is a crop of the reflection-padded one; a flipped one is the image or its mirror image."""
    shifted, _ = BatchAugment(pad=3)(images, torch.eye(8), SEEDS)
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").byte()
    for n in range(8):
        windows = [padded[n, :, i : i + 16, j : j + 12] for i in range(7) for j in range(7)]
        assert sum(torch.equal(shifted[n], window) for window in windows) == 1
    flipped, _ = BatchAugment(flip=True)(images, torch.eye(8), SEEDS)
    mirrored, kept = ([torch.equal(a, b) for a, b in zip(flipped, x, strict=True)] for x in (images.flip(3), images))
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 8
    zoomed, _ = BatchAugment(zoom=0.5)(torch.full_like(images, 51), torch.eye(8), SEEDS)
    torch.testing.assert_close(zoomed, torch.full_like(zoomed, 0.2))


def test_erasing_changes_only_a_rectangle(images: torch.Tensor) -> None:
    erased, _ = BatchAugment(erase=1.0)(images, torch.eye(8), SEEDS)
    changed = (erased != images).any(1)  # (8, 16, 12)
    for image in changed:
        rows, cols = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        box = image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        assert box.float().mean() > 0.9, "a rectangle is erased"
    assert 0.01 < changed.float().mean() < 0.35
    none, _ = BatchAugment(erase=1e-6)(images, torch.eye(8), SEEDS)
    assert torch.equal(none, images)


def test_mixup_and_cutmix(images: torch.Tensor) -> None:
    mixed, targets = BatchAugment(mixup=0.5)(images, torch.eye(8), SEEDS)
    share = targets[0, 0]
    expected = (share * images.float() + (1 - share) * images.roll(1, 0).float()) / 255
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(targets, share * torch.eye(8) + (1 - share) * torch.eye(8).roll(1, 0))
    for first in range(20):
        mixed, targets = BatchAugment(cutmix=1.0)(images, torch.eye(8), [first, *SEEDS[1:]])
        own = (mixed == images).all(1).float().mean()
        assert abs(float(targets[0, 0]) - float(own)) < 0.02, "the target's weight is the area's share"
        assert ((mixed == images) | (mixed == images.roll(1, 0))).all()
    # With both enabled, one of them is drawn.
    kinds = {BatchAugment(mixup=0.5, cutmix=1.0)(images, torch.eye(8), [s, *SEEDS[1:]])[0].dtype for s in range(20)}
    assert kinds == {torch.uint8, torch.float32}


def test_operations_keep_shape_and_dtype(images: torch.Tensor) -> None:
    for name in OPERATIONS[1:]:
        for strength in (-0.7, 0.7):
            out = operate(images, name, strength)
            assert (out.shape, out.dtype) == (images.shape, torch.uint8), name
    moved = operate(images, "translate_x", 0.3)
    shift = round(150 / 331 * 12 * 0.3)
    assert torch.equal(moved[..., shift:], images[..., :-shift])
    assert torch.equal(operate(images, "posterize", 1.0), images & 0b11110000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pda": 3}, r"pda: unknown option \(did you mean 'pad'\?\); expected one of: pad, zoom, flip, "),
        ({"erase": 2}, "erase: expected 0 to 1, found 2"),
        ({"zoom": -1}, "zoom: expected 0 to"),
        ({"pad": None}, "'<=' not supported"),
    ],
)
def test_invalid_options(options: dict, message: str) -> None:
    refused(rf"^data\.augment\.{message}", from_options, BatchAugment, options, "data.augment", error=ConfigError)
    assert from_options(BatchAugment, None, "data.augment") is from_options(BatchAugment, {}, "data.augment") is None
