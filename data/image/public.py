"""Image processors of public models, read from their folders, with the interface of `ImageProcessor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError, shorten
from mmattn.data.image.processor import FULL, RESAMPLE, Box, ImageProcessor
from mmattn.data.readers import read_settings

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

PREPROCESSING, WHOLE = "preprocessor_config.json", "processor_config.json"  # the latter has a section
STATISTICS = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # ImageNet's
HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
BILINEAR, BICUBIC = 2, 3  # PIL's numbers
LONGEST = 1333 / 800  # of the longer side to the shorter one
# Defaults of transformers for keys that a file omits, by the name of the processor.
KINDS: dict[str, dict[str, Any]] = {
    "Blip": {"size": 384, "resample": BICUBIC, **CLIP},
    "ViT": {"size": 224, "resample": BILINEAR, **HALF},
    "DeiT": {"size": 256, "resample": BICUBIC, "do_center_crop": True, "crop_size": 224, **HALF},
    "CLIP": {"size": 224, "resample": BICUBIC, "do_center_crop": True, "crop_size": 224, **CLIP},
    "Vilt": {"size": 384, "resample": BICUBIC, "size_divisor": 32, **HALF},
}


class Cropped(ImageProcessor):
    """The center of the whole image after it is resized; a subclass tells to which size."""

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height to which an image of the given width and height is resized."""
        raise NotImplementedError

    def window(self, size: tuple[int, int]) -> Box:
        (width, height), (left, top, right, bottom) = self.scaled_size(size), self._crop(size)
        return left / width, top / height, right / width, bottom / height

    def _crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The edges of the center of a resized image: left, top, right, bottom."""
        (width, height), (scaled_width, scaled_height) = self.size[::-1], self.scaled_size(size)
        left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
        return left, top, left + width, top + height

    def _resized(self, image: PILImage) -> PILImage:
        crop, scaled = self._crop(image.size), self.scaled_size(image.size)
        return image.resize(scaled, RESAMPLE.index(self.resample)).crop(crop)

    def config(self) -> dict[str, Any]:
        """Returns the constructor's keywords as JSON values."""
        return {"size": list(self.size), "mean": list(self.mean), "std": list(self.std), "resample": self.resample}


class CenterCrop(Cropped):
    """The center of the whole image after it is resized, its aspect ratio not kept.

    Args:
        size: Side of the crop, or (H, W).
        mean: Mean per channel.
        std: Standard deviation per channel.
        resample: Filter that resizes.
        scaled: Side, or (H, W), to which the whole image is resized.

    >>> CenterCrop(32, scaled=40)(np.zeros((20, 40, 3), dtype=np.uint8)).shape
    torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        size: int | Sequence[int] = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: str = "bicubic",
        scaled: int | Sequence[int] = 256,
    ) -> None:
        super().__init__(size, mean, std, resample=resample)
        self.scaled = ImageProcessor(scaled).size
        if self.size[0] > self.scaled[0] or self.size[1] > self.scaled[1]:
            raise ValueError(f"scaled: expected at least the size {self.size}, found {self.scaled}")

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.scaled[1], self.scaled[0]

    def config(self) -> dict[str, Any]:
        return super().config() | {"scaled": list(self.scaled)}


class ShorterSide(Cropped):
    """The center of the whole image after its shorter side is resized to a length (Radford et al. 2021, CLIP).

    Args:
        size: Side of the crop, or (H, W).
        mean: Mean per channel.
        std: Standard deviation per channel.
        resample: Filter that resizes.
        shorter: Length of the shorter side.

    >>> ShorterSide(32, shorter=40)(np.zeros((20, 40, 3), dtype=np.uint8)).shape
    torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        size: int | Sequence[int] = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: str = "bicubic",
        shorter: int = 224,
    ) -> None:
        super().__init__(size, mean, std, resample=resample)
        self.shorter = int(shorter)
        if max(self.size) > self.shorter:
            raise ValueError(f"shorter: expected at least both sides of the size {self.size}, found {shorter}")

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = (int(self.shorter * side / min(size)) for side in size)  # not rounded, as in transformers
        return width, height

    def config(self) -> dict[str, Any]:
        return super().config() | {"shorter": self.shorter}


