"""Augmentation of whole batches in training, a pure function of the images and of one integer seed per image.

All images are augmented at once, so the cost is low even in the training process. The random draws of an image depend
on its own seed alone; only the image that it is mixed with depends on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.data.seeds import SeededRandom

# Of BatchAugment's options.
LIMITS = {"pad": 512, "zoom": 0.9, "rand_augment": 16, "magnitude": 30, "erase": 1, "mixup": 100, "cutmix": 100}


def check_limits(given: Mapping[str, float], limits: Mapping[str, float], limit: float = 0.99) -> None:
    """Raises a ValueError that names a value outside 0 .. its own limit in ``limits``, by default ``limit``."""
    for name, value in given.items():
        if not 0 <= value <= limits.get(name, limit):
            raise ValueError(f"{name}: expected 0 to {limits.get(name, limit)}, found {value}")


def recolor(image: Any, most: Mapping[str, float], draws: Sequence[float]) -> Any:
    """Changes brightness, contrast, saturation and hue of an image that torchvision takes.

    Args:
        image: The image.
        most: Maximum change x by name: factors are 1 - x .. 1 + x, the hue shift is -x .. x.
        draws: Numbers in 0..1, one per name.
    """
    from torchvision.transforms.v2 import functional as V

    for draw, (name, value) in zip(draws, most.items(), strict=False):
        if value:
            shift = (2 * draw - 1) * value
            image = getattr(V, f"adjust_{name}")(image, shift if name == "hue" else 1 + shift)
    return image


class BatchAugment:
    """Crops, flips, RandAugment, random erasing, mixup and cutmix, in this order; a value of 0 disables each.

    Args:
        pad: Maximum translation in pixels, with reflected edges (He et al. 2016, section 4.2 pads with zeros).
        zoom: Maximum fraction of the side that a random crop removes, 0..0.9.
        flip: Whether half of the images are flipped horizontally.
        rand_augment: Operations per image (Cubuk et al. 2020, section 3).
        magnitude: Magnitude of these operations, 0..30.
        erase: Probability that a random rectangle is replaced by noise (Zhong et al. 2020, section 3).
        mixup: Parameter alpha of the mixing ratio's beta distribution (Zhang et al. 2018, section 2).
        cutmix: Likewise, for a pasted rectangle (Yun et al. 2019, section 3.1). With both, one is drawn per batch.

    >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    >>> mixed, targets = BatchAugment(mixup=0.2)(images, torch.eye(4), [1, 2, 3, 4])
    >>> mixed.shape, float(targets.sum())
    (torch.Size([4, 3, 32, 32]), 4.0)
    """

    def __init__(
        self,
        pad: int = 0,
        zoom: float = 0.0,
        flip: bool = False,
        rand_augment: int = 0,
        magnitude: int = 9,
        erase: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        given = {"pad": pad, "zoom": zoom, "rand_augment": rand_augment, "magnitude": magnitude, "erase": erase}
        check_limits(given | {"mixup": mixup, "cutmix": cutmix}, LIMITS)
        self.pad, self.zoom, self.flip = pad, zoom, flip
        self.rand_augment, self.magnitude, self.erase = rand_augment, magnitude, erase
        self.mixup, self.cutmix = mixup, cutmix
        if rand_augment:
            import torchvision.transforms.v2.functional  # noqa: F401  imported here so that forked workers share it

    def __call__(self, images: Tensor, targets: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            images: (B, 3, H, W) uint8.
            targets: (B, K) float.
            seeds: B integers, the seeds of all random draws.

        Returns:
            Images (B, 3, H, W), uint8 or, if mixed or zoomed, float in 0..1; targets (B, K).
        """
        images = self.change(images, seeds)
        if self.mixup or self.cutmix:
            images, targets = self._mix(images, targets, seeds)
        return images, targets

    @property
    def is_finite(self) -> bool:
        """Whether each image has few results, so that it pays to keep what is computed from them: flips alone."""
        return not any((self.pad, self.zoom, self.rand_augment, self.erase, self.mixup, self.cutmix))

    def change(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Augments each image for itself: all but mixup and cutmix. Images of one seed are changed alike."""
        draws = SeededRandom(seeds)
        if self.pad or self.flip:
            images = self._shift(images, draws(3))
        for _ in range(self.rand_augment):
            images = _rand_augment(images, draws(2), self.magnitude)
        if self.zoom:
            images = self._zoom(images, draws(3))
        if self.erase:
            images = _erase(images, draws(6), self.erase)
        return images

    def _shift(self, images: Tensor, u: Tensor) -> Tensor:
        """Translates and flips, by one gather of whole pixels."""
        B, _, H, W = images.shape
        down, right = ((u[n] * (2 * self.pad + 1)).long() - self.pad for n in (0, 1))
        rows = _mirrored(torch.arange(H) + down[:, None], H)  # (B, H)
        cols = _mirrored(torch.arange(W) + right[:, None], W)  # (B, W)
        if self.flip:
            cols = torch.where(u[2][:, None] < 0.5, cols.flip(1), cols)
        batch = torch.arange(B)[:, None, None]
        return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)

    def _zoom(self, images: Tensor, u: Tensor) -> Tensor:
        """Resizes a random crop of at least 1 - zoom of the side to the full size."""
        side = 1 - self.zoom * u[0]  # (B,)
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = side
        theta[:, :, 2] = (2 * u[1:] - 1).T * (1 - side)[:, None]
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(_as_float(images), grid, padding_mode="reflection", align_corners=False)

    def _mix(self, images: Tensor, targets: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mixes each image with the one before it, by a ratio drawn once per batch."""
        rng = np.random.RandomState(np.array([seeds[0] & 0xFFFFFFFF, seeds[0] >> 32 & 0xFFFFFFFF], np.uint32))
        cut = bool(self.cutmix) and (not self.mixup or rng.random_sample() < 0.5)
        spread = self.cutmix if cut else self.mixup
        share = float(rng.beta(spread, spread))
        if cut:
            H, W = images.shape[2:]
            high, wide = (round(size * (1 - share) ** 0.5) for size in (H, W))
            top, left = (int(rng.random_sample() * (1 + size - part)) for size, part in ((H, high), (W, wide)))
            other, images = images.roll(1, 0), images.clone()
            images[:, :, top : top + high, left : left + wide] = other[:, :, top : top + high, left : left + wide]
            share = 1 - high * wide / (H * W)
        else:
            images = _as_float(images)
            images = share * images + (1 - share) * images.roll(1, 0)
        return images, share * targets + (1 - share) * targets.roll(1, 0)


def shuffle_patches(images: Tensor, size: int, orders: Sequence[Tensor]) -> Tensor:
    """Permutes the square patches of images; incomplete patches at the lower and right edge are cut off.

    Args:
        images: (B, C, H, W) float.
        size: Side of the patches, in pixels.
        orders: Per image (cells,): the index of the patch at each position, row by row.
    """
    patches = F.unfold(images, size, stride=size)  # (B, C size size, cells)
    order = torch.stack(list(orders))[:, None].expand(-1, patches.shape[1], -1)
    sides = (images.shape[2] // size * size, images.shape[3] // size * size)
    return F.fold(patches.gather(2, order), sides, size, stride=size)


def _as_float(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Reflects indices beyond the edge into 0..size - 1."""
    period = max(2 * size - 2, 1)
    index = index.remainder(period)
    return torch.where(index >= size, period - index, index)


def _erase(images: Tensor, u: Tensor, probability: float) -> Tensor:
    """Fills a rectangle of 2 to 33 % of the area and an aspect ratio of 0.3 to 3.3 with noise of one seed per image."""
    H, W = images.shape[2:]
    area, ratio = 0.02 + 0.31 * u[0], (0.3 ** (1 - 2 * u[1]))
    high, wide = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    top, left = u[2] * (1 - high), u[3] * (1 - wide)
    rows, cols = (torch.arange(size)[None] + 0.5 for size in (H, W))
    inside_rows = (rows >= (top * H)[:, None]) & (rows < ((top + high) * H)[:, None])  # (B, H)
    inside_cols = (cols >= (left * W)[:, None]) & (cols < ((left + wide) * W)[:, None])  # (B, W)
    hit = (inside_rows[:, None, :, None] & inside_cols[:, None, None, :]) & (u[4] < probability)[:, None, None, None]
    # Noise from the position and the image's draw: a hash of a sine, cheap and identical in every process.
    place = torch.arange(3 * H * W).view(1, 3, H, W).float() + (u[5] * 1e4)[:, None, None, None]
    noise = (place.sin() * 43758.547).remainder(1)
    return torch.where(hit, (noise * 255).to(torch.uint8) if images.dtype == torch.uint8 else noise, images)


# The operations of RandAugment (Cubuk et al. 2020, section 3), and the strength of each at magnitude 30.
OPERATIONS: tuple[str, ...] = ("identity", "auto_contrast", "equalize", "rotate", "solarize", "color", "posterize")
OPERATIONS += ("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")


def _rand_augment(images: Tensor, u: Tensor, magnitude: int) -> Tensor:
    """One operation an image: those that drew the same one, of the same sign, are changed together."""
    chosen = (u[0] * len(OPERATIONS)).long()
    signs = u[1] < 0.5
    out = images.contiguous(memory_format=torch.channels_last).clone()
    for number, name in enumerate(OPERATIONS[1:], start=1):
        for sign in (False, True):
            rows = ((chosen == number) & (signs == sign)).nonzero()[:, 0]
            if len(rows):
                out[rows] = operate(images[rows], name, magnitude / 30 * (-1 if sign else 1))
    return out


def operate(images: Tensor, name: str, strength: float) -> Tensor:
    """Applies a RandAugment operation to uint8 images (B, 3, H, W); strength in -1..1, for some its absolute value."""
    from torchvision.transforms.v2 import functional as V

    size, side = abs(strength), images.shape[3]
    if name == "auto_contrast":
        return V.autocontrast(images)
    if name == "equalize":
        return V.equalize(images)
    if name == "solarize":
        return V.solarize(images, 255.0 * (1 - size))
    if name == "posterize":
        return V.posterize(images, 8 - round(4 * size))
    if name in ("color", "contrast", "brightness", "sharpness"):
        adjust = {"color": V.adjust_saturation, "contrast": V.adjust_contrast, "brightness": V.adjust_brightness}
        return adjust.get(name, V.adjust_sharpness)(images, 1 + 0.9 * strength)
    angle = 30.0 * strength if name == "rotate" else 0.0
    shift = [round(150 / 331 * side * strength) if name == f"translate_{axis}" else 0 for axis in "xy"]
    shear = [float(np.degrees(np.arctan(0.3 * strength))) if name == f"shear_{axis}" else 0.0 for axis in "xy"]
    return V.affine(images, angle=angle, translate=shift, scale=1.0, shear=shear, fill=[127.0] * 3)
