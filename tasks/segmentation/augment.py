"""Random augmentation of an image together with its mask, by torchvision's transforms; for training only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmattn.data.image.augment import check_limits, recolor
from mmattn.data.image.masks import VOID


class SegmentationAugment:
    """Random scale, crop, flip and color: a pure function of the image, its labels and an integer seed.

    A random window, whose size is that of the crop divided by the scale, is resized to the crop's size: pixels
    bilinearly, labels by nearest neighbor. Pixels beyond the image have the mean color and are void.

    Args:
        crop: (height, width) of the result; None: those of the image.
        scale: Smallest and largest zoom; its logarithm is drawn uniformly.
        flip: Probability of a horizontal flip.
        brightness: Range x of the factor, drawn from 1 - x .. 1 + x.
        contrast: Range x of the factor, drawn from 1 - x .. 1 + x.
        saturation: Range x of the factor, drawn from 1 - x .. 1 + x.
        hue: Range x of the shift, drawn from -x .. x, at most 0.5.

    Raises:
        ValueError: A value is out of range; names it.
    """

    def __init__(
        self,
        crop: Sequence[int] | None = None,
        scale: Sequence[float] = (0.75, 1.5),
        flip: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.0,
    ) -> None:
        import torchvision.transforms.v2.functional  # noqa: F401  here already, so that forked workers share it

        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise ValueError(f"crop: expected a height and a width from 1, found {crop}")
        if len(scale) != 2 or not 0.05 <= scale[0] <= scale[1] <= 20:
            raise ValueError(f"scale: expected a smallest and a largest zoom within 0.05 to 20, found {scale}")
        self.color = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        check_limits({"flip": flip, **self.color}, {"flip": 1.0, "hue": 0.5})
        self.crop = None if crop is None else (int(crop[0]), int(crop[1]))
        self.scale, self.flip = (float(scale[0]), float(scale[1])), flip

    def __call__(self, pixels: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample.

        Args:
            pixels: uint8 (H, W, 3).
            labels: uint8 (H, W).
            seed: Seed of all random numbers.

        Returns:
            Pixels (h, w, 3) and labels (h, w), uint8, of the crop's size.
        """
        from torchvision.transforms.v2 import functional as F
        from torchvision.tv_tensors import Image, Mask

        rng = random.Random(seed)
        draws = [rng.random() for _ in range(8)]
        image = Image(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))  # (3, H, W)
        mask = Mask(torch.from_numpy(np.array(labels)))  # (H, W)
        height, width = labels.shape
        crop = self.crop or (height, width)
        low, high = self.scale
        zoom = low * (high / low) ** draws[0]
        window = [max(1, round(side / zoom)) for side in crop]
        # If the window is larger than the image, the image's position in it is random.
        top, left = (
            round(draw * (side - w)) for draw, side, w in zip(draws[1:3], (height, width), window, strict=True)
        )
        inside = (max(top, 0), max(left, 0), min(top + window[0], height), min(left + window[1], width))
        beyond = [inside[1] - left, inside[0] - top, left + window[1] - inside[3], top + window[0] - inside[2]]
        image, mask = (self._cut(part, inside, beyond) for part in (image, mask))
        if window != list(crop):
            image = F.resize(image, list(crop), antialias=zoom < 1)
            # torchvision resizes masks by its older "nearest", which is shifted by half a pixel.
            exact = F.InterpolationMode.NEAREST_EXACT
            mask = Mask(F.resize(mask.as_subclass(torch.Tensor)[None], list(crop), interpolation=exact)[0])
        if draws[3] < self.flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image = recolor(image, self.color, draws[4:])
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy()), mask.numpy()

    def _cut(self, part: Any, inside: Sequence[int], beyond: Sequence[int]) -> Any:
        from torchvision.transforms.v2 import functional as F

        top, left, bottom, right = inside
        fill = VOID if part.ndim == 2 else part.float().mean((1, 2)).round().tolist()
        part = F.crop(part, top, left, bottom - top, right - left)
        return F.pad(part, list(beyond), fill=fill) if any(beyond) else part
