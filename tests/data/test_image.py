"""Reading of valid and invalid images; preprocessing; augmentation."""

from __future__ import annotations

import io
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.image import processor
from mmattn.data.image.masks import load_mask
from mmattn.data.image.processor import FULL, ImageAugment, ImageProcessor, compose, image_size, load_image, move_box
from tests.conftest import refused
from tests.data.files import bad_data, write
from tests.image_files import bomb, encoded


def gradient(width: int = 40, height: int = 20) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1).astype(np.uint8)


def seen(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    """The array read from an image saved in this format."""
    return np.asarray(load_image(encoded(image, kind, **options)))


# Reading


def test_path_bytes_array_and_pil_are_equivalent(tmp_path: Path) -> None:
    array = gradient()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(array)))
    readable = SimpleNamespace(read=path.read_bytes)
    for source in (path, str(path), path.read_bytes(), readable, array, Image.fromarray(array)):
        image = load_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), array)
        assert image_size(source) == (40, 20)


# EXIF: the sides of the upright image that are the stored image's first row and first column.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],  # first row is the right side, first column the top
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
    9: lambda a: a,  # no orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int) -> None:
    stored = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), exif=exif)
    image = load_image(data)
    assert image.size == image_size(data)
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](stored))


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 128 * 257, 65535], [257, 1000, 30000]], dtype=np.uint16)
    image = seen(Image.fromarray(values))
    assert np.array_equal(image[..., 0], np.round(values / 257).astype(np.uint8))
    assert np.array_equal(image[..., 0], image[..., 2])
    assert np.array_equal(np.asarray(load_image(Image.fromarray(values.astype(np.int32)))), image)


def test_float_images() -> None:
    for values, expected in (([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 20.0, 255.0], [0, 20, 255])):
        assert seen(Image.fromarray(np.array([values], np.float32)), "TIFF")[0, :, 0].tolist() == expected
    bad_data("finite", seen, Image.fromarray(np.array([[np.nan, 0.5]], np.float32)), "TIFF")


def test_cmyk_grey_one_bit_palette() -> None:
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    assert abs(seen(red.convert("CMYK"), "JPEG", quality=95).astype(int) - [200, 30, 30]).max() < 12
    assert seen(red.convert("L"))[0, 0].tolist() == [81, 81, 81]
    assert seen(red.convert("1")).shape == (8, 8, 3)
    assert abs(seen(red.quantize(4)).astype(int) - [200, 30, 30]).max() < 3


def test_transparency_is_composited_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (10, 20, 30, 255))
    expected = [[255, 255, 255], [10, 20, 30]]
    assert seen(half)[0].tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert seen(palette, transparency=0)[0].tolist() == expected
    assert seen(Image.new("LA", (1, 1), (0, 0)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "F"])
def test_strips_of_large_images_equal_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    numbers, kind = {"I;16": (65535, np.uint16), "F": (200, np.float32)}.get(mode, (255, np.uint8))
    shape = (11, 5, len(mode)) if mode in ("RGBA", "LA") else (11, 5)
    image = Image.fromarray(draw.integers(0, numbers, shape).astype(kind))
    whole = np.asarray(load_image(image))
    monkeypatch.setattr(processor, "STRIP", 15)
    assert np.array_equal(np.asarray(load_image(image)), whole)
    assert len(np.unique(whole)) > 20


def test_file_objects_are_read_again() -> None:
    file = io.BytesIO(PNG)
    assert image_size(file) == load_image(file).size == (64, 64)


def test_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("MMATTN_MAX_PIXELS", "4096")
    assert load_image(PNG).size == image_size(PNG) == (64, 64)
    monkeypatch.setenv("MMATTN_MAX_PIXELS", "4095")
    for read in (load_image, image_size, load_mask):
        bad_data("at most 4,095 pixels .*64 x 64; MMATTN_MAX_PIXELS sets another limit", read, PNG)
    monkeypatch.setenv("MMATTN_MAX_PIXELS", "4e9")
    bad_data("MMATTN_MAX_PIXELS: expected a positive integer, found '4e9'", load_image, PNG)


# Invalid input: one error each, which names the item and the file

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")
BAD = {
    "empty.png": (b"", "an empty file"),
    "text.jpg": (b"just some words", "starts with b'just some wo'"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated or damaged"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated or damaged"),
    "head.jpg": (JPEG[:100], "truncated or damaged|starts with"),
    "flipped.png": (PNG[:3000] + b"\xff" * 200 + PNG[3200:], "truncated or damaged"),
    "bomb.png": (bomb(12_000, 10_000), "89,478,485 pixels.*found 12000 x 10000"),
    "eps.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        r"an image \(PNG, JPEG.*starts with b'%!PS-Adobe-3'",
    ),
    "larger_bomb.png": (bomb(60_000, 60_000), "89,478,485 pixels.*found .*3600000000 pixels"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD)
def test_invalid_file(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = write(tmp_path / name, content)
    for source in (path, content):
        error = bad_data(message, load_image, source, "question 17")
        assert error.startswith("question 17: image")
        assert "\n" not in error
        assert source is content or str(path) in error


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no.png", r"^question 17: image no\.png: expected an image file, found no such file"),
        (Path(), "found a folder"),
        ("a\0b.png", "expected a readable image file"),
        (17, r"^question 17: image: expected a readable image file"),
        (PNG, "at most 100 pixels"),
        *((np.zeros(*kind), "uint8 array") for kind in (((4, 4, 3),), ((4, 4, 4), np.uint8), ((0, 4, 3), np.uint8))),
    ],
)
def test_invalid_images(source: object, message: str) -> None:
    bad_data(message, load_image, source, "question 17", max_pixels=100)


