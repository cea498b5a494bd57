"""Images for tests: one image in every format, and unreadable files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ERRORS = {  # error messages of the album's unreadable files
    "cut.jpg": "expected a whole image, found a truncated or damaged one",
    "empty.png": "expected an image, found an empty file",
    "text.jpg": "found a file that starts with b'a text'",
    "bomb.png": "expected at most 89,478,485 pixels (the guard against decompression bombs)",
}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as a file's bytes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb(width: int = 20_000, height: int = 10_000) -> bytes:
    """A PNG whose header declares a size, with almost no data."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(1000))}
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_album(folder: Path, scene: Image.Image, upright: Image.Image | None = None) -> Path:
    """A scene as plain.png and in other formats, turned.png with `upright` by its EXIF tag; and the files of ERRORS."""
    (folder / "deep").mkdir(parents=True)
    scene.save(folder / "plain.png")
    scene.save(folder / "deep" / "below.bmp")
    scene.convert("CMYK").save(folder / "cmyk.jpg", quality=100, subsampling=0)
    Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    scene.quantize(256).save(folder / "palette.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    (upright or scene).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    whole = encoded(scene, "JPEG")
    bad = {"cut.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.jpg": b"a text", "bomb.png": bomb()}
    for name, content in {**bad, "notes.txt": b"passed over"}.items():
        (folder / name).write_bytes(content)
    return folder


def write_pairs(folder: Path, samples: Iterable[Any]) -> Path:
    """Samples with `id`, `image` and `mask` as a folder with images/ and masks/."""
    for sample in samples:
        for part, pixels in (("images", sample.image), ("masks", sample.mask)):
            path = folder / part / f"{sample.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder
