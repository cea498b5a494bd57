"""The public image sets of ``scripts/fetch_data.py``: CIFAR-10 as tars of class folders, CamVid with its masks."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from mmattn.data.errors import DataError
from scripts.fetch.archive import Archive, FetchError, validation


def convert_cifar10(archive: Archive, folder: Path) -> None:
    """Write the unchanged files as ``CLASS/NUMBER.jpg`` into three tars, in mixed order of classes."""
    val = {name: set(numbers) for name, numbers in validation("cifar10").items()}
    parts: dict[str, dict[str, bytes]] = {"train": {}, "val": {}, "test": {}}
    for path, content in archive.files(r"(?:train|test)/\w+/\d+\.jpg"):
        part, name, number = Path(path).with_suffix("").parts
        if name not in val:
            raise FetchError(f"cifar10: expected one of the classes {', '.join(val)}, found {path}")
        if part == "train" and int(number) in val[name]:
            part = "val"
        parts[part][f"{name}/{number}.jpg"] = content
    for part, files in parts.items():
        if not files:
            raise FetchError(f"cifar10: the archive has no images of {part}")
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in val), encoding="utf-8", newline="\n")


def tar_digest(path: Path) -> str:
    """SHA-256 over the names and contents of a tar's files, independent of their order."""
    rows = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:
                    rows.append(f"{hashlib.sha256(stream.read()).hexdigest()} {member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{path.name} is damaged ({error})") from None
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


_CAMVID_CLASSES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car"]
_CAMVID_CLASSES += ["Pedestrian", "Bicyclist", "Void"]
_CAMVID_SIZE = (480, 360)


def convert_camvid(archive: Archive, folder: Path) -> None:
    """Convert images to JPEG, a tenth of the size; masks keep their numbers."""
    found: dict[str, set[str]] = {}
    for path, content in archive.files(r"CamVid/(?:train|val|test)(?:annot)?/\w+\.png"):
        place = Path(path)
        part, is_mask = place.parent.name.removesuffix("annot"), place.parent.name.endswith("annot")
        target = folder / part / ("masks" if is_mask else "images") / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            size = _write_mask(content, target) if is_mask else _write_jpeg(content, target.with_suffix(".jpg"))
        except DataError as error:
            raise FetchError(f"camvid: {path}: {error}") from None
        if size != _CAMVID_SIZE:
            raise FetchError(f"camvid: {path}: expected {_CAMVID_SIZE[0]} x {_CAMVID_SIZE[1]} pixels, found {size}")
        found.setdefault(f"{part}/{target.parent.name}", set()).add(place.stem)
    for part in ("train", "val", "test"):
        images, masks = (found.get(f"{part}/{kind}", set()) for kind in ("images", "masks"))
        if not images or images != masks:
            raise FetchError(f"camvid: expected as many masks as images of {part}, found {len(masks)}, {len(images)}")
    lines = [f"{number} {name}\n" for number, name in enumerate(_CAMVID_CLASSES)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _write_mask(content: bytes, path: Path) -> tuple[int, int]:
    from PIL import Image

    from mmattn.data.image.masks import load_mask

    numbers = load_mask(content)
    if numbers.max() >= len(_CAMVID_CLASSES):
        raise DataError("mask", f"numbers up to {len(_CAMVID_CLASSES) - 1}", f"{numbers.max()}")
    Image.fromarray(numbers.astype(np.uint8)).save(path)
    return numbers.shape[1], numbers.shape[0]


def _write_jpeg(content: bytes, path: Path) -> tuple[int, int]:
    from mmattn.data.image.processor import load_image

    image = load_image(content)
    image.save(path, "JPEG", quality=92)
    return image.size


def masks_digest(folder: Path) -> str:
    """SHA-256 over the names, sizes and numbers of a folder's masks, independent of compression."""
    from mmattn.data.image.masks import load_mask

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.png")):
        numbers = load_mask(path)
        digest.update(f"{path.name} {numbers.shape}".encode())
        digest.update(numbers.astype(np.uint8).tobytes())
    return digest.hexdigest()
