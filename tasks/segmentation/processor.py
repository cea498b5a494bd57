"""What turns pictures into tensors and masks into labels, and labels back into masks; it is shipped with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.masks import VOID, ClassList, MaskSource, load_mask
from mmattn.data.image.processor import ImageSource, load_image, normalize
from mmattn.data.processor import Saved

if TYPE_CHECKING:
    from mmattn.tasks.segmentation.data import SegmentationDataset


class SegmentationProcessor(Saved):
    """Pictures, masks and classes.

    Args:
        classes: What is learnt.
        size: Length of a picture's shorter side as the model sees it, its shape kept; or (H, W), to which every
            picture is squashed; None: as it is.
        mean: Per channel, of pixel values in 0..1.
        std: Likewise.
        counts: Labelled pixels of each class in the training part, from which class weights are made.
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
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"size: expected at least 1 pixel, or (height, width), found {size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std: expected three numbers each, std positive, found {mean} and {std}")
        self.classes = classes
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.counts = [int(count) for count in counts] or [0] * len(classes.names)

    @classmethod
    def fit(
        cls, dataset: SegmentationDataset, size: int | Sequence[int] | None = None, **options: Any
    ) -> SegmentationProcessor:
        """Classes from the data set's list, or, where it has none, from what its masks hold; pixels are counted.

        Raises:
            DataError: A mask with a number that is in no list; or no labelled pixel at all.
        """
        totals = np.zeros(65536, np.int64)
        for sample in dataset.samples:
            mask = load_mask(sample.mask, f"sample {sample.id}")
            if dataset.classes is not None:
                dataset.classes.labels(mask, dataset.where(sample))
            totals += np.bincount(mask.reshape(-1), minlength=65536)
        classes = dataset.classes
        if classes is None:
            found = [int(number) for number in np.nonzero(totals)[0] if number != VOID]
            if found and found[-1] > VOID:
                raise DataError(dataset.name, "masks of numbers from 0 to 255", f"{found[-1]}")
            classes = ClassList(tuple(f"class {number}" for number in found), tuple(found))
        counts = [int(totals[number]) for number in classes.ids]
        if not sum(counts):
            raise DataError(dataset.name, "masks with labelled pixels", "void alone")
        return cls(classes, size, counts=counts, **options)

    def sizes(self) -> dict[str, int]:
        """The model's keywords that the data decides."""
        return {"num_classes": len(self.classes.names)}

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height at which the model sees a picture of this width and height."""
        if self.size is None:
            return width, height
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        scale = self.size / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def pixels(self, source: ImageSource, name: str | None = None) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture at its working size, uint8 (h, w, 3), and its own (H, W)."""
        from PIL import Image

        image = load_image(source, name)
        size = self.working_size(*image.size)
        own = (image.height, image.width)
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)), own

    def labels(self, source: MaskSource, where: str) -> np.ndarray:
        """A mask as labels (H, W), uint8."""
        return self.classes.labels(load_mask(source, where), where)

    def normalize(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 (H, W, 3) arrays of one size to (N, 3, H, W) float."""
        return normalize(images, self.mean, self.std)

    # Saving -----------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        classes = {"names": list(self.classes.names), "ids": list(self.classes.ids), "void": list(self.classes.void)}
        image = {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return {"image": image, "classes": classes, "counts": self.counts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        classes = ClassList(**{key: tuple(value) for key, value in config["classes"].items()})
        return cls(classes, **config["image"], counts=config["counts"])
