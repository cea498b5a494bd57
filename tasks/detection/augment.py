"""Random augmentation of images together with their boxes, by torchvision's transforms; for training only."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mmattn.data.image.augment import check_limits, recolor

TRIES = 10  # windows that are drawn until one has a box
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # least IoU of a crop and its best box, one drawn a crop (SSD, section 2.2)
SMALLEST_CROP = 0.3  # side of an IoU crop, as a fraction of the image's
LEAST = 0.1  # zoom: windows of a hundred times the image's area are in memory before they are resized
MIDDLE = (0.3, 0.7)  # where the four images of a mosaic meet, as a fraction of the sides
Draw = Callable[[], float]  # uniform in 0..1


class Target(NamedTuple):
    """An image with the boxes that a model is trained to find."""

    pixels: np.ndarray  # (h, w, 3) uint8
    boxes_xyxy: np.ndarray  # (N, 4) float, pixels of this image
    labels: np.ndarray  # (N,) int64


class _Window(NamedTuple):
    """A rectangle in pixels of an image, beyond which it may reach."""

    top: int
    left: int
    height: int
    width: int


class DetectionAugment:
    """Mosaic, zoom or IoU crop, flip and color: a pure function of the images of a batch and of one seed an image.

    An image is a window of the original, resized to its size: smaller ones enlarge objects, larger ones (zoom-out)
    shrink them; what is beyond the image has its mean color. A mosaic is four such windows beside each other, of the
    image and of three others of the batch (Bochkovskiy et al. 2020, section 3.3). A box of which too little is visible
    is dropped, the others are clipped. A window without any box is drawn again, if the image has one.

    Args:
        mosaic: Probability of a mosaic; its own images are zoomed by `mosaic_scale`.
        mosaic_scale: Smallest and largest zoom of the images in a mosaic.
        scale: Smallest and largest zoom of other images; the logarithm is drawn uniformly.
        aspect: Maximum change of the aspect ratio, a factor from 1.
        crop: Probability of an IoU crop instead of a zoom: a window of at least 0.3 of the sides whose IoU with a box
            is at least a random one (Liu et al. 2016, section 2.2).
        visible: Least share of a box that must be visible.
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
        mosaic: float = 0.0,
        mosaic_scale: Sequence[float] = (0.5, 1.0),
        scale: Sequence[float] = (0.75, 1.5),
        aspect: float = 1.2,
        crop: float = 0.0,
        visible: float = 0.3,
        flip: float = 0.5,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.0,
    ) -> None:
        import torchvision.transforms.v2.functional  # noqa: F401  here already, so that forked workers share it

        if not 1 <= aspect <= 4:
            raise ValueError(f"aspect: expected 1 to 4, found {aspect}")
        self.color = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        shares = {"mosaic": mosaic, "crop": crop, "visible": visible, "flip": flip}
        check_limits({**shares, **self.color}, {**dict.fromkeys(shares, 1.0), "hue": 0.5})
        self.mosaic, self.crop, self.visible, self.flip = mosaic, crop, visible, flip
        self.scale, self.mosaic_scale = _zooms("scale", scale), _zooms("mosaic_scale", mosaic_scale)
        self.aspect = float(aspect)

    def __call__(self, targets: Sequence[Target], seeds: Sequence[int]) -> list[Target]:
        """Augment a batch.

        Args:
            targets: The images, whose sizes may differ.
            seeds: An integer an image, the seed of all its random numbers.

        Returns:
            The images, each of its size.
        """
        return [self._one(targets, place, random.Random(seed).random) for place, seed in enumerate(seeds)]

    def _one(self, targets: Sequence[Target], place: int, draw: Draw) -> Target:
        from torchvision.transforms.v2 import functional as F

        if draw() < self.mosaic:
            image, boxes, labels = self._mosaic(targets, place, draw)
        else:
            image, boxes, labels = self._zoomed(targets[place], draw)
        if draw() < self.flip:
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        image = recolor(image, self.color, [draw() for _ in self.color])
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return Target(pixels, boxes.as_subclass(torch.Tensor).numpy().astype(np.float64), labels)

    def _zoomed(self, target: Target, draw: Draw) -> tuple[Any, Any, np.ndarray]:
        """A window of an image, at the image's size: image (3, h, w), boxes and labels."""
        height, width = target.pixels.shape[:2]
        is_crop = draw() < self.crop
        least = OVERLAPS[int(len(OVERLAPS) * draw())] if is_crop else 0.0
        chosen = _Window(0, 0, height, width)
        for _ in range(TRIES):
            zoom = _log(draw, (1.0, 1 / SMALLEST_CROP) if is_crop else self.scale)
            window = self._window(height, width, zoom, draw)
            if not len(target.labels):
                chosen = window
                break
            if self._shares(target, window).max() >= self.visible and _best_iou(target, window) >= least:
                chosen = window
                break
        return self._cut(target, chosen, (height, width))

    def _mosaic(self, targets: Sequence[Target], place: int, draw: Draw) -> tuple[Any, Any, np.ndarray]:
        """Four windows beside each other, at the size of the first image: image (3, h, w), boxes and labels."""
        from torchvision.tv_tensors import BoundingBoxes

        height, width = targets[place].pixels.shape[:2]
        low, high = MIDDLE
        middle_y, middle_x = (round(side * (low + (high - low) * draw())) for side in (height, width))
        rows, columns = ((0, middle_y), (middle_y, height)), ((0, middle_x), (middle_x, width))
        places = [place, *(int(len(targets) * draw()) for _ in range(3))]
        first = int(4 * draw())
        places = places[first:] + places[:first]
        canvas = torch.empty(3, height, width, dtype=torch.uint8)
        boxes, labels = [], []
        for n, number in enumerate(places):
            (top, bottom), (left, right) = rows[n // 2], columns[n % 2]
            target, size = targets[number], (bottom - top, right - left)
            if min(size) < 1:
                continue
            own = target.pixels.shape[:2]
            ratio = _log(draw, self.mosaic_scale) * min(height / own[0], width / own[1])
            window = [max(1, round(side / ratio)) for side in size]
            # A window larger than the image has the image at the middle of the mosaic.
            at_end = (n // 2 == 0, n % 2 == 0)
            start = [
                round(draw() * (side - w)) if w <= side else (side - w if end else 0)
                for side, w, end in zip(own, window, at_end, strict=True)
            ]
            image, own_boxes, own_labels = self._cut(target, _Window(*start, *window), size)
            canvas[:, top:bottom, left:right] = image
            boxes.append(own_boxes.as_subclass(torch.Tensor) + torch.tensor([left, top, left, top]))
            labels.append(own_labels)
        return (
            _image(canvas),
            BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=(height, width), clamping_mode=None),
            np.concatenate(labels),
        )

    def _window(self, height: int, width: int, zoom: float, draw: Draw) -> _Window:
        """A random window; the position of the image in one that is larger is random, too."""
        stretch = _log(draw, (1 / self.aspect, self.aspect)) ** 0.5
        high, wide = max(1, round(height / zoom * stretch)), max(1, round(width / zoom / stretch))
        return _Window(round(draw() * (height - high)), round(draw() * (width - wide)), high, wide)

    def _shares(self, target: Target, window: _Window) -> np.ndarray:
        """The visible share of each box, (N,)."""
        inside = _clipped(target.boxes_xyxy, window)
        own = target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]
        return (inside[:, 2:] - inside[:, :2]).prod(1) / np.maximum(own.prod(1), 1e-9)

    def _cut(self, target: Target, window: _Window, size: Sequence[int]) -> tuple[Any, Any, np.ndarray]:
        """The window at a size (h, w): image (3, h, w), the boxes that remain, and their labels."""
        from torchvision.transforms.v2 import functional as F
        from torchvision.tv_tensors import BoundingBoxes

        height, width = target.pixels.shape[:2]
        kept = self._shares(target, window) >= self.visible
        data = torch.from_numpy(_clipped(target.boxes_xyxy[kept], window))
        boxes: Any = BoundingBoxes(data, format="XYXY", canvas_size=(height, width), clamping_mode=None)
        image = _image(torch.from_numpy(np.array(target.pixels)).permute(2, 0, 1))  # (3, h, w)
        top, left = max(window.top, 0), max(window.left, 0)
        bottom, right = min(window.top + window.height, height), min(window.left + window.width, width)
        beyond = [left - window.left, top - window.top]
        beyond += [window.left + window.width - right, window.top + window.height - bottom]
        image, boxes = (F.crop(part, top, left, bottom - top, right - left) for part in (image, boxes))
        if any(beyond):
            fill = target.pixels[::4, ::4].reshape(-1, 3).mean(0).round().tolist()  # a sixteenth is fast
            image, boxes = F.pad(image, beyond, fill=fill), F.pad(boxes, beyond)
        if [window.height, window.width] != list(size):
            image, boxes = (F.resize(part, list(size), antialias=True) for part in (image, boxes))
        boxes = F.clamp_bounding_boxes(boxes, clamping_mode="hard")  # torchvision resizes them by rounded factors
        large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1).as_subclass(torch.Tensor)  # at least a pixel
        return image, _like(boxes, large), target.labels[kept][large.numpy()]


