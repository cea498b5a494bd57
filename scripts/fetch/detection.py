"""The public detection sets of ``scripts/fetch_data.py``: VOC's XML, a file an image, to COCO's JSON of each split.

Boxes are cut at the border of their image; those without an area are left out. Images of train and val are in
``images/``, those of test in ``test/``, where ``instances_test.json`` finds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmattn.data.errors import DataError
from mmattn.data.image.processor import image_size, load_image
from scripts.fetch.archive import Archive, FetchError, validation

PARTS = ("train", "val", "test")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BCCD, _CELLS = "BCCD", ("RBC", "WBC", "Platelets")
_FRUITS, _LONGEST, _QUALITY = ("apple", "banana", "orange"), 384, 88

Object = tuple[str, tuple[float, ...]]  # class, and box xyxy in pixels
Image = tuple[tuple[int, int], list[Object]]  # width and height, and the objects


def write_coco(
    folder: Path, title: str, parts: Mapping[str, Mapping[str, Image]], classes: Sequence[str], kind: str
) -> None:
    """Write ``annotations/instances_PART.json``, with the images in the order of their file names."""
    (folder / "annotations").mkdir(exist_ok=True)
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    for part, images in parts.items():
        if not images:
            raise FetchError(f"{folder.name}: the archive has no images of {part}")
        rows: list[dict[str, Any]] = []
        listed = []
        for number, (name, (size, objects)) in enumerate(sorted(images.items()), start=1):
            listed.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
            for label, corners in objects:
                if label not in numbers:
                    raise FetchError(f"{folder.name}: {name}: expected one of {', '.join(classes)}, found {label!r}")
                x1, y1, x2, y2 = (min(max(x, 0.0), side) for x, side in zip(corners, size * 2, strict=True))
                box = [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)]
                if box[2] > 0 and box[3] > 0:
                    row = {"id": len(rows) + 1, "image_id": number, "category_id": numbers[label], "bbox": box}
                    rows.append(row | {"area": round(box[2] * box[3], 2), "iscrowd": 0})
        content = {
            "info": {"description": f"{title} {part}"},
            "licenses": [],
            "categories": [{"id": n, "name": name, "supercategory": kind} for name, n in numbers.items()],
            "images": listed,
            "annotations": rows,
        }
        path = folder / "annotations" / f"instances_{part}.json"
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8", newline="\n")


def read_objects(path: str, content: bytes) -> list[Object]:
    """The objects of a VOC file; boxes as written."""
    try:
        return [
            (thing.findtext("name", "").strip(), tuple(float(thing.findtext(f"bndbox/{c}", "")) for c in _CORNERS))
            for thing in ElementTree.fromstring(content).findall("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise FetchError(f"{path} is no annotation of VOC ({error})") from None


def convert_bccd(archive: Archive, folder: Path) -> None:
    """Copy the images and the XML of train and val; the splits are the source's own lists."""
    part_of: dict[str, str] = {}
    for part in PARTS:
        for name in archive.text(rf"{_BCCD}/ImageSets/Main/{part}\.txt").split():
            if part_of.setdefault(name, part) != part:
                raise FetchError(f"bccd: {name} is in the lists of {part_of[name]} and {part}")
    for kind in ("images", "voc", "test"):
        (folder / kind).mkdir()
    sizes: dict[str, tuple[int, int]] = {}
    objects: dict[str, list[Object]] = {}
    for path, content in archive.files(rf"{_BCCD}/(?:JPEGImages/\w+\.jpg|Annotations/\w+\.xml)"):
        file = Path(path)
        part = part_of.get(file.stem)
        if part is None:
            continue
        if file.suffix == ".xml":
            objects[file.stem] = read_objects(path, content)
            if part != "test":
                (folder / "voc" / file.name).write_bytes(content)
        else:
            target = folder / ("test" if part == "test" else "images") / file.name
            target.write_bytes(content)
            sizes[file.stem] = _checked(path, lambda target=target: image_size(target))
    _check_pairs("bccd", part_of.keys(), sizes.keys(), objects.keys())
    parts: dict[str, dict[str, Image]] = {part: {} for part in PARTS}
    for name, part in part_of.items():
        parts[part][f"{name}.jpg"] = sizes[name], objects[name]
    write_coco(folder, "BCCD", parts, _CELLS, "cell")


def convert_fruits(archive: Archive, folder: Path) -> None:
    """Make the images smaller, and the boxes with them; the official train becomes train and val."""
    val = set(validation("fruits"))
    parts: dict[str, dict[str, Image]] = {part: {} for part in PARTS}
    for kind in ("images", "test"):
        (folder / kind).mkdir()
    sizes: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}  # before and after
    objects: dict[str, list[Object]] = {}
    for path, content in archive.files(r"(?:train|test)/\w+\.(?:jpg|xml)"):
        official, name = Path(path).parent.name, Path(path).stem
        if path.endswith(".xml"):
            objects[f"{official}/{name}"] = read_objects(path, content)
        else:
            target = folder / ("test" if official == "test" else "images") / f"{name}.jpg"
            sizes[f"{official}/{name}"] = _checked(
                path, lambda target=target, content=content: _write_smaller(content, target)
            )
    _check_pairs("fruits", sizes.keys(), objects.keys())
    for key, (before, after) in sizes.items():
        official, name = key.split("/")
        part = official if official == "test" or f"{name}.jpg" not in val else "val"
        factors = [new / old for new, old in zip(after * 2, before * 2, strict=True)]
        scaled = [
            (label, tuple(x * factor for x, factor in zip(corners, factors, strict=True)))
            for label, corners in objects[key]
        ]
        parts[part][f"{name}.jpg"] = after, scaled
    write_coco(folder, "fruits", parts, _FRUITS, "fruit")


def _write_smaller(content: bytes, target: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Writes an image of at most _LONGEST pixels a side; returns its sizes before and after."""
    from PIL import Image

    image = load_image(content)
    factor = min(1.0, _LONGEST / max(image.size))
    width, height = (max(1, round(side * factor)) for side in image.size)
    resized = image if factor == 1.0 else image.resize((width, height), Image.Resampling.LANCZOS)
    resized.save(target, "JPEG", quality=_QUALITY)
    return image.size, (width, height)


def _checked(path: str, read: Any) -> Any:
    try:
        return read()
    except DataError as error:
        raise FetchError(f"{path}: {error}") from None


def _check_pairs(name: str, *kinds: Any) -> None:
    """Each item must be among the names of all kinds."""
    missing = sorted(set().union(*kinds) - set.intersection(*map(set, kinds)))
    if missing:
        raise FetchError(f"{name}: expected an image and its annotations of each name, found one of them: {missing[0]}")