class FittedImages(ImageProcessor):
    """Whole images in their aspect ratios, of several sizes in a batch (Kim et al. 2021, section 4.2).

    The shorter side has a given length, unless the longer one would exceed its maximum; both are cut to multiples.

    Args:
        shortest: Length of the shorter side; the longer one has at most 1333 / 800 of it.
        mean: Mean per channel.
        std: Standard deviation per channel.
        resample: Filter that resizes.
        multiple: Divisor of both sides, the side of a patch.

    >>> images = FittedImages(64)
    >>> pixels = [images.pixels(np.zeros((h, 60, 3), dtype=np.uint8))[0] for h in (50, 90)]
    >>> images.normalize(pixels).shape, images.pixel_mask(pixels).shape
    (torch.Size([2, 3, 96, 64]), torch.Size([2, 96, 64]))
    """

    def __init__(
        self,
        shortest: int = 384,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: str = "bicubic",
        multiple: int = 32,
    ) -> None:
        super().__init__(shortest, mean, std, resample=resample)
        if not 1 <= multiple <= shortest:
            raise ValueError(f"multiple: expected 1 to the shorter side, {shortest}; found {multiple}")
        self.shortest, self.multiple = shortest, multiple

    def working_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height to which an image of the given width and height is resized."""
        scale = self.shortest / min(width, height)
        sides = [scale * width, scale * height]
        longest = int(LONGEST * self.shortest)
        if max(sides) > longest:
            scale = longest / max(sides)
            sides = [scale * side for side in sides]
        whole = [int(side + 0.5) // self.multiple * self.multiple for side in sides]
        return max(whole[0], self.multiple), max(whole[1], self.multiple)

    def window(self, size: tuple[int, int]) -> Box:
        return FULL

    def normalize(self, images: Sequence[np.ndarray]) -> Tensor:
        """Normalizes uint8 (H, W, 3) arrays to (N, 3, H, W) float, with zeros right of and below smaller ones."""
        mask = self.pixel_mask(images)
        pixels = torch.zeros(len(images), 3, *mask.shape[1:])
        for row, image in enumerate(images):
            pixels[row, :, : image.shape[0], : image.shape[1]] = super().normalize([image])[0]
        return pixels

    def pixel_mask(self, images: Sequence[np.ndarray]) -> Tensor:
        """Returns the mask (N, H, W) bool of the batch that `normalize` makes, True = a pixel of the image."""
        mask = torch.zeros(len(images), *(max(image.shape[side] for image in images) for side in (0, 1)))
        for row, image in enumerate(images):
            mask[row, : image.shape[0], : image.shape[1]] = 1
        return mask.bool()

    def _resized(self, image: PILImage) -> PILImage:
        size = self.working_size(*image.size)
        return image if image.size == size else image.resize(size, RESAMPLE.index(self.resample))

    def config(self) -> dict[str, Any]:
        """Returns the constructor's keywords as JSON values."""
        own = {"shortest": self.shortest, "mean": list(self.mean), "std": list(self.std), "resample": self.resample}
        return own | {"multiple": self.multiple}


def make_image_processor(config: Mapping[str, Any]) -> ImageProcessor:
    """Makes an image processor of any class of this module, or an `ImageProcessor`, from the result of its `config`."""
    kinds = {"scaled": CenterCrop, "shorter": ShorterSide, "shortest": FittedImages}
    return next((kind for key, kind in kinds.items() if key in config), ImageProcessor).from_config(config)


def read_image_processor(directory: str | Path) -> ImageProcessor:
    """Reads the image processor of a public BLIP, CLIP (which is GIT's), DeiT, ViLT or ViT.

    Args:
        directory: Folder with a ``preprocessor_config.json``, or a ``processor_config.json`` with a section of it.

    Raises:
        DataError: There is no such file, or it is of another processor.
    """
    path, config = _read(Path(directory))
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    kind = next((kind for kind in KINDS if str(name).startswith((f"{kind}Image", f"{kind}Feature"))), None)
    if kind is None:
        raise DataError(str(path), f"image_processor_type of {', '.join(KINDS)}", shorten(name) if name else "none")
    given = KINDS[kind] | {key: value for key, value in config.items() if value is not None}
    if not given.get("do_resize", True):
        raise DataError(f"{path}: do_resize", "true", "false")
    try:
        options: dict[str, Any] = {"resample": RESAMPLE[given["resample"]], **normalization(given)}
        size = given["size"]
        if kind in ("CLIP", "Vilt") and not (isinstance(size, Mapping) and "height" in size):
            shortest = size["shortest_edge"] if isinstance(size, Mapping) else size
            if kind == "Vilt":
                return FittedImages(shortest, multiple=given["size_divisor"], **options)
            if not given["do_center_crop"]:
                raise ValueError("do_center_crop: expected true, found false")
            return ShorterSide(_sides(given["crop_size"]), shorter=shortest, **options)
        size = _sides(size)
        if given.get("do_center_crop"):
            return CenterCrop(_sides(given["crop_size"]), scaled=size, **options)
        return ImageProcessor(size, **options)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {shorten(str(error))}"
        raise DataError(str(path), "the options of a public image processor", found) from None


def _read(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    path = folder / PREPROCESSING
    whole = not path.is_file() and (folder / WHOLE).is_file()
    path = folder / WHOLE if whole else path
    config = read_settings(path)
    config = config.get("image_processor") if whole and isinstance(config, dict) else config
    if not isinstance(config, dict):
        raise DataError(str(path), "the options of an image processor", type(config).__name__)
    return path, config


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of a size, which older files have as one number."""
    if not isinstance(size, Mapping):
        return size, size
    if not {"height", "width"} <= set(size):
        raise ValueError(f"size: expected height and width, found {', '.join(size)}")
    return size["height"], size["width"]


def normalization(config: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Returns mean and std of pixel values in 0..1 for the options of a public image processor.

    Single values, of gray images, are those of all three channels; ImageNet's replace missing ones.

    Raises:
        ValueError: There are other numbers of channels.
    """
    given: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if config.get("do_normalize") is not False:
        given = {key: config.get(f"image_{key}") or config.get(key) or STATISTICS[f"image_{key}"] for key in given}
    mean, std = (tuple(values) * (3 if len(values) == 1 else 1) for values in (given["mean"], given["std"]))
    # Pixel values are normalized in the range from 0 to `top`.
    top = 255.0 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"expected a model of color or gray images, found mean {list(mean)}")
    if abs(top - 1) < 1e-6:
        return {"mean": mean, "std": std}
    return {"mean": tuple(m / top for m in mean), "std": tuple(s / top for s in std)}
