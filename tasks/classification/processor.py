"""The processor of classification: images to tensors, logits to class names; shipped with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mmattn.data.image.augment import BatchAugment, shuffle_patches
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.seeds import seed_of
from mmattn.tasks.classification.data import ClassificationBatch, ClassificationDataset, ClassificationSample
from mmattn.tasks.common.labels.processor import LabelProcessor, labels_in

PATCH = 8  # pixels


class ClassificationProcessor(LabelProcessor[ClassificationSample, ClassificationBatch]):
    """Converts images to tensors and logits to class names; shipped with the model.

    Args:
        image: Image processor.
        labels: See ``LabelProcessor``.
        multi_label: See ``LabelProcessor``.
    """

    KEYS = frozenset({"image", "labels", "multi_label"})

    def __init__(self, image: ImageProcessor, labels: Sequence[str], multi_label: bool = False) -> None:
        super().__init__(labels, multi_label)
        self.image = image

    @classmethod
    def fit(
        cls,
        dataset: ClassificationDataset,
        image_size: int | Sequence[int] = 64,
        multi_label: bool = False,
        **image: Any,
    ) -> ClassificationProcessor:
        """Fit a processor, whose classes are those of the training data in alphabetical order.

        Args:
            dataset: The training data.
            image_size: Side of the input images, or (H, W).
            multi_label: See ``LabelProcessor``.
            image: Keywords of ``ImageProcessor``: mean, std, resize.
        """
        return cls(ImageProcessor(image_size, **image), labels_in(dataset), multi_label)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"image_size": self.image.size[0]}

    def retarget(self, train: ClassificationDataset, given: Mapping[str, Any]) -> ClassificationProcessor:
        """A processor with the model's image preprocessing and the data's classes; see `Processor.retarget`."""
        known = {"image_size" if key == "size" else key: value for key, value in self.image.config().items()}
        return ClassificationProcessor.fit(train, **(known | {k: v for k, v in given.items() if v is not None}))

    def collate(
        self,
        samples: Sequence[ClassificationSample],
        *,
        augment: BatchAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> ClassificationBatch:
        """Collate a batch; ``augment`` transforms images and targets."""
        pixels = [self.image.pixels(sample.image, name=f"item {sample.id}")[0] for sample in samples]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (B, 3, H, W) uint8
        targets = self.targets(samples)
        if augment is not None:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            images, targets = augment(images, targets, seeds)
        values = images.float().div_(255) if images.dtype == torch.uint8 else images
        mean, std = (torch.tensor(given)[:, None, None] for given in (self.image.mean, self.image.std))
        values = values.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        return ClassificationBatch(values, targets, [sample.id for sample in samples], is_repeat)

    def ablate(self, batch: ClassificationBatch, what: str, seeds: Sequence[int] | None = None) -> ClassificationBatch:
        """Ablate the "arrangement": the patches of each image are permuted, each with its own seed."""
        H, W = (side // PATCH for side in batch.pixel_values.shape[2:])
        streams = [torch.Generator().manual_seed(seed_of(seed, 0, 1)) for seed in seeds or range(len(batch))]
        orders = [torch.randperm(H * W, generator=stream) for stream in streams]
        batch.pixel_values = shuffle_patches(batch.pixel_values, PATCH, orders)
        return batch

    def settings(self) -> dict[str, Any]:
        return {"image": self.image.config(), "labels": self.labels, "multi_label": self.multi_label}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        return cls(ImageProcessor.from_config(config["image"]), config["labels"], config["multi_label"])
