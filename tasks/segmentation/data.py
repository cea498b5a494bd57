"""Segmentation: samples, data set and batches. A picture, and for each of its pixels the class."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmattn.data.batching import Batch
from mmattn.data.errors import DataError, Problems
from mmattn.data.image.masks import CLASS_FILE, MASK_EXTENSIONS, VOID, ClassList, MaskSource, load_mask, read_classes
from mmattn.data.image.processor import IMAGE_EXTENSIONS, ImageSource, image_size, load_image
from mmattn.tasks.segmentation.augment import SegmentationAugment
from mmattn.tasks.segmentation.processor import SegmentationProcessor

__all__ = [
    "SegmentationAugment",
    "SegmentationBatch",
    "SegmentationDataset",
    "SegmentationProcessor",
    "SegmentationSample",
    "collate",
]

logger = logging.getLogger(__name__)


@dataclass
class SegmentationSample:
    """One picture with its mask, as a person would describe it."""

    id: str
    image: ImageSource  # a path, the file's bytes, a uint8 array HxWx3, or a PIL image
    mask: MaskSource = None  # a path, the file's bytes, or an array HxW of class numbers; none when unlabelled


@dataclass
class Prepared:
    """A sample that is decoded and at its working size: what `SegmentationDataset.preload` keeps."""

    id: str
    pixels: np.ndarray  # (h, w, 3) uint8, at the working size
    labels: np.ndarray  # (h, w) uint8 in training, at the picture's own size (H, W) in measuring


@dataclass
class SegmentationBatch(Batch):
    """Tensors for the model, and what the metric and the reports need."""

    pixel_values: Tensor  # (B, 3, H, W) float, of the largest picture; others are filled up right and below
    labels: Tensor  # (B, H', W') uint8, at the pictures' own sizes in measuring; 255 where nothing counts
    sizes: list[tuple[int, int]]  # (h, w) of each picture within pixel_values
    label_sizes: list[tuple[int, int]]  # (h', w') of each within labels
    ids: list[str]
    is_repeat: bool = False  # repeated only to give every rank the same number of batches: not to be counted

    def alike(self) -> list[list[int]]:
        """Rows whose pictures have one size and whose labels have one size: what can go through a model together."""
        rows: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
        for row, key in enumerate(zip(self.sizes, self.label_sizes, strict=True)):
            rows.setdefault(key, []).append(row)
        return list(rows.values())


class SegmentationDataset(Dataset[Any]):
    """Pictures with masks, from a folder or from samples in memory, checked.

    A folder has ``images/`` and ``masks/``; a picture and its mask have the same name but for the ending. Sizes are
    read from the headers at once, the numbers in the masks when they are first decoded.

    Args:
        source: A folder, or samples.
        classes: A class list or its file; by default ``classes.txt`` in the folder or the one above it.
        on_error: ``raise`` ends at the first bad item. ``skip`` decodes every item once, leaves the bad ones out and
            reports them in ``skipped`` and in the log.
        require_masks: Whether a picture without a mask is an error, as in training and measuring.

    Raises:
        DataError: Names the file, what was expected and what was found.
    """

    def __init__(
        self,
        source: str | Path | Iterable[SegmentationSample],
        classes: ClassList | str | Path | None = None,
        on_error: str = "raise",
        require_masks: bool = True,
    ) -> None:
        problems = Problems(on_error)
        self.require_masks = require_masks
        self._prepared: list[Prepared] | None = None
        if isinstance(source, (str, Path)):
            self.name = str(source)
            found = _read_folder(Path(source), require_masks, problems)
            classes = classes if classes is not None else _find_classes(Path(source))
        else:
            self.name, found = "samples", list(source)
        self.classes = read_classes(classes) if isinstance(classes, (str, Path)) else classes
        check = self._decodes if on_error == "skip" else self._fits
        self.samples = [sample for sample in found if check(sample, problems)]
        self.skipped = problems.items  # (item, reason)
        if problems.items:
            logger.warning("%s", problems.summary(self.name, len(self.samples)))
        if not self.samples:
            left = f"none ({len(self.skipped)} left out as bad)" if self.skipped else "none"
            raise DataError(self.name, "at least one picture" + (" with a mask" if require_masks else ""), left)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> SegmentationSample | Prepared:
        return self.samples[index] if self._prepared is None else self._prepared[index]

    def where(self, sample: SegmentationSample) -> str:
        """What an error calls a sample's mask."""
        return f"mask {sample.mask}" if isinstance(sample.mask, (str, Path)) else f"mask of sample {sample.id}"

    def preload(self, processor: SegmentationProcessor, training: bool, max_bytes: int = 2 << 30) -> bool:
        """Decodes everything once, so that no batch waits for a file; forked workers share the memory.

        Returns:
            Whether it was done; False when it would take more than ``max_bytes`` (nothing is changed then).
        """
        sizes = [image_size(sample.image, f"sample {sample.id}") for sample in self.samples]
        pixels = sum(3 * w * h for w, h in (processor.working_size(*size) for size in sizes))
        if pixels + sum(w * h for w, h in sizes) > max_bytes:
            return False
        self._prepared = [prepare(sample, processor, training) for sample in self.samples]
        return True

    def fingerprint(self) -> str:
        """SHA-256 over every picture and mask (a file counts by name and size)."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(sample.id.encode())
            for source in (sample.image, sample.mask):
                if isinstance(source, (str, Path)):
                    path = Path(source)
                    digest.update(f"{path.name} {path.stat().st_size if path.exists() else -1}".encode())
                elif source is not None:
                    digest.update(source if isinstance(source, bytes) else np.ascontiguousarray(source).tobytes())
        return digest.hexdigest()

    def _fits(self, sample: SegmentationSample, problems: Problems) -> bool:
        """Whether the mask has the picture's size, from the headers."""
        if sample.mask is None:
            return True
        picture, mask = image_size(sample.image, f"sample {sample.id}"), _mask_size(sample)
        if mask == picture:
            return True
        found = f"{mask[0]} x {mask[1]}"
        problems.add(self.where(sample), f"the size of its picture, {picture[0]} x {picture[1]}", found)
        return False

    def _decodes(self, sample: SegmentationSample, problems: Problems) -> bool:
        """Whether everything about it can be read."""
        try:
            load_image(sample.image, f"sample {sample.id}")
            if sample.mask is not None:
                mask = load_mask(sample.mask, f"sample {sample.id}")
                if self.classes is not None:
                    self.classes.labels(mask, self.where(sample))
            return self._fits(sample, problems)
        except DataError as error:
            problems.items.append((f"sample {sample.id}", str(error)))
            return False


