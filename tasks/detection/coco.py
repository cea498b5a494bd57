"""COCO's JSON: `images`, `annotations` with `bbox` [x, y, width, height] in pixels, and `categories`.

Images are searched for by `file_name` in the JSON's folder, in the folder above, in `images/` of both, and in a folder
that has the name of the split in COCO's own file names (`instances_train2017.json`: `train2017/`). Annotations with
`iscrowd` 1 mark regions of many objects. Segments and key points are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.image.finder import BadItem, ImageFinder, image_folders
from mmattn.data.names import nfc
from mmattn.data.readers import read_json
from mmattn.tasks.detection.annotations import Annotation, BoxCheck, Categories, Row, numbers, sized_image
from mmattn.tasks.detection.boxes import Detections

LISTS = ("images", "annotations", "categories")


def read_coco(
    path: Path, root: str | Path | None, labeled: bool, problems: Problems
) -> tuple[Categories | None, Iterator[Row]]:
    """Read a file of one split.

    Args:
        path: The JSON.
        root: Folder of the images, if they are not near the file.
        labeled: Whether annotations are needed.
        problems: Collects invalid images and annotations.

    Returns:
        The categories in order of their ids, None without any; and the images.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        found = f"the keys {', '.join(map(str, content)) or 'none'}" if isinstance(content, dict) else shorten(content)
        raise DataError(str(path), f"COCO's JSON, an object with the lists {', '.join(LISTS)}", found)
    for key in LISTS[1:]:
        if not isinstance(content.get(key), list) and (labeled or key in content):
            raise DataError(str(path), f"a list {key!r}", shorten(content.get(key, "none")))
    names = _categories(path, content.get("categories") or [])
    categories = Categories(tuple(names.values()), tuple(names)) if names else None
    return categories, _images(path, content, names, root, problems)


def results(name: str, found: Detections, classes: Categories) -> list[dict[str, Any]]:
    """The predictions of an image as entries of COCO's results file.

    Args:
        name: Id of the image: that of COCO's JSON, a number, or another name, which remains a string.
        found: Predicted boxes.
        classes: The classes, with the ids of the categories.
    """
    image_id = int(name) if name.isdecimal() else name
    rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": classes.ids[k],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), score, k in rows
    ]


def _categories(path: Path, listed: list[Any]) -> dict[int, str]:
    """Names by id, in order of the ids."""
    names: dict[int, str] = {}
    for index, entry in enumerate(listed):
        where = f"{path}, categories[{index}]"
        number, name = (entry.get(key) for key in ("id", "name")) if isinstance(entry, dict) else (None, None)
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise DataError(where, "a category with a number 'id' and a 'name'", shorten(entry))
        name = nfc(name.strip())
        if number in names or name in names.values():
            raise DataError(where, "an id and a name of its own", f"{shorten(entry)}; others are {shorten(names)}")
        names[number] = name
    return dict(sorted(names.items()))


def _images(
    path: Path, content: dict[str, Any], names: dict[int, str], root: str | Path | None, problems: Problems
) -> Iterator[Row]:
    finder, check = ImageFinder(image_folders(path, root)), BoxCheck(problems)
    given = content.get("annotations")
    known = {str(entry["id"]) for entry in content["images"] if isinstance(entry, dict) and "id" in entry}
    of_image = _by_image(path, given or [], known, problems)
    seen: dict[str, int] = {}
    for index, entry in enumerate(content["images"]):
        where = f"{path}, images[{index}]"
        try:
            number, name = (entry.get(key) for key in ("id", "file_name")) if isinstance(entry, dict) else (None, None)
            if not isinstance(number, (int, str)) or isinstance(number, bool) or not isinstance(name, str) or not name:
                raise BadItem("an image with an 'id' and a 'file_name'", shorten(entry))
            where += f" ({name})"
            if seen.setdefault(str(number), index) != index:
                raise BadItem("an id of its own", f"{number}, which images[{seen[str(number)]}] has already")
            image = finder.find(name)
            finder.use(image, where)
            size = sized_image(image, entry.get("width"), entry.get("height"))
        except BadItem as bad:
            problems.add(where, *bad.args)
            continue
        except DataError as error:
            problems.take(where, error)
            continue
        fields: dict[str, Any] = {"id": str(number), "image": image}
        if given is not None:
            fields |= check.fields(_annotations(path, of_image.get(str(number), []), names, problems), size)
        yield where, fields
    check.report(str(path))


def _by_image(path: Path, listed: list[Any], known: set[str], problems: Problems) -> dict[str, list[tuple[int, Any]]]:
    """Annotations with their indices, by the id of the image."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for index, entry in enumerate(listed):
        key = str(entry.get("image_id")) if isinstance(entry, dict) else None
        if key is None or key not in known:
            expected = "an object with the image_id of one of the images"
            problems.add(_place(path, index, entry), expected, shorten(entry if key is None else entry.get("image_id")))
        else:
            found.setdefault(key, []).append((index, entry))
    return found


def _annotations(
    path: Path, entries: list[tuple[int, Any]], names: dict[int, str], problems: Problems
) -> Iterator[Annotation]:
    """The annotations of an image, its boxes as xyxy."""
    for index, entry in entries:
        where, box, category = _place(path, index, entry), entry.get("bbox"), entry.get("category_id")
        values, area = numbers(box, 4), entry.get("area")
        crowd = entry.get("iscrowd", 0)
        if isinstance(category, bool) or not isinstance(category, int) or category not in names:
            problems.add(where, "a category_id with a name in categories", shorten(category))
        elif values is None:
            problems.add(where, "a bbox of four numbers [x, y, width, height]", shorten(box))
        elif values[2] <= 0 or values[3] <= 0:
            problems.add(where, "a bbox [x, y, width, height] with a width and height above zero", shorten(box))
        elif crowd not in (0, 1):
            problems.add(where, "an iscrowd of 0 or 1", shorten(crowd))
        else:
            x, y, width, height = values
            has_area = isinstance(area, (int, float)) and not isinstance(area, bool)
            yield Annotation(
                where, names[category], (x, y, x + width, y + height), bool(crowd), area if has_area else None, box
            )


def _place(path: Path, index: int, entry: Any) -> str:
    number = f" (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else ""
    return f"{path}, annotations[{index}]{number}"
