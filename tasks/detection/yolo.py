"""YOLO's text files: a file an image in `labels/`, and a `data.yaml` with the classes and the folders of the splits.

A line is a class, counted from 0, and a box as center x, center y, width, height in 0..1 of the image; a line with more
values is a polygon, whose box is taken. The labels of `images/a/1.jpg` are in `labels/a/1.txt`; those of an image whose
path has no folder `images` are beside it. An image without a file of labels has no boxes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.files import files_below
from mmattn.data.image.finder import BadItem, check_root
from mmattn.data.image.processor import IMAGE_EXTENSIONS, image_size
from mmattn.data.names import find_file, nfc
from mmattn.data.readers import check_small, read_lines, read_text
from mmattn.tasks.detection.annotations import Annotation, BoxCheck, Categories, Row

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
YAML, IMAGES, LABELS = (".yaml", ".yml"), "images", "labels"
SLACK = 1e-3  # beyond 0..1, of rounded values


def read_yolo(path: Path, split: str, root: str | Path | None, problems: Problems) -> tuple[Categories, Iterator[Row]]:
    """Read a split.

    Args:
        path: The `data.yaml`, or a folder with `images/` and `labels/` and this file in it or above.
        split: train, val or test: the key of the `data.yaml`.
        root: Folder to which paths in the `data.yaml` are relative; by default its `path`, or its own folder.
        problems: Collects invalid images and boxes.

    Returns:
        The classes, and the images.

    Raises:
        DataError: The `data.yaml` cannot be read, or has no such split.
    """
    file = path if path.is_file() else find_yaml(path)
    if file is None:
        raise DataError(str(path), "a data.yaml with the names of the classes in it or above", "none")
    settings = _settings(file)
    categories = _names(file, settings.get("names"))
    is_split = path.is_dir() and (file.parent != path or not any(key in settings for key in SPLITS[split]))
    places = [(str(path), path / IMAGES)] if is_split else _places(file, settings, split, check_root(root))
    return categories, _images(places, file, categories, problems)


def find_yaml(folder: Path) -> Path | None:
    """The file of the classes in a folder or above it: data.yaml, or another that has names."""
    for place in (folder, folder.parent):
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in YAML) if place.is_dir() else []
        files.sort(key=lambda file: file.stem != "data")
        found = next((file for file in files if file.stem in ("data", "dataset") or _has_names(file)), None)
        if found is not None:
            return found
    return None


def _has_names(file: Path) -> bool:
    try:
        return "names" in _settings(file)
    except DataError:
        return False


def _settings(file: Path) -> Mapping[str, Any]:
    import yaml

    check_small(file)
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(str(file), "YAML", shorten(" ".join(str(error).split()), 200)) from None
    if not isinstance(content, dict):
        raise DataError(str(file), "a data.yaml with names, and train, val or test", shorten(content))
    return content


def _names(file: Path, given: Any) -> Categories:
    pairs = (
        list(given.items()) if isinstance(given, dict) else list(enumerate(given)) if isinstance(given, list) else []
    )
    good = all(type(number) is int and number >= 0 and type(name) in (str, int) for number, name in pairs)
    if not pairs or not good:
        raise DataError(str(file), "names, a list of classes or a mapping from their numbers", shorten(given))
    pairs.sort()
    names = [nfc(str(name).strip()) for _, name in pairs]
    if len(set(names)) < len(names) or "" in names:
        raise DataError(str(file), "names that differ and are not empty", shorten(names))
    return Categories(tuple(names), tuple(number for number, _ in pairs))


def _places(file: Path, settings: Mapping[str, Any], split: str, root: Path | None) -> list[tuple[str, Path]]:
    """The folders and lists of a split, each with its name for messages."""
    key = next((key for key in SPLITS[split] if settings.get(key)), None)
    if key is None:
        found = ", ".join(str(name) for name in settings) or "none"
        raise DataError(str(file), f"the key {' or '.join(SPLITS[split])}", f"the keys {found}")
    entries = settings[key] if isinstance(settings[key], list) else [settings[key]]
    base = settings.get("path") or "."
    if not isinstance(base, str) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{file}, {key}", "paths", shorten([base, settings[key]]))
    folders = [root] if root else [file.parent / base, Path(base), file.parent]
    places = []
    for entry in entries:
        # Exports for notebooks lead out of the folder, "../train/images", although the images are in it.
        tried = [folder / name for name in dict.fromkeys((entry, entry.removeprefix("../"))) for folder in folders]
        place = next((one for one in map(find_file, tried) if one.exists()), None)
        if place is None:
            expected = f"the images {entry} in {', '.join(dict.fromkeys(map(str, folders)))}"
            raise DataError(f"{file}, {key}", expected, "no such folder or file; --data.root FOLDER gives another")
        places.append((f"{file}, {key}", place))
    return places


def _images(places: list[tuple[str, Path]], file: Path, categories: Categories, problems: Problems) -> Iterator[Row]:
    check = BoxCheck(problems)
    names = dict(zip(categories.ids, categories.names, strict=True))
    seen: dict[Path, str] = {}  # images, and the locations that name them
    users: dict[Path, Path] = {}  # files of labels, and their images
    several = len(places) > 1
    for source, place in places:
        for name, where, image in _listed(source, place, problems):
            if seen.setdefault(image, where) != where:
                problems.add(where, "an image of its own", f"{image}, which {seen[image]} has already")
                continue
            try:
                size = image_size(image)
                labels = _labels_of(image)
                if labels.is_file() and users.setdefault(labels, image) != image:
                    raise BadItem("labels of its own", f"{labels}, which {users[labels]} has already")
                boxes = list(_annotations(labels, size, names, file, problems)) if labels.is_file() else []
            except BadItem as bad:
                problems.add(where, *bad.args)
                continue
            except DataError as error:
                problems.take(where, error)
                continue
            name = Path(os.path.relpath(image, file.parent)).as_posix() if several else name
            yield where, {"id": nfc(name), "image": image, **check.fields(boxes, size)}
        if place.is_dir():
            _check_labels(place, problems)
    check.report(str(file))


def _listed(source: str, place: Path, problems: Problems) -> Iterator[tuple[str, str, Path]]:
    """Name, location and path of the images of a folder, or of a text file of paths."""
    if place.is_dir():
        for name, image in files_below(place, IMAGE_EXTENSIONS):
            yield nfc(name), str(image), image
        return
    if place.suffix.lower() in IMAGE_EXTENSIONS:
        raise DataError(source, "a folder of images, or a text file of their paths", str(place))
    for number, line in enumerate(read_lines(place), start=1):
        if not line.strip():
            continue
        where, image = f"{place}, line {number}", find_file(place.parent / line.strip())
        if image.is_file():
            yield nfc(line.strip().removeprefix("./")), where, image
        else:
            problems.add(where, f"the image {image}", "no such file")


def _labels_of(image: Path) -> Path:
    """The file of an image's labels."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == IMAGES]
    if places:
        parts[places[-1]] = LABELS
    return find_file(Path(*parts).with_suffix(".txt"))