def prepare(sample: SegmentationSample | Prepared, processor: SegmentationProcessor, training: bool) -> Prepared:
    """Decodes a sample: the picture at its working size, the labels too in training, else at the picture's own.

    Raises:
        DataError: Picture or mask cannot be read, or do not fit; by name.
    """
    if isinstance(sample, Prepared):
        return sample
    pixels, own = processor.pixels(sample.image, f"sample {sample.id}")
    if sample.mask is None:
        return Prepared(sample.id, pixels, np.full(own, VOID, np.uint8))
    where = f"sample {sample.id}" if not isinstance(sample.mask, (str, Path)) else f"mask {sample.mask}"
    labels = processor.labels(sample.mask, where)
    if labels.shape != own:
        expected, found = (f"{shape[1]} x {shape[0]}" for shape in (own, labels.shape))
        raise DataError(where, f"the size of its picture, {expected}", found)
    if training and labels.shape != pixels.shape[:2]:
        labels = _nearest(labels, pixels.shape[:2])
    return Prepared(sample.id, pixels, labels)


def collate(
    samples: Sequence[SegmentationSample | Prepared],
    processor: SegmentationProcessor,
    training: bool = False,
    augment: SegmentationAugment | None = None,
    seeds: Sequence[int] | None = None,
    is_repeat: bool = False,
) -> SegmentationBatch:
    """Makes a batch.

    Args:
        samples: Pictures with their masks.
        processor: Picture and mask to tensors.
        training: Labels at the pictures' working size; else at their own, where a prediction is measured.
        augment: Random change of picture and mask together, in training.
        seeds: One integer a sample, needed by ``augment``.
        is_repeat: See ``SegmentationBatch``.

    Raises:
        DataError: See ``prepare``.
    """
    ready = [prepare(sample, processor, training) for sample in samples]
    pairs = [(item.pixels, item.labels) for item in ready]
    if augment is not None:
        if seeds is None:
            raise ValueError("collate: augment needs seeds")
        pairs = [augment(*pair, seed) for pair, seed in zip(pairs, seeds, strict=True)]
    sizes, label_sizes = ([pair[n].shape[:2] for pair in pairs] for n in (0, 1))
    ground = np.round(255 * np.array(processor.mean)).astype(np.uint8)
    height, width = (max(size[n] for size in sizes) for n in (0, 1))
    pixels = [_filled(pair[0], (height, width, 3), ground) for pair in pairs]
    label_height, label_width = (max(size[n] for size in label_sizes) for n in (0, 1))
    labels = [_filled(pair[1], (label_height, label_width), VOID) for pair in pairs]
    return SegmentationBatch(
        pixel_values=processor.normalize(pixels),
        labels=torch.from_numpy(np.stack(labels)),
        sizes=[(int(h), int(w)) for h, w in sizes],
        label_sizes=[(int(h), int(w)) for h, w in label_sizes],
        ids=[item.id for item in ready],
        is_repeat=is_repeat,
    )


