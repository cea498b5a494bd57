"""Sources of annotated images, told apart by their content: COCO's JSON, Pascal VOC's XML, YOLO's text files, rows.

`coco.py`, `voc.py` and `yolo.py` have the details of the formats. **Rows**, in memory or as JSONL, have `image` (a path
relative to the file), `boxes_xyxy`, a list of [x1, y1, x2, y2] in pixels, `labels`, a list of as many names, and
optionally `id` and `crowd`, a list of true or false.

In all formats boxes are those of the upright image: if EXIF data turn an image, they refer to it as viewers and
annotation tools show it. A stated size that is that of the stored image is therefore an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.files import files_below
from mmattn.data.image.finder import BadItem, ImageFinder, check_root
from mmattn.data.image.processor import image_size
from mmattn.data.names import nfc
from mmattn.data.readers import parse_json, read_rows, report_missing, stream_lines
from mmattn.data.table import Table, is_media
from mmattn.tasks.detection.annotations import Annotation, BoxCheck, Categories, Row
from mmattn.tasks.detection.coco import read_coco
from mmattn.tasks.detection.voc import ANNOTATIONS, is_list, read_voc
from mmattn.tasks.detection.yolo import YAML, find_yaml, read_yolo

FORMATS = "COCO's JSON, a folder of Pascal VOC's XML, a data.yaml of YOLO's text files, or JSONL"
KEYS = ("image", "boxes_xyxy", "labels", "crowd", "id")
Opened = tuple[Categories | None, Iterator[Row]]


def open_annotations(
    source: str | Path | Table, split: str, root: str | Path | None, labeled: bool, problems: Problems
) -> Opened:
    """Open a source of annotated images.

    Args:
        source: The file, folder or table.
        split: train, val or test, for sources that have all.
        root: Folder of the images, if they are not near the annotations.
        labeled: Whether annotations are needed.
        problems: Collects invalid images and boxes.

    Returns:
        The classes that the source declares, None without any; and the images.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    if isinstance(source, Table):
        return None, _rows(source, root, labeled, problems)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, split, root, labeled, problems)
    if not path.exists():
        raise DataError(str(path), FORMATS, "no such file or folder")
    start = next((line.strip() for line in stream_lines(path) if line.strip()), "")
    if start.startswith("<"):
        return None, read_voc(path, root, problems)
    if start.startswith(("{", "[")) and path.suffix.lower() not in YAML:
        if _is_row(start):
            return None, _rows(path, root, labeled, problems)
        return read_coco(path, root, labeled, problems)
    if path.suffix.lower() in YAML:
        return read_yolo(path, split, root, problems)
    if is_list(path):
        return None, read_voc(path, root, problems)
    raise DataError(str(path), FORMATS, f"a file that starts with {shorten(start, 40)}" if start else "an empty file")


def _open_folder(path: Path, split: str, root: str | Path | None, labeled: bool, problems: Problems) -> Opened:
    if (path / ANNOTATIONS).is_dir():
        return None, read_voc(path, root, problems)
    jsons = sorted(path.glob("*.json")) or sorted((path / "annotations").glob(f"*{split}*.json"))
    if len(jsons) == 1:
        return read_coco(jsons[0], root, labeled, problems)
    if (path / "images").is_dir() and ((path / "labels").is_dir() or find_yaml(path)):
        return read_yolo(path, split, root, problems)
    if any(file.suffix.lower() in YAML for file in path.iterdir()) and find_yaml(path):
        return read_yolo(path, split, root, problems)
    if files_below(path, (".xml",)):
        return None, read_voc(path, root, problems)
    inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    if len(jsons) > 1:
        inside = f"several: {', '.join(file.name for file in jsons[:8])}"
    raise DataError(str(path), FORMATS, f"a folder with {inside}")


def _is_row(line: str) -> bool:
    if '"image"' not in line:  # a whole file of COCO in one line need not be parsed twice
        return False
    try:
        row = parse_json(line)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and "image" in row


def _rows(path: Path | Table, root: str | Path | None, labeled: bool, problems: Problems) -> Iterator[Row]:
    given = check_root(root)
    finder, check = ImageFinder([given or path.parent]), BoxCheck(problems)
    needed = KEYS[:3] if labeled else KEYS[:1]
    for where, line, row in read_rows(path, problems):
        missing = [key for key in needed if key not in row]
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        try:
            image = row["image"]
            if isinstance(image, (str, Path)) and str(image).strip():
                image = finder.find(str(image))
            elif not (isinstance(path, Table) and is_media(image)):
                raise BadItem("an image path", shorten(image))
            size = image_size(image, where)
            fields = {"id": str(row.get("id", line)), "image": image}
            if "boxes_xyxy" in row:
                fields |= check.fields(_annotations(row, where), size)
        except BadItem as bad:
            problems.add(where, *bad.args)
        except DataError as error:
            problems.take(where, error)
        else:
            yield where, fields
    check.report(str(path))


def _annotations(row: dict[str, Any], where: str) -> list[Annotation]:
    boxes, labels = (_list(row.get(key)) for key in ("boxes_xyxy", "labels"))
    if labels is None or boxes is None or len(boxes) != len(labels):
        raise BadItem("boxes_xyxy and labels, lists of one length", shorten([row["boxes_xyxy"], row.get("labels")]))
    crowd = _list(row.get("crowd", [False] * len(boxes)))
    if crowd is None or len(crowd) != len(boxes):
        raise BadItem("crowd, a list of one true or false a box", shorten(row["crowd"]))
    found = []
    for number, (box, label, is_crowd) in enumerate(zip(boxes, labels, crowd, strict=True)):
        values = _list(box)
        if not isinstance(label, str) or not label.strip() or values is None:
            raise BadItem(f"a box [x1, y1, x2, y2] and the name of its class (box {number})", shorten([box, label]))
        found.append(Annotation(f"{where}, box {number}", nfc(label.strip()), values, bool(is_crowd)))
    return found


def _list(value: Any) -> list[Any] | None:
    """A list, tuple or array as a list; None for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, (list, tuple)) else None