def _check_labels(images: Path, problems: Problems) -> None:
    """Report files of labels that have no image."""
    labels = _labels_of(images / "any.jpg").parent
    if labels == images or not labels.is_dir():
        return
    there = {nfc(name[: -len(path.suffix)]) for name, path in files_below(images, IMAGE_EXTENSIONS)}
    for name, file in files_below(labels, (".txt",)):
        if nfc(name[: -len(file.suffix)]) not in there:
            problems.add(str(file), f"an image of that name in {images}", "none")


def _annotations(
    file: Path, size: tuple[int, int], names: Mapping[int, str], classes: Path, problems: Problems
) -> Iterator[Annotation]:
    """The boxes of a file, in pixels."""
    width, height = size
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            label, box = _box(line.split(), names, classes)
        except BadItem as bad:
            problems.add(where, *bad.args)
            continue
        x1, y1, x2, y2 = box
        pixels = (x1 * width, y1 * height, x2 * width, y2 * height)
        snapped = tuple(_snapped(x, side) for x, side in zip(pixels, (width, height) * 2, strict=True))
        yield Annotation(where, label, snapped, written=line.strip())


def _snapped(x: float, side: int) -> float:
    """A coordinate in pixels; one that exceeds the image only by its rounding is at its edge, which is no clipping."""
    return 0.0 if -SLACK * side <= x < 0 else float(side) if side < x <= side * (1 + SLACK) else x


def _box(cells: list[str], names: Mapping[int, str], classes: Path) -> tuple[str, tuple[float, float, float, float]]:
    """The class and the box xyxy, in 0..1 of the image, of a line."""
    found = shorten(" ".join(cells))
    try:
        number, values = float(cells[0]), [float(cell) for cell in cells[1:]]
    except ValueError:
        raise BadItem("numbers: a class and x, y, width, height", found) from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise BadItem("a class and x, y, width, height, or a polygon of three or more points", found)
    if not all(map(isfinite, values)):
        raise BadItem("finite numbers", found)
    if number not in names:
        raise BadItem(f"a class with a name in {classes}, one of {shorten(list(names))}", cells[0])
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
        low, high = min(values), max(values)
    else:
        x, y, width, height = values
        if width <= 0 or height <= 0:
            raise BadItem("a width and height above zero", found)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        low, high = min(x, y), max(values)
    if low < -SLACK or high > 1 + SLACK:
        raise BadItem("values in 0..1 of the image's width and height", f"{found}; pixels must be divided by its size")
    return names[int(number)], box
