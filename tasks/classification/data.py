"""Image classification: samples, data set and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.image.files import read_images
from mmattn.data.image.processor import Box, ImageProcessor, ImageSource, load_image


@dataclass
class ClassificationSample:
    """One labelled image, as a person would describe it."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, a PIL image, or what has read()
    labels: list[str] = field(default_factory=list)  # its class; several, or none, where classes do not exclude others
    regions: list[Box] = field(default_factory=list)  # boxes_xyxy in 0..1 of the image on which the class rests


@dataclass
class ClassificationBatch(Batch):
    """Tensors for the model, and what the metric and the reports need."""

    pixel_values: Tensor  # (B, 3, H, W) float, in memory channels last: as convolutions want it, and as it was read
    targets: Tensor  # (B, K) float: the share of each class, mixed where images are; 0 or 1 a class if multi-label
    ids: list[str]
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted


class ClassificationDataset(SampleDataset[ClassificationSample]):
    """Labelled images from a path or from samples in memory, checked.

    Args:
        source: A path in one of the formats of ``data/image/files.py`` (a tree of class folders, a tar of one, a CSV,
            ``torchvision/NAME``), or samples.
        split: Which part of a torchvision data set.
        root: The folder of a torchvision data set's files, or of a CSV's images where they are not beside it.
        multi_label: Labels in one cell of a CSV are separated by ``|``, and may be none.
        options: What ``SampleDataset`` takes.
    """

    item: ClassVar[str] = "labelled image"

    def __init__(
        self,
        source: str | Path | Iterable[ClassificationSample],
        split: str = "train",
        root: str | Path | None = None,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        self.split, self.root, self.multi_label = split, root, multi_label
        super().__init__(source, **options)

    def read(self, path: str | Path, problems: Problems) -> Iterator[tuple[str, ClassificationSample]]:
        for where, name, image, label in read_images(path, self.split, self.root, problems):
            labels = (label or "").split("|") if self.multi_label else [label or ""]
            yield where, ClassificationSample(name, image, [part.strip() for part in labels if part.strip()])

    def check(self, sample: ClassificationSample) -> tuple[str, str] | None:
        if sample.image is None or (isinstance(sample.image, (str, bytes)) and not sample.image):
            return "an image", "none"
        single = self.require_labels and not self.multi_label
        if single and (len(sample.labels) != 1 or "|" in sample.labels[0]):
            return "one label (several need data.multi_label: true)", shorten(sample.labels)
        if any(not isinstance(label, str) or not label.strip() for label in sample.labels):
            return "labels that are not empty", shorten(sample.labels)
        return None

    def decode(self, sample: ClassificationSample, where: str) -> None:
        try:
            load_image(sample.image)
        except DataError as error:
            raise DataError(where, "a readable image", str(error)) from None

    def identity(self, sample: ClassificationSample) -> tuple[list[Any], list[Any]]:
        return [sample.id, sample.labels, sample.regions], [sample.image]

    def preload(self, image: ImageProcessor, max_bytes: int = 2 << 30) -> bool:
        """Decodes every image once, at the model's size, into one uint8 array.

        Args:
            image: The processor's image part.
            max_bytes: The most memory to take.

        Returns:
            Whether it was done; False when ``max_bytes`` is too little (nothing is changed then).
        """
        if len(self) * image.size[0] * image.size[1] * 3 > max_bytes:
            return False
        rows = iter(np.empty((len(self), *image.size, 3), np.uint8))

        def load(sample: ClassificationSample, where: str) -> ClassificationSample:
            row = next(rows)
            row[:], _ = image.pixels(sample.image, name=where)
            return dataclasses.replace(sample, image=row)

        self.preloaded(load)
        return True
