"""The processor of segmentation: images to tensors, masks to labels and back; shipped with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mmattn.data.errors import DataError
from mmattn.data.image.augment import shuffle_patches
from mmattn.data.image.masks import CLASS_FILE, VOID, ClassList, load_mask
from mmattn.data.image.processor import MAX_PIXELS, ImageProcessor, ImageSource, image_size, load_image
from mmattn.data.processor import Processor
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.segmentation.augment import SegmentationAugment
from mmattn.tasks.segmentation.data import Prepared, SegmentationBatch, SegmentationDataset, SegmentationSample

PATCH = 8  # side of the patches of the built-in baseline, in pixels
REMEDY = f"; {VOID} is void unless {CLASS_FILE} has it, with lines such as '0 background' and '{VOID} object'"


class SegmentationProcessor(Processor[SegmentationSample, SegmentationBatch]):
    """Converts images to tensors and masks to labels.

    Args:
        classes: The class list.
        size: Shorter side of input images in pixels, with the aspect ratio kept; or (H, W), to which all images are
            resized; None: images are not resized.
        mean: Mean of pixel values in 0..1, per channel.
        std: Standard deviation of pixel values in 0..1, per channel.
        counts: Number of labeled training pixels of each class, from which class weights are computed.
    """

    KEYS = frozenset({"image", "classes", "counts"})

    def __init__(
        self,
        classes: ClassList,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        counts: Sequence[int] = (),
    ) -> None:
        self.size: int | tuple[int, ...] | None = size if isinstance(size, int | None) else tuple(map(int, size))
        sides = (1, 1) if self.size is None else (self.size, self.size) if isinstance(self.size, int) else self.size
        if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(f"size: expected 1 to {MAX_PIXELS:,} pixels, or (height, width), found {size}")
        self.classes = classes
        self.image = ImageProcessor(mean=mean, std=std)
        self.counts = [int(count) for count in counts] or [0] * len(classes.names)

    @classmethod
    def fit(
        cls, dataset: SegmentationDataset, size: int | Sequence[int] | None = None, **options: Any
    ) -> SegmentationProcessor:
        """Fit a processor: classes are those of the data set's list, or, without a list, the numbers in its masks.

        Raises:
            DataError: A mask has a number that is not in the list, or fewer than two classes have pixels.
        """
        totals = np.zeros(65536, np.int64)
        for where, sample in zip(dataset.places, dataset.samples, strict=True):
            mask = load_mask(sample.mask, f"sample {sample.id}")
            if dataset.classes is not None:
                dataset.classes.labels(mask, where)
            totals += np.bincount(mask.reshape(-1), minlength=65536)
        classes = dataset.classes
        if classes is None:
            found = [int(number) for number in np.nonzero(totals)[0] if number != VOID]
            if found and found[-1] > VOID:
                raise DataError(dataset.name, "masks of numbers from 0 to 255", f"{found[-1]}")
            classes = ClassList(tuple(f"class {number}" for number in found), tuple(found))
        counts = [int(totals[number]) for number in classes.ids]
        there = [name for name, count in zip(classes.names, counts, strict=True) if count]
        if len(there) < 2:
            remedy = REMEDY if totals[VOID] and VOID not in classes.ids else ""
            only = there[0] if there else "void pixels"
            raise DataError(dataset.name, "masks of two or more classes", f"{only} only{remedy}")
        return cls(classes, size, counts=counts, **options)

    def retarget(self, train: SegmentationDataset, given: Mapping[str, Any]) -> SegmentationProcessor:
        """A processor with the model's image preprocessing and the data's classes and counts; see `Processor`."""
        size = self.size if given["size"] is None else given["size"]
        return type(self).fit(train, size, mean=self.image.mean, std=self.image.std)

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return list(self.classes.names)

    def sizes(self) -> dict[str, Any]:
        return {"num_classes": len(self.classes.names)}

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which an image of the given width and height is resized."""
        if self.size is None:
            return width, height
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        scale = self.size / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def pixels(self, source: ImageSource, name: str | None = None) -> tuple[np.ndarray, tuple[int, int]]:
        """The image at its working size, uint8 (h, w, 3), and its original size (H, W)."""
        from PIL import Image

        image = load_image(source, name)
        size = self.working_size(*image.size)
        own = (image.height, image.width)
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)), own

    def prepare(self, sample: SegmentationSample, training: bool = False) -> Prepared:
        """Decode a sample: the image at its working size; labels at that size in training, else at the original size.

        Raises:
            DataError: Image or mask cannot be read, or their sizes differ; names the file.
        """
        if isinstance(sample, Prepared):
            return sample
        pixels, own = self.pixels(sample.image, f"sample {sample.id}")
        if sample.mask is None:
            return Prepared(sample.id, pixels, np.full(own, VOID, np.uint8))
        labels = self.labels_of(sample)
        if labels.shape != own:
            expected, found = (f"{shape[1]} x {shape[0]}" for shape in (own, labels.shape))
            raise DataError(_mask_name(sample), f"the size of its image, {expected}", found)
        return Prepared(sample.id, pixels, _nearest(labels, pixels.shape[:2]) if training else labels)

    def check(self, dataset: SegmentationDataset) -> None:
        """Raise a ``DataError`` if all masks of a data set are void, which every model would be right about."""
        masks = (sample.mask if isinstance(sample, Prepared) else self.labels_of(sample) for sample in dataset.samples)
        if all((mask == VOID).all() for mask in masks):
            raise DataError(dataset.name, "masks with labeled pixels", f"void pixels only{REMEDY}")

    def labels_of(self, sample: SegmentationSample) -> np.ndarray:
        """The labels (H, W) of a sample's mask."""
        where = _mask_name(sample)
        return self.classes.labels(load_mask(sample.mask, where), where)

    def preload(self, dataset: SegmentationDataset, training: bool, max_bytes: int = 2 << 30) -> bool:
        """Decode a data set into memory.

        Returns:
            Whether it was decoded; False if it exceeds ``max_bytes``, and the data set is unchanged.
        """
        sizes = [image_size(sample.image, f"sample {sample.id}") for sample in dataset.samples]
        pixels = sum(3 * w * h for w, h in (self.working_size(*size) for size in sizes))
        if pixels + sum(w * h for w, h in sizes) > max_bytes:
            return False
        dataset.preloaded(lambda sample, where: self.prepare(sample, training))
        return True

    def collate(
        self,
        samples: Sequence[SegmentationSample],
        *,
        training: bool = False,
        augment: SegmentationAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> SegmentationBatch:
        """Collate a batch; labels are at the images' working size in training, else at their original size."""
        ready = [self.prepare(sample, training) for sample in samples]
        pairs = [(sample.image, sample.mask) for sample in ready]
        if augment is not None:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            pairs = [augment(*pair, seed) for pair, seed in zip(pairs, seeds, strict=True)]
        images, masks = zip(*pairs, strict=True)
        ground = np.round(255 * np.array(self.image.mean)).astype(np.uint8)
        return SegmentationBatch(
            pixel_values=self.image.normalize(_filled(images, ground)),
            labels=torch.from_numpy(np.stack(_filled(masks, VOID))),
            sizes=[image.shape[:2] for image in images],
            label_sizes=[mask.shape for mask in masks],
            ids=[sample.id for sample in ready],
            is_repeat=is_repeat,
        )

    def ablate(self, batch: SegmentationBatch, what: str, seeds: Sequence[int] | None = None) -> SegmentationBatch:
        """Ablate the "context": permute the patches of each image, with their labels, as a function of its id.

        Raises:
            ConfigError: Images and masks differ in size, or their sides are not multiples of the patch size.
        """
        if batch.labels.shape[1:] != batch.pixel_values.shape[2:] or any(n % PATCH for n in batch.labels.shape[1:]):
            found = f"{tuple(batch.pixel_values.shape[2:])} and {tuple(batch.labels.shape[1:])}"
            raise ConfigError(
                f"data.ablate: expected images and masks of one size, whole patches of {PATCH}; found {found}."
            )
        cells = batch.labels[0].numel() // PATCH**2
        streams = [np.random.RandomState(list(name.encode())) for name in batch.ids]
        both = torch.cat([batch.pixel_values, batch.labels[:, None].float()], 1)  # (B, 4, H, W)
        both = shuffle_patches(both, PATCH, [torch.from_numpy(stream.permutation(cells)) for stream in streams])
        batch.pixel_values, batch.labels = both[:, :3].contiguous(), both[:, 3].byte()
        return batch

    def settings(self) -> dict[str, Any]:
        classes = {"names": list(self.classes.names), "ids": list(self.classes.ids), "void": list(self.classes.void)}
        image = {**self.image.config(), "size": self.size}
        del image["resize"]
        return {"image": image, "classes": classes, "counts": self.counts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        classes = ClassList(**{key: tuple(value) for key, value in config["classes"].items()})
        return cls(classes, **config["image"], counts=config["counts"])


def _mask_name(sample: SegmentationSample) -> str:
    return f"mask {sample.mask}" if isinstance(sample.mask, (str, Path)) else f"sample {sample.id}"


def _filled(arrays: Sequence[np.ndarray], value: Any) -> list[np.ndarray]:
    """Pad uint8 arrays (h, w, ...) right and below to the largest height and width among them."""
    height, width = (max(array.shape[n] for array in arrays) for n in (0, 1))
    filled = []
    for array in arrays:
        whole = array
        if array.shape[:2] != (height, width):
            whole = np.empty((height, width, *array.shape[2:]), np.uint8)
            whole[:] = value
            whole[: array.shape[0], : array.shape[1]] = array
        filled.append(whole)
    return filled


def _nearest(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize labels (H, W) by nearest neighbor, sampled at pixel centers."""
    if labels.shape == shape:
        return labels
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[rows[:, None], columns])
