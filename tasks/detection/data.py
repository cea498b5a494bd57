"""Object detection: samples, data set and batches of images with boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.image.processor import ImageSource, image_size, load_image, size_facts
from mmattn.data.table import Table
from mmattn.tasks.detection.annotations import Categories, box_problem
from mmattn.tasks.detection.boxes import Truth
from mmattn.tasks.detection.formats import open_annotations


@dataclass
class DetectionSample:
    """An image with its boxes; no boxes at all are a label, too."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    boxes_xyxy: np.ndarray | None = None  # (N, 4) pixels of the upright image; None: unlabeled
    labels: list[str] = field(default_factory=list)  # the class of each box
    # (N,) bool: COCO's crowds and VOC's difficult objects, which are neither trained on nor counted in evaluation
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None  # (N,) pixels squared, COCO's area of the segment; None: those of the boxes

    @property
    def ignored(self) -> np.ndarray:
        """`crowd` (N,) bool, none by default."""
        return np.zeros(len(self.labels), bool) if self.crowd is None else np.asarray(self.crowd, bool)

    @property
    def areas(self) -> np.ndarray:
        """`area` (N,) float64, by default those of the boxes."""
        if self.area is not None:
            return np.asarray(self.area, np.float64)
        boxes = np.zeros((0, 4)) if self.boxes_xyxy is None else np.asarray(self.boxes_xyxy, np.float64)
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@dataclass
class Prepared(DetectionSample):
    """A decoded sample: the image is uint8 (h, w, 3) at the working size, its boxes are still those of the original."""

    size: tuple[int, int] = (0, 0)  # (H, W) of the original image in pixels


@dataclass
class DetectionBatch(Batch):
    """A batch of images with boxes: the model's inputs, its targets, and the data of the metric.

    Boxes are in 0..1 of the image's own part of `pixel_values`, so they do not depend on the padding.
    """

    pixel_values: Tensor  # (B, 3, H, W) float; images smaller than H x W are padded right and below
    pixel_mask: Tensor  # (B, H, W) bool, True = a pixel of the image
    boxes_cxcywh: Tensor  # (B, N, 4) float, without crowds; N is at least 1
    labels: Tensor  # (B, N) long
    box_mask: Tensor  # (B, N) bool, True = a box
    sizes: list[tuple[int, int]]  # (h, w) of each image within pixel_values
    original_sizes: list[tuple[int, int]]  # (H, W) of each image as it was given, in pixels
    truths: list[Truth]  # the annotations in pixels of the original images, with crowds, for the metric
    ids: list[str]
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics


class DetectionDataset(SampleDataset[DetectionSample]):
    """Images with boxes from a file or folder, or from samples in memory, validated.

    Formats (`formats.py` has the details): COCO's JSON, Pascal VOC's XML, YOLO's text files with a `data.yaml`, and
    rows of an image, its boxes and their labels.

    Args:
        source: A path; samples; or rows of an image, its boxes_xyxy in pixels and their labels.
        split: train, val or test, for sources that have all.
        root: Folder of the images, if they are not near the annotations.
        classes: The classes, for samples in memory; by default those that the source declares.
        options: Keywords of `SampleDataset`.

    Raises:
        DataError: An item is invalid, or, if labels are required, there is no box in any image.
    """

    item: ClassVar[str] = "image"
    columns = ("image", "boxes_xyxy", "labels")

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        split: str = "train",
        root: str | Path | None = None,
        classes: Categories | None = None,
        **options: Any,
    ) -> None:
        self.split, self.root, self.classes = split, root, classes
        super().__init__(source, **options)
        if self.require_labels and not any(not sample.ignored.all() for sample in self.samples):
            found = f"none in {len(self):,} images"
            found += f" ({len(self.skipped):,} bad items excluded)" if self.skipped else ""
            raise DataError(self.name, "at least one box", found)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, DetectionSample]]:
        declared, rows = open_annotations(path, self.split, self.root, self.require_labels, problems)
        self.classes = self.classes or declared
        for where, fields in rows:
            yield where, DetectionSample(**fields)

    def check(self, sample: DetectionSample) -> tuple[str, str] | None:
        if sample.boxes_xyxy is None:
            return ("boxes, or an empty list for an image without any", "no label") if self.require_labels else None
        boxes = np.asarray(sample.boxes_xyxy)
        if boxes.shape != (len(sample.labels), 4) or boxes.dtype.kind not in "fiu":
            return f"boxes_xyxy, an array ({len(sample.labels)}, 4), one box a label", shorten(sample.boxes_xyxy)
        if sample.ignored.shape != (len(boxes),) or sample.areas.shape != (len(boxes),):
            return "crowd and area, arrays of one value a box", shorten([sample.crowd, sample.area])
        if not len(boxes):
            return None
        size = image_size(sample.image, f"sample {sample.id}")
        for number, (box, label) in enumerate(zip(boxes.tolist(), sample.labels, strict=True)):
            if not isinstance(label, str) or not label.strip():
                return f"the name of a class (box {number})", shorten(label)
            problem = box_problem(box, size)
            if problem is not None:
                return f"{problem[0]} (box {number})", problem[1]
        return None

    def decode(self, sample: DetectionSample, where: str) -> None:
        load_image(sample.image, f"sample {sample.id}")

    def identity(self, sample: DetectionSample) -> tuple[list[Any], Sequence[Any]]:
        boxes = None if sample.boxes_xyxy is None else np.asarray(sample.boxes_xyxy).tolist()
        return [sample.id, boxes, sample.labels, sample.ignored.tolist(), sample.areas.tolist()], [sample.image]

    def inputs(self, sample: DetectionSample) -> tuple[list[Any], Sequence[Any]]:
        return [], [sample.image]

    def label(self, sample: DetectionSample) -> str:
        return "|".join(sorted(set(sample.labels)))

    def facts(self, sample: DetectionSample, files: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = {"boxes": len(sample.labels), "class": list(sample.labels)}
        return found | size_facts(sample.image) if files else found
