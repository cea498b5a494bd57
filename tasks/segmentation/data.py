"""Segmentation: samples, data set and batches of images with the class of each pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmattn.data.batching import Batch, alike
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems
from mmattn.data.files import files_below
from mmattn.data.image.masks import CLASS_FILE, MASK_EXTENSIONS, ClassList, MaskSource, load_mask, read_classes
from mmattn.data.image.processor import IMAGE_EXTENSIONS, ImageSource, image_size, load_image, size_facts
from mmattn.data.names import nfc
from mmattn.data.readers import read_rows, report_missing
from mmattn.data.table import Table


@dataclass
class SegmentationSample:
    """An image with its mask."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    mask: MaskSource = None  # a path, the file's bytes, or an array HxW of class numbers; none when unlabeled


@dataclass
class Prepared(SegmentationSample):
    """A decoded sample.

    The image is uint8 (h, w, 3) at the working size; the mask is labels, uint8, (h, w) in training and at the image's
    own size (H, W) in evaluation.
    """


@dataclass
class SegmentationBatch(Batch):
    """A batch of images with masks: the model's inputs and the data of the metric."""

    pixel_values: Tensor  # (B, 3, H, W) float, at the size of the largest image; others are padded right and below
    labels: Tensor  # (B, H', W') uint8, at the images' own sizes in evaluation; 255 is void
    sizes: list[tuple[int, int]]  # (h, w) of each image within pixel_values
    label_sizes: list[tuple[int, int]]  # (h', w') of each within labels
    ids: list[str]
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics

    def alike(self) -> list[list[int]]:
        """Groups of rows with equal sizes of images and of labels, which can be run through a model together."""
        return alike(zip(self.sizes, self.label_sizes, strict=True))


class SegmentationDataset(SampleDataset[SegmentationSample]):
    """Images with masks, from a folder or from samples in memory, validated.

    A folder has ``images/`` and ``masks/``; an image and its mask have the same name apart from the suffix. Sizes are
    validated immediately from the file headers, the numbers in masks when they are first decoded.

    Args:
        source: A folder; samples; or rows of an image and its mask.
        classes: A class list or its file; by default ``classes.txt`` in the folder or its parent.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "image"
    columns = ("image", "mask")

    def __init__(
        self,
        source: str | Path | Iterable[Any],
        classes: ClassList | str | Path | None = None,
        **options: Any,
    ) -> None:
        if classes is None and isinstance(source, (str, Path)):
            places = (Path(source) / CLASS_FILE, Path(source).parent / CLASS_FILE)
            classes = next((path for path in places if path.is_file()), None)
        self.classes = read_classes(classes) if isinstance(classes, (str, Path)) else classes
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, SegmentationSample]]:
        if isinstance(path, Table):
            for where, number, row in read_rows(path, problems):
                if row.get("image") is None:
                    report_missing(path, where, row, ["image"], ("image", "mask", "id"), problems)
                else:
                    yield where, SegmentationSample(str(row.get("id", number)), row["image"], row.get("mask"))
            return
        folder = Path(path)
        images, masks = folder / "images", folder / "masks"
        if not images.is_dir() or (self.require_labels and not masks.is_dir()):
            inside = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else ["no such folder"]
            raise DataError(str(folder), "a folder with images/ and masks/", ", ".join(inside) or "nothing")
        files, labeled = _by_name(images, IMAGE_EXTENSIONS, problems), _by_name(masks, MASK_EXTENSIONS, problems)
        for name, file in files.items():
            if name in labeled:
                yield f"mask {labeled[name]}", SegmentationSample(name, file, labeled[name])
            elif self.require_labels:
                problems.add(str(file), f"a mask {name}.png in {masks}", "none")
            else:
                yield str(file), SegmentationSample(name, file)
        for name, file in labeled.items():
            if name not in files:
                problems.add(str(file), f"an image {name} in {images}", "none")

    def check(self, sample: SegmentationSample) -> tuple[str, str] | None:
        if sample.mask is None:
            return ("a mask", "none") if self.require_labels else None
        image, name = image_size(sample.image, f"sample {sample.id}"), f"mask of sample {sample.id}"
        array = isinstance(sample.mask, np.ndarray)
        size = load_mask(sample.mask, name).shape[::-1] if array else image_size(sample.mask, name)
        if size == image:
            return None
        return f"the size of its image, {image[0]} x {image[1]}", f"{size[0]} x {size[1]}"

    def decode(self, sample: SegmentationSample, where: str) -> None:
        load_image(sample.image, f"sample {sample.id}")
        if sample.mask is not None:
            mask = load_mask(sample.mask, f"sample {sample.id}")
            if self.classes is not None:
                self.classes.labels(mask, where)

    def identity(self, sample: SegmentationSample) -> tuple[list[Any], list[Any]]:
        return [sample.id], [sample.image, sample.mask]

    def inputs(self, sample: SegmentationSample) -> tuple[list[Any], list[Any]]:
        return [], [sample.image]

    def facts(self, sample: SegmentationSample, files: bool = True) -> dict[str, Any]:
        if not files:
            return {}
        mask = load_mask(sample.mask)
        values = [int(value) for value in np.unique(mask)]
        names = {} if self.classes is None else dict(zip(self.classes.ids, self.classes.names, strict=True))
        return {"in the mask": [names.get(value, str(value)) for value in values], **size_facts(sample.image)}


def _by_name(folder: Path, endings: Sequence[str], problems: Problems) -> dict[str, Path]:
    """Files of a folder, at any depth, by their path without the suffix."""
    found: dict[str, Path] = {}
    for full, path in files_below(folder, endings):
        name = nfc(full.removesuffix(path.suffix))
        if found.setdefault(name, path) != path:
            problems.add(str(path), "one file of that name", f"{found[name].name} beside it")
    return found
