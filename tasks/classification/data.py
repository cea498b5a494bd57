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
from mmattn.data.errors import Problems, located, shorten
from mmattn.data.image.files import read_images
from mmattn.data.image.processor import Box, ImageProcessor, ImageSource, load_image, size_facts
from mmattn.data.table import Table


@dataclass
class ClassificationSample:
    """A labeled image, with its annotations."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, a PIL image, or a file object
    labels: list[str] = field(default_factory=list)  # its class; any number of classes for multi-label
    regions: list[Box] = field(default_factory=list)  # regions that determine the class, boxes_xyxy in 0..1


@dataclass
class ClassificationBatch(Batch):
    """A batch of images: the model's inputs and the data of the metric."""

    pixel_values: Tensor  # (B, 3, H, W) float, in channels-last memory format, as decoded
    targets: Tensor  # (B, K) float: the share of each class, mixed with the images; for multi-label 0 or 1
    ids: list[str]
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics


class ClassificationDataset(SampleDataset[ClassificationSample]):
    """Labelled images from a path or from samples in memory, validated.

    Args:
        source: A path in one of the formats of ``data/image/files.py`` (a tree of class folders, a tar of one, a CSV,
            ``torchvision/NAME``); samples; or rows of an image and its label.
        split: Split of a torchvision data set.
        root: Folder of a torchvision data set's files, or of a CSV's images if they are not in its folder.
        multi_label: Whether samples have any number of labels, separated by ``|`` in a CSV.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "labeled image"
    columns = ("image", "label")

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        split: str = "train",
        root: str | Path | None = None,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        self.split, self.root, self.multi_label = split, root, multi_label
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, ClassificationSample]]:
        labeled = self.require_labels and not self.multi_label
        for where, name, image, label in read_images(path, self.split, self.root, problems, labeled):
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
        with located(where):
            load_image(sample.image)

    def identity(self, sample: ClassificationSample) -> tuple[list[Any], list[Any]]:
        return [sample.id, sample.labels, sample.regions], [sample.image]

    def facts(self, sample: ClassificationSample, files: bool = True) -> dict[str, Any]:
        return {"class": sample.labels} | (size_facts(sample.image) if files else {})

    def preload(self, image: ImageProcessor, max_bytes: int = 2 << 30) -> bool:
        """Decode every image once, at the model's input size, into one uint8 array.

        Args:
            image: The processor's image part.
            max_bytes: Upper bound of the memory.

        Returns:
            Whether the images were decoded; False if they exceed ``max_bytes``, and the data set is unchanged.
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
