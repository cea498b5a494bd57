"""File formats of captioning.

**COCO captions**: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``. Images are searched
for by name in the file's folder, the one above, in ``images/`` of both, and in the folder that the file's name ends in
(``captions_train2014.json``: ``train2014/``).

**Karpathy's splits**: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``; one file has all
splits, and ``restval`` belongs to train.

**CSV, TSV, JSONL**: ``image`` (a path) and ``caption``. Rows of one image are its references; ``captions``, a list in
JSONL, gives several at once; ``id`` is optional. ``captions.txt`` of Flickr8k is such a CSV.

**Flickr8k's and Flickr30k's lists**: ``*.token.txt`` (``name.jpg#0``, a tab and the caption), and ``results.csv``,
whose cells ``image_name | comment_number | comment`` are separated by ``|``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.image.finder import BadItem, ImageFinder, image_folders
from mmattn.data.readers import (
    TABLES,
    as_path,
    parse_json,
    read_json,
    read_lines,
    read_rows,
    report_missing,
    stream_lines,
)
from mmattn.data.table import Table, is_media

logger = logging.getLogger(__name__)
Found = Iterator[tuple[str, dict[str, Any]]]  # location of an image, and the fields of its sample
Captions = Iterator[tuple[str, Any, Any, Any]]  # location of a caption, id, image (its name or the image itself), text

KEYS = ("image", "caption", "captions", "id")
EXPECTED = "COCO's captions JSON, Karpathy's, a table (.csv, .tsv, .jsonl) or a list of captions (.txt)"
TRAIN = ("train", "restval")  # Karpathy's names of the training split


def read_captions(
    path: str | Path | Table, split: str | None, root: str | Path | None, require_captions: bool, problems: Problems
) -> Found:
    """Read one split.

    Args:
        path: The file, or a table in memory.
        split: Split to read of a file that has several; None: all.
        root: Folder of the images, if they are not near the file.
        require_captions: Whether an image without captions is an error.
        problems: Collects the invalid items.

    Yields:
        The location of an image, and the fields of its sample.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    place = as_path(path)
    if isinstance(place, Table):
        return _grouped(_rows(place, require_captions, problems), ImageFinder([Path(root or "")]), problems, True)
    suffix = place.suffix.lower()
    if place.is_dir() or (place.exists() and suffix not in (*TABLES, ".txt")):
        raise DataError(str(path), EXPECTED, "a folder" if place.is_dir() else f"the ending {place.suffix!r}")
    finder = ImageFinder(image_folders(place, root))
    if suffix == ".json" and not _has_rows(place):
        return _read_json(place, split, finder, require_captions, problems)
    return _grouped(_reader(place)(place, require_captions, problems), finder, problems)


def _has_rows(path: Path) -> bool:
    """Whether a .json has one object a line, with an image each."""
    try:
        row = parse_json(next((line for line in stream_lines(path) if line.strip()), ""))
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and "image" in row


def _reader(path: Path) -> Callable[[Path, bool, Problems], Captions]:
    """The reader of a file with a caption on each line, by its first line."""
    if path.suffix.lower() in (".csv", ".txt"):
        first = next((line for line in read_lines(path) if line.strip()), "")
        if "|" in first and "comment" in first:
            return _comments
        if path.suffix.lower() == ".txt" and "\t" in first and "#" in first:
            return _tokens
    return _rows


def _rows(path: Path | Table, require_captions: bool, problems: Problems) -> Captions:
    unused: dict[str, None] = {}
    for where, _, row in read_rows(path, problems):
        missing = [] if "image" in row else ["image"]
        if require_captions and not {"caption", "captions"} & row.keys():
            missing.append("caption")
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        unused.update(dict.fromkeys(key for key in row if key not in KEYS))
        several = row.get("captions", [row.get("caption")])
        if not isinstance(several, list):
            problems.add(where, "captions that are a list of texts", shorten(several))
            continue
        for caption in several or [None]:
            yield where, row.get("id"), row["image"], caption if require_captions else caption or None
    if unused:
        logger.warning("%s: ignored keys: %s", path, ", ".join(unused))


def _tokens(path: Path, require_captions: bool, problems: Problems) -> Captions:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where, (name, tab, caption) = f"{path}, line {number}", line.partition("\t")
        image, mark, index = name.rpartition("#")
        if tab and mark and index.strip().isdecimal():
            yield where, None, image, caption
        else:
            problems.add(where, "NAME.jpg#NUMBER, a tab and a caption", shorten(line))


def _comments(path: Path, require_captions: bool, problems: Problems) -> Captions:
    header, *lines = read_lines(path)
    names = [cell.strip() for cell in header.split("|")]
    if names != ["image_name", "comment_number", "comment"]:
        raise DataError(f"{path}, header", "image_name | comment_number | comment", shorten(header))
    for number, line in enumerate(lines, start=2):
        cells = line.split("|", 2)
        if len(cells) == 3:
            yield f"{path}, line {number}", None, cells[0], cells[2]
        elif line.strip():
            problems.add(f"{path}, line {number}", f"3 cells ({', '.join(names)}) separated by |", shorten(line))