def _filled(array: np.ndarray, shape: tuple[int, ...], value: Any) -> np.ndarray:
    if array.shape == shape:
        return array
    whole = np.empty(shape, np.uint8)
    whole[:] = value
    whole[: array.shape[0], : array.shape[1]] = array
    return whole


def _nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at another size: each pixel that of the place under its centre."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[rows[:, None], columns])


def _mask_size(sample: SegmentationSample) -> tuple[int, int]:
    if isinstance(sample.mask, np.ndarray):
        height, width = load_mask(sample.mask, f"sample {sample.id}").shape
        return width, height
    return image_size(sample.mask, f"mask of sample {sample.id}")


def _find_classes(folder: Path) -> Path | None:
    return next((path for path in (folder / CLASS_FILE, folder.parent / CLASS_FILE) if path.is_file()), None)


def _read_folder(folder: Path, require_masks: bool, problems: Problems) -> list[SegmentationSample]:
    """The pairs of a folder by name."""
    images, masks = folder / "images", folder / "masks"
    if not images.is_dir() or (require_masks and not masks.is_dir()):
        inside = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
        found = f"{', '.join(inside) or 'nothing'}" if folder.is_dir() else "no such folder"
        raise DataError(str(folder), "a folder with images/ and masks/", found)
    pictures, labelled = _by_name(images, IMAGE_EXTENSIONS, problems), _by_name(masks, MASK_EXTENSIONS, problems)
    samples = []
    for name, path in pictures.items():
        if name in labelled or not require_masks:
            samples.append(SegmentationSample(name, path, labelled.get(name)))
        else:
            problems.add(str(path), f"a mask {name}.png in {masks}", "none")
    for name, path in labelled.items():
        if name not in pictures:
            problems.add(str(path), f"a picture {name} in {images}", "none")
    return samples


def _by_name(folder: Path, endings: Sequence[str], problems: Problems) -> dict[str, Path]:
    """Files of a folder and those below it, by their path without the ending."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.suffix.lower() not in endings or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            problems.add(str(path), "one file of that name", f"{found[name].name} beside it")
        else:
            found[name] = path
    return found