def _log(draw: Draw, limits: Sequence[float]) -> float:
    """A number between limits, its logarithm uniform."""
    return float(limits[0] * (limits[1] / limits[0]) ** draw())


def _image(pixels: torch.Tensor) -> Any:
    from torchvision.tv_tensors import Image

    return Image(pixels)


def _like(boxes: Any, kept: torch.Tensor) -> Any:
    from torchvision.tv_tensors import wrap

    return wrap(boxes.as_subclass(torch.Tensor)[kept], like=boxes)


def _zooms(name: str, given: Sequence[float]) -> tuple[float, float]:
    if len(given) != 2 or not LEAST <= given[0] <= given[1] <= 20:
        raise ValueError(f"{name}: expected a smallest and a largest zoom within {LEAST} to 20, found {given}")
    return float(given[0]), float(given[1])


def _clipped(boxes_xyxy: np.ndarray, window: _Window) -> np.ndarray:
    """Boxes (N, 4) clipped to a window, those outside without area; still in pixels of the image."""
    low = np.array([window.left, window.top], np.float64)
    high = low + np.array([window.width, window.height])
    return np.concatenate([np.clip(boxes_xyxy[:, :2], low, high), np.clip(boxes_xyxy[:, 2:], low, high)], 1)


def _best_iou(target: Target, window: _Window) -> float:
    """The greatest IoU of a window and a box."""
    inside = _clipped(target.boxes_xyxy, window)
    shared = (inside[:, 2:] - inside[:, :2]).prod(1)
    own = (target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]).prod(1)
    return float((shared / (own + window.height * window.width - shared)).max())
