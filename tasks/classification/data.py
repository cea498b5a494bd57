"""Image classification: samples, data set, processor and batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmattn.data.batching import Batch
from mmattn.data.errors import DataError, Problems, nearest, shorten
from mmattn.data.image.augment import BatchAugment
from mmattn.data.image.files import TarImage, read_pictures
from mmattn.data.image.processor import Box, ImageProcessor, ImageSource, load_image
from mmattn.data.processor import Saved

logger = logging.getLogger(__name__)


@dataclass
class ClassificationSample:
    """One labelled picture, as a person would describe it."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, a PIL image, or a TarImage
    labels: list[str] = field(default_factory=list)  # its class; several, or none, where classes do not exclude others
    regions: list[Box] = field(default_factory=list)  # boxes_xyxy in 0..1 of the picture on which the class rests


@dataclass
class ClassificationBatch(Batch):
    """Tensors for the model, and what the metric and the reports need."""

    pixel_values: Tensor  # (B, 3, H, W) float, in memory channels last: as convolutions want it, and as it was read
    targets: Tensor  # (B, K) float: the share of each class, mixed where pictures are; 0 or 1 a class if multi-label
    ids: list[str]
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted


class ClassificationDataset(Dataset[ClassificationSample]):
    """Labelled pictures from a path or from samples in memory, checked.

    Args:
        source: A path in one of the formats of ``data/image_files.py`` (a tree of class folders, a tar of one, a CSV,
            ``torchvision/NAME``), or samples.
        split: Which part of a torchvision data set.
        root: The folder of a torchvision data set's files, or of a CSV's pictures where they are not beside it.
        on_error: ``raise`` ends at the first bad item. ``skip`` decodes every picture once, leaves the bad ones out
            and reports them in ``skipped`` and in the log; it never puts something else in their place.
        multi_label: Labels in one cell of a CSV are separated by ``|``, and may be none.
        require_labels: Whether an unlabelled picture is an error, as in training and evaluation.

    Raises:
        DataError: Names the file and the line or item, what was expected and what was found.
    """

    def __init__(
        self,
        source: str | Path | Iterable[ClassificationSample],
        split: str = "train",
        root: str | Path | None = None,
        on_error: str = "raise",
        multi_label: bool = False,
        require_labels: bool = True,
    ) -> None:
        self.problems = Problems(on_error)
        found: Iterable[tuple[str, ClassificationSample]]
        if isinstance(source, (str, Path)):
            self.name = str(source)
            rows = read_pictures(source, split, root, self.problems)
            found = (
                (row.where, ClassificationSample(row.id, row.image, _labels(row.label, multi_label))) for row in rows
            )
        else:
            self.name = "samples"
            found = ((f"sample {index} (id {sample.id!r})", sample) for index, sample in enumerate(source))
        checked = list(self._check(found, multi_label, require_labels))
        if on_error == "skip":
            checked = [(where, sample) for where, sample in checked if self._is_readable(where, sample)]
        self.keep(checked)

    def keep(self, checked: Sequence[tuple[str, ClassificationSample]]) -> None:
        """Takes these samples, each with the place it stands at, as the data set's own.

        Raises:
            DataError: There are none.
        """
        self.places, self.samples = [where for where, _ in checked], [sample for _, sample in checked]
        if self.problems.items:
            logger.warning("%s", self.problems.summary(self.name, len(checked)))
        if not self.samples:
            count = len(self.problems.items)
            raise DataError(
                self.name, "at least one labelled picture", f"none ({count} left out as bad)" if count else "none"
            )

    def _check(
        self, found: Iterable[tuple[str, ClassificationSample]], multi_label: bool, require_labels: bool
    ) -> Iterator[tuple[str, ClassificationSample]]:
        seen: dict[str, str] = {}
        for where, sample in found:
            if sample.image is None or (isinstance(sample.image, (str, bytes)) and not sample.image):
                self.problems.add(where, "a picture", "none")
            elif require_labels and not multi_label and (len(sample.labels) != 1 or "|" in sample.labels[0]):
                self.problems.add(where, "one label (several need data.multi_label: true)", shorten(sample.labels))
            elif any(not isinstance(label, str) or not label.strip() for label in sample.labels):
                self.problems.add(where, "labels that are not empty", shorten(sample.labels))
            elif sample.id in seen:
                self.problems.add(where, "an id of its own", f"{sample.id!r}, which {seen[sample.id]} has already")
            else:
                seen[sample.id] = where
                yield where, sample

    def _is_readable(self, where: str, sample: ClassificationSample) -> bool:
        try:
            load_image(image_source(sample))
        except DataError as error:
            self.problems.add(where, "a readable picture", str(error))
            return False
        return True

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ClassificationSample:
        return self.samples[index]

    def preload(self, image: ImageProcessor, max_bytes: int = 2 << 30) -> bool:
        """Decodes every picture once, at the model's size, into one uint8 array, so that no batch waits for a file.

        Args:
            image: The processor's image part.
            max_bytes: The most memory to take.

        Returns:
            Whether it was done; False when ``max_bytes`` is too little (nothing is changed then).
        """
        if len(self) * image.size[0] * image.size[1] * 3 > max_bytes:
            return False
        if all(isinstance(s.image, np.ndarray) and s.image.shape == (*image.size, 3) for s in self.samples):
            return True
        store = np.empty((len(self), *image.size, 3), np.uint8)
        for index, sample in enumerate(self.samples):
            store[index], _ = image.pixels(image_source(sample), name=self.places[index])
        self.samples = [dataclasses.replace(s, image=store[index]) for index, s in enumerate(self.samples)]
        return True

    def fingerprint(self) -> str:
        """SHA-256 over every label and picture (a file counts by name and size)."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps([sample.id, sample.labels, sample.regions]).encode())
            image = sample.image
            if isinstance(image, (str, Path)):
                path = Path(image)
                image = f"{path.name} {path.stat().st_size if path.exists() else -1}".encode()
            elif isinstance(image, TarImage):
                image = f"{image.path.name} {image.offset} {image.size}".encode()
            digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()


def _labels(text: str | None, multi_label: bool) -> list[str]:
    if text is None or not text.strip():
        return []
    return [part.strip() for part in text.split("|") if part.strip()] if multi_label else [text.strip()]


def image_source(sample: ClassificationSample) -> ImageSource:
    """What `load_image` takes."""
    return sample.image.read() if isinstance(sample.image, TarImage) else sample.image


class ClassificationProcessor(Saved):
    """What turns pictures into tensors and scores into class names; shipped with the model.

    Args:
        image: Picture to tensor.
        labels: The classes; the model's output i stands for ``labels[i]``.
        multi_label: Each class is there or not, whatever the others.
    """

    KEYS = frozenset({"image", "labels", "multi_label"})

    def __init__(self, image: ImageProcessor, labels: Sequence[str], multi_label: bool = False) -> None:
        self.image, self.labels, self.multi_label = image, list(labels), bool(multi_label)
        self.index = {label: number for number, label in enumerate(self.labels)}
        least = 1 if self.multi_label else 2
        if len(self.index) != len(self.labels) or len(self.labels) < least:
            raise DataError("classes", f"different ones, at least {least}", shorten(self.labels))

    @classmethod
    def fit(
        cls,
        dataset: ClassificationDataset,
        image_size: int | Sequence[int] = 64,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resize: str = "squash",
        multi_label: bool = False,
    ) -> ClassificationProcessor:
        """Makes a processor whose classes are the training data's, in alphabetical order.

        Args:
            dataset: The training data.
            image_size: See ``ImageProcessor``, as mean, std and resize.
            mean: Per channel.
            std: Per channel.
            resize: The mode.
            multi_label: See the class.
        """
        labels = sorted({label for sample in dataset.samples for label in sample.labels})
        return cls(ImageProcessor(image_size, mean, std, resize), labels, multi_label)

    def sizes(self) -> dict[str, int]:
        """The model's keywords that the data decide."""
        return {"num_classes": len(self.labels)}

    def targets(self, samples: Sequence[ClassificationSample]) -> Tensor:
        """(B, K): 1 for each label of a sample."""
        targets = torch.zeros(len(samples), len(self.labels))
        for row, sample in enumerate(samples):
            for label in sample.labels:
                targets[row, self.index[label]] = 1.0
        return targets

    def check(self, dataset: ClassificationDataset) -> None:
        """Raises a ``DataError``, or leaves the sample out, where a label is none of the training data's classes."""
        kept = []
        for where, sample in zip(dataset.places, dataset.samples, strict=True):
            strange = next((label for label in sample.labels if label not in self.index), None)
            if strange is None:
                kept.append((where, sample))
            else:
                wanted = f"one of the {len(self.labels)} classes of the training data"
                dataset.problems.add(where, wanted, f"{strange!r}{nearest(strange, self.labels)}")
        if len(kept) < len(dataset):
            dataset.keep(kept)

    def settings(self) -> dict[str, Any]:
        return {"image": self.image.config(), "labels": self.labels, "multi_label": self.multi_label}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        return cls(ImageProcessor.from_config(config["image"]), config["labels"], config["multi_label"])


def collate(
    samples: Sequence[ClassificationSample],
    processor: ClassificationProcessor,
    augment: BatchAugment | None = None,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
) -> ClassificationBatch:
    """Makes a batch.

    Args:
        samples: The pictures.
        processor: Picture to tensor.
        augment: Random change of pictures and targets, in training.
        seeds: One integer a sample, needed by ``augment``.
        is_repeat: See ``ClassificationBatch``.

    Raises:
        DataError: A picture cannot be read; names it.
    """
    pixels = [processor.image.pixels(image_source(sample), name=f"item {sample.id}")[0] for sample in samples]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (B, 3, H, W) uint8
    targets = processor.targets(samples)
    if augment is not None:
        if seeds is None:
            raise ValueError("collate: augment needs seeds")
        images, targets = augment(images, targets, seeds)
    values = images.float().div_(255) if images.dtype == torch.uint8 else images
    mean, std = (torch.tensor(given)[:, None, None] for given in (processor.image.mean, processor.image.std))
    values = values.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
    return ClassificationBatch(values, targets, [sample.id for sample in samples], is_repeat)