def _grouped(captions: Captions, finder: ImageFinder, problems: Problems, in_memory: bool = False) -> Found:
    """Join the captions of each image, in order of first appearance; rows in memory may have the image itself."""
    fields: dict[str, tuple[str, dict[str, Any]]] = {}
    media: dict[int, str] = {}  # names of images in memory
    absent: set[str] = set()  # names of images that are missing, each of which is one error
    for where, name, image, caption in captions:
        try:
            if isinstance(image, (str, Path)) and str(image).strip():
                key, known = str(image).strip(), None
            elif in_memory and is_media(image):
                key, known = media.setdefault(id(image), f"image {len(media)}"), image
            else:
                raise BadItem("the path of an image", shorten(image))
            if key in absent:
                continue
            if caption is not None and not (isinstance(caption, str) and caption.strip()):
                raise BadItem(f"a caption of {key} that is a text and not empty", shorten(caption))
            if key not in fields:
                absent.add(key)
                found = finder.find(key) if known is None else known
                absent.remove(key)
                fields[key] = (where, {"id": key if name in (None, "") else str(name), "image": found, "captions": []})
        except BadItem as bad:
            problems.add(where, *bad.args)
            continue
        if caption is not None:
            fields[key][1]["captions"].append(caption.strip())
    yield from fields.values()


def _read_json(path: Path, split: str | None, finder: ImageFinder, require_captions: bool, problems: Problems) -> Found:
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        found = f"the keys {', '.join(map(str, content)) or 'none'}" if isinstance(content, dict) else shorten(content)
        raise DataError(str(path), "an object with a list 'images' (COCO's captions, or Karpathy's)", found)
    if any(isinstance(entry, dict) and "sentences" in entry for entry in images[:1]):
        yield from _karpathy(path, images, split, finder, problems)
        return
    notes = content.get("annotations", [] if not require_captions else None)
    if not isinstance(notes, list) or any(isinstance(note, dict) and "caption" not in note for note in notes[:1]):
        found = f"the keys {', '.join(content)}" if notes is None else shorten(notes)
        if isinstance(notes, list):
            found = f"annotations with the keys {', '.join(notes[0])}"
        raise DataError(str(path), "a list 'annotations' with an image_id and a caption each", found)
    yield from _coco(path, images, notes, finder, problems)


def _coco(path: Path, images: list[Any], notes: list[Any], finder: ImageFinder, problems: Problems) -> Found:
    known = {str(entry.get("id")) for entry in images if isinstance(entry, dict)}
    captions: dict[str, list[str]] = {}
    empty: set[str] = set()  # images of captions that were reported
    for index, note in enumerate(notes):
        where, number = f"{path}, annotations[{index}]", str(note.get("image_id")) if isinstance(note, dict) else None
        if number is None or number not in known:
            problems.add(where, "the image_id of one of the images", shorten(note if number is None else number))
        elif not isinstance(text := note.get("caption"), str) or not text.strip():
            empty.add(number)
            problems.add(where, f"a caption of the image {number} that is a text and not empty", shorten(text))
        else:
            captions.setdefault(number, []).append(" ".join(text.split()))
    seen: set[str] = set()
    for index, entry in enumerate(images):
        where = f"{path}, images[{index}]"
        try:
            number, name = (entry.get(key) for key in ("id", "file_name")) if isinstance(entry, dict) else (None, None)
            if not isinstance(number, (int, str)) or not isinstance(name, str) or not name:
                raise BadItem("an image with an 'id' and a 'file_name'", shorten(entry))
            if str(number) in seen:
                raise BadItem("an id of its own", f"{number} once more")
            seen.add(str(number))
            fields = {"id": str(number), "image": finder.find(name), "captions": captions.get(str(number), [])}
        except BadItem as bad:
            problems.add(where, *bad.args)
            continue
        if fields["captions"] or str(number) not in empty:
            yield f"{where} ({name})", fields


def _karpathy(path: Path, images: list[Any], split: str | None, finder: ImageFinder, problems: Problems) -> Found:
    wanted = None if split is None else TRAIN if split == "train" else (split,)
    for index, entry in enumerate(images):
        where = f"{path}, images[{index}]"
        try:
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name:
                raise BadItem("an image with a 'filename' and 'sentences'", shorten(entry))
            if wanted is not None and entry.get("split") not in wanted:
                continue
            where += f" ({name})"
            sentences = entry.get("sentences")
            if not isinstance(sentences, list) or not all(isinstance(one, dict) for one in sentences):
                raise BadItem("sentences, a list of objects with a text 'raw'", shorten(sentences))
            captions = [one.get("raw") for one in sentences]
            folder = entry.get("filepath")
            names = [f"{folder}/{name}", name] if folder else [name]
            yield where, {"id": str(entry.get("imgid", name)), "image": finder.find(*names), "captions": captions}
        except BadItem as bad:
            problems.add(where, *bad.args)