# Preprocessing


def test_tensor_is_normalized() -> None:
    processor = ImageProcessor((2, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    array = np.full((2, 4, 3), 51, dtype=np.uint8)
    expected = (torch.tensor(0.2) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    assert torch.allclose(processor(array), expected[:, None, None].expand(3, 2, 4))
    config = ImageProcessor((3, 5), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "pad").config()
    assert ImageProcessor.from_config(config).config() == config


def test_array_of_the_right_size_needs_no_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    array = gradient(8, 8)
    slow = ImageProcessor(8)(Image.fromarray(array))
    monkeypatch.setattr("mmattn.data.image.processor.load_image", None)
    assert torch.equal(ImageProcessor(8)(array), slow)


def off_by(pixels: np.ndarray, box: tuple[float, ...] | None) -> float:
    """The distance in pixels between the edges of the white area and those of a box."""
    assert box is not None
    rows, columns = np.where(pixels[..., 0] > 127)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
    return np.abs(found - np.array(box) * (pixels.shape[1::-1] * 2)).max()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(48, 24), (24, 48), (32, 32)])
def test_window_matches_the_visible_area(resize: str, size: tuple[int, int]) -> None:
    """A white box painted at known fractions appears at its transformed position."""
    image = np.zeros((120, 200, 3), dtype=np.uint8)
    image[48:72, 90:120] = 255  # a box near the center, so that a crop keeps it
    processor = ImageProcessor(size, mean=(0, 0, 0), std=(1, 1, 1), resize=resize)
    pixels, window = processor.pixels(image)
    assert pixels.shape == (*size, 3)
    moved = move_box((90 / 200, 48 / 120, 120 / 200, 72 / 120), window)
    assert off_by(pixels, moved) <= 1.01


def test_pad_and_crop() -> None:
    image = np.full((10, 40, 3), 255, dtype=np.uint8)
    assert (ImageProcessor(20, resize="pad").pixels(image)[0] == 255).mean() == pytest.approx(0.25)
    assert (ImageProcessor(20, resize="crop").pixels(image)[0] == 255).all()
    assert ImageProcessor(20, resize="pad").window((40, 10)) == (0.0, -1.5, 1.0, 2.5)
    assert ImageProcessor(20, resize="crop").window((40, 10)) == (0.375, 0.0, 0.625, 1.0)
    assert ImageProcessor(20).pixels(np.zeros((1, 1, 3), np.uint8))[0].shape == (20, 20, 3)


def test_boxes_are_transformed() -> None:
    assert move_box((0.2, 0.2, 0.4, 0.4), FULL) == (0.2, 0.2, 0.4, 0.4)
    assert move_box((0.2, 0.2, 0.4, 0.4), (0.5, 0.5, 1.0, 1.0)) is None
    assert move_box((0.0, 0.0, 0.5, 1.0), (1.0, 0.0, 0.0, 1.0)) == (0.5, 0.0, 1.0, 1.0)  # mirrored
    assert move_box((0.25, 0.25, 2.0, 0.5), (0.0, 0.0, 0.5, 0.5)) == (0.5, 0.5, 1.0, 1.0)
    inner, outer = (0.1, 0.2, 0.9, 0.8), (0.5, 0.0, 1.0, 0.5)
    once = move_box((0.6, 0.2, 0.7, 0.3), compose(outer, inner))
    twice = move_box(move_box((0.6, 0.2, 0.7, 0.3), outer) or FULL, inner)
    assert once == pytest.approx(twice)


# Augmentation


def test_augmentation_depends_only_on_the_seed() -> None:
    augment, image = ImageAugment(0.3, 0.3, 0.3, 0.1, 0.1, 0.1, flip=True), gradient(32, 32)
    before, drawn = torch.get_rng_state(), random.getstate()
    first = [(a.tobytes(), window) for a, window in (augment(image, seed) for seed in range(6))]
    assert torch.equal(before, torch.get_rng_state())
    assert drawn == random.getstate()
    torch.manual_seed(99)
    assert first == [(a.tobytes(), window) for a, window in (augment(image, seed) for seed in range(6))]
    assert len({pixels for pixels, _ in first}) == 6


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_augmented_image(seed: int) -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[20:30, 40:50] = 255
    pixels, window = ImageAugment(0, 0, 0, 0, shift=0.1, scale=0.2, flip=True)(image, seed)
    assert off_by(pixels, move_box((40 / 64, 20 / 64, 50 / 64, 30 / 64), window)) <= 1.5


def test_no_flip_by_default_and_identity_at_zero() -> None:
    image = gradient(16, 16)
    for seed in range(20):
        assert ImageAugment()(image, seed)[1][0] < 0.5
        pixels, window = ImageAugment(0, 0, 0, 0, 0, 0)(image, seed)
        assert np.array_equal(pixels, image)
        assert window == FULL


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ImageProcessor, {"size": 0}, "image size"),
        (ImageProcessor, {"resize": "squish"}, "did you mean 'squash'"),
        (ImageProcessor, {"std": (0.0, 1.0, 1.0)}, "std positive"),
        (ImageProcessor, {"mean": (0.5,)}, "three numbers"),
        (ImageAugment, {"hue": 0.7}, r"hue: expected 0 to 0\.5, found 0\.7"),
        (ImageAugment, {"scale": 1}, "scale: expected 0 to"),
    ],
)
def test_invalid_options(kind: type, options: dict, message: str) -> None:
    refused(message, kind, **options)
