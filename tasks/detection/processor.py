"""The processor of detection: images to tensors, boxes to targets and back; shipped with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest, shorten
from mmattn.data.image.processor import MAX_PIXELS, ImageProcessor, image_size, load_image
from mmattn.data.names import nfc
from mmattn.data.processor import Processor
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.augment import DetectionAugment, Target
from mmattn.tasks.detection.boxes import Detections, Truth, xyxy_to_cxcywh
from mmattn.tasks.detection.data import DetectionBatch, DetectionDataset, DetectionSample, Prepared

RESIZE = ("fit", "pad", "squash")
THRESHOLD = 0.5  # of a class, until validation chooses one
ABLATION = "image"


class DetectionProcessor(Processor[DetectionSample, DetectionBatch]):
    """Converts images to tensors, boxes to targets, and predictions to boxes in pixels of the original images.

    Args:
        classes: The classes, with the numbers by which the training data's files name them.
        size: Size of input images in pixels, a side or (H, W); None: images are not resized.
        resize: How images are resized:

            - `fit`: with their aspect ratio, so that the shorter side is at most H and the longer one at most W, for
              images of either orientation, rounded as by DETR; a batch is padded to its largest image and to a
              `multiple`;
            - `pad`: with their aspect ratio, so that they fit into H x W, and padded to H x W;
            - `squash`: to H x W.

        multiple: With `fit`, or without `size`: sides of a batch are multiples of this number of pixels.
        mean: Mean of pixel values in 0..1, per channel.
        std: Standard deviation of pixel values in 0..1, per channel.
        thresholds: Score of each class from which boxes are predicted.
    """

    KEYS = frozenset({"image", "classes", "thresholds"})
    least: ClassVar[int] = 1  # number of classes

    def __init__(
        self,
        classes: Categories,
        size: int | Sequence[int] | None = None,
        resize: str = "fit",
        multiple: int = 32,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        thresholds: Sequence[float] = (),
    ) -> None:
        self.size = None if size is None else _sides(size)
        if resize not in RESIZE:
            raise ValueError(f"resize: expected one of {', '.join(RESIZE)}, found {resize!r}{nearest(resize, RESIZE)}")
        if size is None and resize != "fit":
            raise ValueError(f"size: expected a side or (height, width) for resize {resize!r}, found none")
        if not 1 <= multiple <= 1024:
            raise ValueError(f"multiple: expected 1 to 1024, found {multiple}")
        self.classes = Categories(tuple(map(str, classes.names)), tuple(map(int, classes.ids)))
        self.index = {nfc(name): number for number, name in enumerate(self.classes.names)}
        count = len(self.classes.names)
        if not self.least <= len(self.index) == count or len(set(self.classes.ids)) != count:
            raise DataError(
                "classes", f"at least {self.least}, with different names and numbers", shorten(list(classes.names))
            )
        self.resize, self.multiple = resize, int(multiple)
        self.image = ImageProcessor(mean=mean, std=std)
        self.thresholds = [float(one) for one in thresholds] or [THRESHOLD] * len(self.index)
        if len(self.thresholds) != len(self.index) or not all(0 <= one <= 1 for one in self.thresholds):
            raise ValueError(f"thresholds: expected {len(self.index)} numbers in 0..1, found {shorten(thresholds)}")

    @classmethod
    def fit(cls, dataset: DetectionDataset, size: int | Sequence[int] | None = None, **options: Any) -> Self:
        """Fit a processor: classes are those that the data declare, or, in alphabetical order, those of the boxes."""
        classes = dataset.classes
        if classes is None:
            names = sorted({nfc(label) for sample in dataset.samples for label in sample.labels})
            classes = Categories(tuple(names), tuple(range(1, len(names) + 1)))
        return cls(classes, size, **options)

    def retarget(self, train: DetectionDataset, given: Mapping[str, Any]) -> DetectionProcessor:
        """A processor with the model's image preprocessing and the data's classes; see `Processor`."""
        own: dict[str, Any] = {"size": self.size, "resize": self.resize, "multiple": self.multiple}
        own |= {name: value for name, value in given.items() if name in own and value is not None}
        return DetectionProcessor.fit(train, **own, mean=self.image.mean, std=self.image.std)

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return list(self.classes.names)

    def sizes(self) -> dict[str, Any]:
        return {"num_classes": len(self.classes.names)}

    def check(self, dataset: DetectionDataset) -> None:
        """Raise a `DataError`, or leave out the box, if a label is not a class of the model.

        Raises:
            DataError: There is such a label, or no box is left.
        """
        kept, found = [], False
        for where, sample in zip(dataset.places, dataset.samples, strict=True):
            known = np.array([nfc(label) in self.index for label in sample.labels], bool)
            for number in np.nonzero(~known)[0].tolist():
                label = sample.labels[number]
                wanted = f"one of the {len(self.index)} classes of the training data (box {number})"
                dataset.problems.add(where, wanted, f"{label!r}{nearest(label, self.labels)}")
                found = True
            kept.append((where, sample if known.all() else _only(sample, known)))
        if dataset.require_labels and not any(sample.labels for _, sample in kept):
            raise DataError(dataset.name, f"boxes of the classes {shorten(self.labels)}", "none")
        if found:
            dataset.keep(kept)

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which an image of the given width and height is resized, without padding."""
        if self.size is None:
            return width, height
        if self.resize == "squash":
            return self.size[1], self.size[0]
        if self.resize == "pad":
            scale = min(self.size[0] / height, self.size[1] / width)
            return max(1, round(width * scale)), max(1, round(height * scale))
        small, great = min(width, height), max(width, height)
        side: float = min(self.size)
        if great / small * side > max(self.size):
            side = max(self.size) * small / great
        other = max(1, int(side * great / small))
        shorter = max(1, round(side))
        if shorter == small:
            return width, height
        return (shorter, other) if width <= height else (other, shorter)

    def prepare(self, sample: DetectionSample) -> Prepared:
        """Decode a sample: the image at its working size.

        Raises:
            DataError: The image cannot be read; names the file.
        """
        if isinstance(sample, Prepared):
            return sample
        from PIL import Image

        image = load_image(sample.image, f"sample {sample.id}")
        size, own = self.working_size(*image.size), (image.height, image.width)
        pixels = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
        fields = {name: getattr(sample, name) for name in ("id", "boxes_xyxy", "labels", "crowd", "area")}
        return Prepared(image=pixels, size=own, **fields)

    def preload(self, dataset: DetectionDataset, max_bytes: int = 2 << 30) -> bool:
        """Decode a data set into memory.

        Returns:
            Whether it was decoded; False if it exceeds `max_bytes`, and the data set is unchanged.
        """
        sizes = [image_size(sample.image, f"sample {sample.id}") for sample in dataset.samples]
        if sum(3 * w * h for w, h in (self.working_size(*size) for size in sizes)) > max_bytes:
            return False
        dataset.preloaded(lambda sample, where: self.prepare(sample))
        return True

    def truth(self, sample: Prepared) -> Truth:
        """The annotations of a sample, in pixels of the original image, with crowds."""
        boxes = (
            np.zeros((0, 4)) if sample.boxes_xyxy is None else np.array(sample.boxes_xyxy, np.float64).reshape(-1, 4)
        )
        height, width = sample.size
        np.clip(boxes, 0, (width, height, width, height), out=boxes)
        labels = np.array([self._number(label, sample.id) for label in sample.labels], np.int64)
        return Truth(boxes, labels, sample.ignored, sample.areas)

    def _number(self, label: str, name: str) -> int:
        number = self.index.get(nfc(label))
        if number is None:
            wanted = f"one of the {len(self.index)} classes of the training data"
            raise DataError(f"sample {name}", wanted, f"{label!r}{nearest(label, self.labels)}")
        return number

    def collate(
        self,
        samples: Sequence[DetectionSample],
        *,
        augment: DetectionAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> DetectionBatch:
        """Collate a batch; only its targets and images are augmented, `truths` are the annotations as they are."""
        ready = [self.prepare(sample) for sample in samples]
        truths = [self.truth(sample) for sample in ready]
        targets = [_target(sample, truth) for sample, truth in zip(ready, truths, strict=True)]
        if augment is not None:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            targets = augment(targets, seeds)
        pixel_values, pixel_mask = self._padded([target.pixels for target in targets])
        boxes_cxcywh, labels, box_mask = _stacked(targets)
        return DetectionBatch(
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            boxes_cxcywh=boxes_cxcywh,
            labels=labels,
            box_mask=box_mask,
            sizes=[_height_width(target.pixels) for target in targets],
            original_sizes=[sample.size for sample in ready],
            truths=truths,
            ids=[sample.id for sample in ready],
            is_repeat=is_repeat,
        )

    def padded_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(H, W) of a batch of images of these (h, w)."""
        if self.size is not None and self.resize != "fit":
            return self.size
        height, width = (max(side) for side in zip(*sizes, strict=True))
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def _padded(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """pixel_values (B, 3, H, W), zero in the padding, and pixel_mask (B, H, W)."""
        sizes = [_height_width(image) for image in images]
        height, width = self.padded_size(sizes)
        whole: Any = np.zeros((len(images), height, width, 3), np.uint8)
        pixel_mask = torch.zeros(len(images), height, width, dtype=torch.bool)
        for n, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            whole[n, :h, :w] = image
            pixel_mask[n, :h, :w] = True
        return self.image.normalize(whole) * pixel_mask[:, None], pixel_mask

    def ablate(self, batch: DetectionBatch, what: str, seeds: Sequence[int] | None = None) -> DetectionBatch:
        """Ablate the "image": hide it behind its mean, so that boxes are predicted from their prior alone.

        Raises:
            ConfigError: There is no such ablation.
        """
        if what != ABLATION:
            raise ConfigError(f"data.ablate: expected {ABLATION!r}, found {what!r}.")
        batch.pixel_values = torch.zeros_like(batch.pixel_values)
        return batch

    def detections(
        self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, original_size: tuple[int, int]
    ) -> Detections:
        """The predicted boxes of an image, in pixels of the original one and clipped to it.

        Args:
            boxes_xyxy: (N, 4), in 0..1 of the image.
            scores: (N,).
            labels: (N,), indices of classes.
            original_size: (H, W) of the original image.
        """
        height, width = original_size
        limits = boxes_xyxy.new_tensor([width, height, width, height])
        return Detections((boxes_xyxy * limits).clamp_min(0).minimum(limits), scores, labels)

    def settings(self) -> dict[str, Any]:
        size = None if self.size is None else list(self.size)
        image: dict[str, Any] = {"size": size, "resize": self.resize, "multiple": self.multiple}
        image |= {"mean": list(self.image.mean), "std": list(self.image.std)}
        classes = {"names": list(self.classes.names), "ids": list(self.classes.ids)}
        return {"image": image, "classes": classes, "thresholds": self.thresholds}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        names, ids = (config["classes"][key] for key in ("names", "ids"))
        if len(names) != len(ids):
            raise ValueError(f"classes: expected as many names as ids, found {len(names)} and {len(ids)}")
        return cls(Categories(tuple(names), tuple(ids)), **config["image"], thresholds=config["thresholds"])


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(map(int, size))
    if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"size: expected 1 to {MAX_PIXELS:,} pixels, or (height, width), found {size}")
    return sides[0], sides[1]


def _height_width(image: np.ndarray) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])


def _only(sample: DetectionSample, kept: np.ndarray) -> DetectionSample:
    """A sample with some of its boxes."""
    given = {name: getattr(sample, name) for name in ("boxes_xyxy", "crowd", "area")}
    parts = {name: np.asarray(value)[kept] for name, value in given.items() if value is not None}
    labels = [label for label, is_kept in zip(sample.labels, kept, strict=True) if is_kept]
    return dataclasses.replace(sample, labels=labels, **parts)


def _target(sample: Prepared, truth: Truth) -> Target:
    """What a sample is trained on: boxes in pixels of the image at its working size, without crowds."""
    (h, w), (height, width) = _height_width(sample.image), sample.size
    kept = ~truth.crowd
    boxes_xyxy = truth.boxes_xyxy[kept] * (np.array([w, h, w, h]) / (width, height, width, height))
    return Target(sample.image, boxes_xyxy, truth.labels[kept])


def _stacked(targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """boxes_cxcywh (B, N, 4) in 0..1 of each image, labels (B, N) and box_mask (B, N), padded by zeros."""
    most = max(1, *(len(target.labels) for target in targets))
    boxes_cxcywh, labels = torch.zeros(len(targets), most, 4), torch.zeros(len(targets), most, dtype=torch.long)
    box_mask = torch.zeros(len(targets), most, dtype=torch.bool)
    for n, target in enumerate(targets):
        number, (h, w) = len(target.labels), _height_width(target.pixels)
        boxes_xyxy = torch.from_numpy(target.boxes_xyxy / (w, h, w, h))
        boxes_cxcywh[n, :number] = xyxy_to_cxcywh(boxes_xyxy).float()
        labels[n, :number] = torch.from_numpy(target.labels)
        box_mask[n, :number] = True
    return boxes_cxcywh, labels, box_mask
