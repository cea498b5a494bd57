"""Image reading, and the preprocessing that training and serving share.

Reading and evaluation need PIL and torch only; torchvision is imported by ``ImageAugment``, for training.

A *window* is the rectangle of the original image that the model's input covers, as fractions ``(x0, y0, x1, y1)`` of
the original's width and height: ``(0, 0, 1, 1)`` is the whole image, a crop is smaller, padding extends beyond it.
Windows map boxes from the image to the model's input, and maps over the model's input back to the image.
"""

from __future__ import annotations

import io
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest, shorten
from mmattn.data.image.augment import check_limits, recolor
from mmattn.data.names import find_file

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

ImageSource = Any  # str | Path | bytes | file object | np.ndarray (uint8, HxWx3) | PIL.Image.Image
Box = tuple[float, float, float, float]

MAX_PIXELS = 89_478_485  # PIL's limit against decompression bombs: 256 MB of RGB
LIMIT = "MMATTN_MAX_PIXELS"  # environment variable of another limit, which the workers of a loader inherit
STRIP = 1 << 22  # pixels that are converted at a time
ORIENTATION = 0x0112  # of EXIF
FULL: Box = (0.0, 0.0, 1.0, 1.0)
RESIZE = ("squash", "crop", "pad")
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of PIL's numbers
# PIL recognizes files by content alone, and runs Ghostscript for EPS: only these formats are opened.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def load_image(source: ImageSource, name: str | None = None, max_pixels: int | None = None) -> PILImage:
    """Reads an image as RGB: rotated by its EXIF orientation, transparency on white, 16 bits scaled to 8.

    Args:
        source: A path, the file's bytes, a uint8 array HxWx3 or HxW, or a PIL image.
        name: Location of the item, which errors name besides the file, e.g. ``"question 17"``.
        max_pixels: Maximum of width times height, checked in the header before decoding; None: the environment variable
            ``MMATTN_MAX_PIXELS``, by default ``MAX_PIXELS``.

    Raises:
        DataError: The image is missing, empty, truncated, too large, or not an image.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _upright_rgb(source, _where(source, name))
    if isinstance(source, np.ndarray):
        return Image.fromarray(_check_array(source, name))
    return read_image(source, _upright_rgb, name, max_pixels)


def image_size(source: ImageSource, name: str | None = None, max_pixels: int | None = None) -> tuple[int, int]:
    """Returns width and height of the image that ``load_image`` would return, from the header alone."""
    if isinstance(source, np.ndarray):
        array = _check_array(source, name)
        return array.shape[1], array.shape[0]
    if hasattr(source, "getexif"):  # a PIL image
        return source.size
    return read_image(source, _upright_size, name, max_pixels)


def size_facts(source: ImageSource) -> dict[str, int]:
    """Returns the size of an image in pixels, as facts of a sample; see `image_size`."""
    width, height = image_size(source)
    return {"width": width, "height": height}


def _upright_size(image: PILImage, where: str) -> tuple[int, int]:
    width, height = image.size
    is_turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)  # EXIF orientations; others are ignored
    return (height, width) if is_turned else (width, height)


def _where(source: ImageSource, name: str | None) -> str:
    if isinstance(source, (str, Path)):
        known = not name or f" {name}".endswith(f" {source}")  # the name has the path already
        return f"image {source}" if known else f"{name}: image {source}"
    kind = "bytes" if isinstance(source, bytes) else type(source).__name__
    return f"{name}: image" if name else f"image ({kind})"


def read_image(
    source: ImageSource, use: Callable[[PILImage, str], Any], name: str | None = None, max_pixels: int | None = None
) -> Any:
    """Returns ``use(image, where)`` of an opened file, with the errors of ``load_image``."""
    from PIL import Image, UnidentifiedImageError

    where = _where(source, name)
    try:
        if hasattr(source, "read"):
            if getattr(source, "seekable", bool)():
                source.seek(0)  # read before, for its size
            source = source.read()
        path = None if isinstance(source, bytes) else find_file(source)
        stream: Any = io.BytesIO(source) if path is None else path.open("rb")
        start = stream.read(12)
        stream.seek(0)
    except (FileNotFoundError, IsADirectoryError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "a folder"
        raise DataError(where, "an image file", found) from None
    except (OSError, TypeError, ValueError) as error:  # TypeError: no path; ValueError: a NUL in it
        raise DataError(where, "a readable image file", shorten(str(error))) from None
    if not start:
        stream.close()
        raise DataError(where, "an image", "an empty file")
    limit = max_pixels or limit_of(LIMIT, MAX_PIXELS)
    too_large = f"at most {limit:,} pixels (the guard against decompression bombs)"
    if limit > (Image.MAX_IMAGE_PIXELS or limit):
        Image.MAX_IMAGE_PIXELS = limit
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about bombs and damaged metadata; the error below replaces it
        try:
            with Image.open(stream, formats=FORMATS) as image:
                width, height = image.size
                if width * height > limit:
                    raise DataError(where, too_large, f"{width} x {height}; {LIMIT} sets another limit")
                return use(image, where)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(where, too_large, f"{shorten(str(error))}; {LIMIT} sets another limit") from None
        except UnidentifiedImageError:
            expected = f"an image ({', '.join(FORMATS)})"
            raise DataError(where, expected, f"a file that starts with {start!r}") from None
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error ...
            raise DataError(where, "a whole image", f"a truncated or damaged one ({shorten(str(error))})") from None


def _check_array(array: np.ndarray, name: str | None) -> np.ndarray:
    good = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    if not good or 0 in array.shape:
        raise DataError(_where(array, name), "a uint8 array HxWx3 (or HxW)", f"{array.dtype} of shape {array.shape}")
    return array


def limit_of(variable: str, default: int) -> int:
    """Returns the limit that an environment variable sets.

    Raises:
        DataError: It is no positive integer.
    """
    given = os.environ.get(variable, f"{default}")
    if not given.isdecimal() or int(given) < 1:
        raise DataError(variable, "a positive integer", repr(given))
    return int(given)


def _upright_rgb(image: PILImage, where: str) -> PILImage:
    from PIL import Image, ImageOps

    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        convert = _scaled(image, where)
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        convert = _on_white
    else:
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):  # a large image and its intermediate results would take gigabytes
        result.paste(convert(strip), (0, top))
    return result


def _strips(image: PILImage) -> Iterator[tuple[int, PILImage]]:
    """Yields the image in parts of all columns, each with its first row."""
    height = max(1, STRIP // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _on_white(image: PILImage) -> PILImage:
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _scaled(image: PILImage, where: str) -> Callable[[PILImage], PILImage]:
    """Returns the conversion of an image of 16 bits or floats to 8 bits."""
    from PIL import Image

    top = -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise DataError(where, "finite pixel values", "NaN or infinity")
        top = max(top, float(values.max()))
    # 16-bit files have mode "I;16" or "I"; floats are in 0..1, 0..255 or 0..65535.
    scale = 255.0 / 65535.0 if image.mode.startswith("I;16") or top > 255 else (255.0 if top <= 1 else 1.0)
    if image.mode == "I" and top <= 255:
        scale = 1.0

    def convert(strip: PILImage) -> PILImage:
        values = np.asarray(strip).astype(np.float32)
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")

    return convert


class ImageProcessor:
    """Converts an image to a normalized (3, H, W) tensor, in PIL and torch, for evaluation and serving.

    Args:
        size: Output side, or (H, W).
        mean: Mean per channel, of pixel values in 0..1.
        std: Standard deviation per channel, of pixel values in 0..1.
        resize: ``squash`` (whole image, aspect ratio not kept), ``crop`` (shorter side fits, center crop) or ``pad``
            (longer side fits, the rest is filled with the mean color).
        resample: Filter that resizes, a name in ``RESAMPLE``.

    >>> ImageProcessor(32)(np.zeros((20, 40, 3), dtype=np.uint8)).shape
    torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        size: int | Sequence[int] = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resize: str = "squash",
        resample: str = "bilinear",
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        self.size, self.resize, self.resample = (int(height), int(width)), resize, resample
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if min(self.size) < 1 or self.size[0] * self.size[1] > MAX_PIXELS:
            raise ValueError(f"image size: expected at least 1, and at most {MAX_PIXELS:,} pixels, found {size}")
        for name, value, known in (("resize", resize, RESIZE), ("resample", resample, RESAMPLE)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {value!r}{nearest(value, known)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected three numbers each, std positive, found {mean} and {std}")

    def __call__(self, source: ImageSource, name: str | None = None) -> Tensor:
        """Returns an image as (3, H, W) float."""
        return self.normalize([self.pixels(source, name)[0]])[0]

    def pixels(self, source: ImageSource, name: str | None = None) -> tuple[np.ndarray, Box]:
        """Returns the image at the model's size, uint8 (H, W, 3), and its window of the original.

        An array that already has this size is returned unchanged, without PIL.
        """
        if isinstance(source, np.ndarray) and source.shape == (*self.size, 3) and source.dtype == np.uint8:
            return source, FULL
        image = load_image(source, name)
        window = self.window(image.size)
        return np.asarray(self._resized(image)), window

    def normalize(self, images: Sequence[np.ndarray]) -> Tensor:
        """Normalizes uint8 (H, W, 3) arrays of one size to (N, 3, H, W) float."""
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (N, H, W, 3)
        pixels = stacked.permute(0, 3, 1, 2).float().div_(255)  # (N, 3, H, W)
        pixels.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])
        return pixels.contiguous()

    def window(self, size: tuple[int, int]) -> Box:
        """Returns the window that the model's input covers of an image of this (width, height)."""
        if self.resize == "squash":
            return FULL
        width, height = size
        scale = (max if self.resize == "crop" else min)(self.size[1] / width, self.size[0] / height)
        half_x, half_y = self.size[1] / (scale * width) / 2, self.size[0] / (scale * height) / 2
        return (0.5 - half_x, 0.5 - half_y, 0.5 + half_x, 0.5 + half_y)

    def _resized(self, image: PILImage) -> PILImage:
        from PIL import Image

        (height, width), resample = self.size, RESAMPLE.index(self.resample)
        if image.size == (width, height):
            return image
        if self.resize != "pad":
            x0, y0, x1, y1 = self.window(image.size)
            left, right = (min(max(x, 0.0), 1.0) * image.width for x in (x0, x1))
            top, bottom = (min(max(y, 0.0), 1.0) * image.height for y in (y0, y1))
            return image.resize((width, height), resample, box=(left, top, right, bottom))
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        ground = Image.new("RGB", (width, height), tuple(round(255 * value) for value in self.mean))
        resized = image.resize(inner, resample)
        ground.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return ground

    def config(self) -> dict[str, Any]:
        """Returns the constructor's keywords as JSON values."""
        filters = {} if self.resample == "bilinear" else {"resample": self.resample}  # which older files do not name
        normal = {"mean": list(self.mean), "std": list(self.std)}
        return {"size": list(self.size), **normal, "resize": self.resize, **filters}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Makes the processor from the result of ``config``."""
        return cls(**config)


def move_box(box: Box, window: Box) -> Box | None:
    """Converts a box from fractions of the original to fractions of a window; None if it lies outside."""
    if window == FULL and 0.0 <= box[0] < box[2] <= 1.0 and 0.0 <= box[1] < box[3] <= 1.0:
        return box  # the usual case, for every box of every batch
    x0, y0, x1, y1 = window
    left, right = sorted(((box[0] - x0) / (x1 - x0), (box[2] - x0) / (x1 - x0)))
    top, bottom = sorted(((box[1] - y0) / (y1 - y0), (box[3] - y0) / (y1 - y0)))
    moved = (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))
    return moved if moved[0] < moved[2] and moved[1] < moved[3] else None


def compose(outer: Box, inner: Box) -> Box:
    """Returns the window ``inner`` of the window ``outer``, in fractions of the original."""
    x0, y0, x1, y1 = outer
    wide, high = x1 - x0, y1 - y0
    return x0 + inner[0] * wide, y0 + inner[1] * high, x0 + inner[2] * wide, y0 + inner[3] * high


class ImageAugment:
    """Augmentation of a training image, a pure function of the image and an integer seed.

    It has its own random generator, so the global random state is neither read nor changed, and it works on 8-bit
    pixels, so the result does not depend on the number of threads.

    Args:
        brightness: Maximum change x of brightness; the factor is drawn from 1 - x .. 1 + x.
        contrast: Maximum change of contrast, likewise.
        saturation: Maximum change of saturation, likewise.
        hue: Maximum hue shift, at most 0.5, drawn from -x .. x; 0 for tasks that predict colors.
        shift: Maximum translation, as a fraction of the side.
        scale: Maximum change x of the zoom factor, drawn from 1 - x .. 1 + x.
        flip: Whether half of the images are mirrored, which invalidates answers such as "left of".
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.0,
        hue: float = 0.0,
        shift: float = 0.05,
        scale: float = 0.05,
        flip: bool = False,
    ) -> None:
        import torchvision.transforms.v2.functional  # noqa: F401  imported here so that forked workers share it

        self.color = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.shift, self.scale, self.flip = shift, scale, flip
        check_limits({**self.color, "shift": shift, "scale": scale}, {"hue": 0.5, "shift": 0.5})

    @property
    def is_finite(self) -> bool:
        """Whether an image has few results, so that it pays to keep what is computed from them: flips alone."""
        return not any((*self.color.values(), self.shift, self.scale))

    def __call__(self, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, Box]:
        """Augments one image.

        Args:
            pixels: uint8 (H, W, 3).
            seed: Seed of all random draws.

        Returns:
            The image, uint8 (H, W, 3), and its window of the input image (x1 < x0 when mirrored).
        """
        from PIL import Image
        from torchvision.transforms.v2 import functional as F

        rng = random.Random(seed)
        draws = [rng.random() for _ in range(8)]
        # torchvision processes PIL images with PIL: 8-bit, one thread, identical on every machine.
        image = recolor(Image.fromarray(pixels), self.color, draws)
        window = FULL
        height, width = pixels.shape[:2]
        if self.shift or self.scale:
            dx, dy = (round((2 * draws[n] - 1) * self.shift * side) for n, side in ((4, width), (6, height)))
            zoom = 1 + (2 * draws[5] - 1) * self.scale
            fill = pixels.reshape(-1, 3).mean(0).round().tolist()
            bilinear = F.InterpolationMode.BILINEAR
            image = F.affine(image, 0.0, [dx, dy], zoom, [0.0, 0.0], interpolation=bilinear, fill=fill)
            half, cx, cy = 0.5 / zoom, 0.5 - dx / width / zoom, 0.5 - dy / height / zoom
            window = (cx - half, cy - half, cx + half, cy + half)
        if self.flip and draws[7] < 0.5:
            image = F.horizontal_flip(image)
            window = (window[2], window[1], window[0], window[3])
        return np.asarray(image), window
