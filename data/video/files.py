"""Sources of labeled videos: a tree of class folders, or a table of paths, labels and segments."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.data.files import files_below
from mmattn.data.image.processor import IMAGE_EXTENSIONS
from mmattn.data.readers import TABLES, as_path, read_rows, report_missing
from mmattn.data.table import Table, is_media
from mmattn.data.video.reading import VIDEO_EXTENSIONS, Clip, VideoSource

PATHS, LABELS = ("path", "video"), ("label", "labels")
NUMBERS = ("start", "end", "fps")
PICTURES = tuple(ending for ending in IMAGE_EXTENSIONS if ending not in VIDEO_EXTENSIONS)  # a GIF is a video


class Row(NamedTuple):
    """A video of a source."""

    where: str  # location, for messages
    id: str
    video: VideoSource
    label: str | None
    start: float | None = None  # of the labeled segment, in seconds
    end: float | None = None
    fps: float | None = None  # of numbered images


def videos_below(folder: Path) -> list[tuple[str, Path]]:
    """The videos in a folder and below it by relative path: files, and folders of numbered images."""
    found: dict[str, Path] = {}
    for name, path in files_below(folder, (*VIDEO_EXTENSIONS, *PICTURES)):
        if path.suffix.lower() in VIDEO_EXTENSIONS:
            found[name] = path
        elif "/" in name:
            found[name.rpartition("/")[0]] = path.parent
    return list(found.items())


def read_videos(
    source: str | Path | Table, root: str | Path | None, problems: Problems, labeled: bool = False
) -> Iterator[Row]:
    """Yields the videos of a path, or of a table in memory.

    - a folder: one sub-folder per class, with videos or folders of numbered images at any depth below it; without
      labels, videos at any depth;
    - a ``.csv``, ``.tsv`` or ``.jsonl``: the columns ``path`` (or ``video``) and ``label``; optionally ``start`` and
      ``end`` of the segment in seconds, ``fps`` of numbered images, and ``id``. Paths are relative to the file.

    Args:
        source: The path.
        root: Folder of a table's videos, if they are not in its folder.
        problems: Collects the invalid items.
        labeled: Whether a missing label is an error.

    Raises:
        DataError: The path as a whole is none of these.
    """
    path = as_path(source)
    if isinstance(path, Table):
        yield from _table(path, root, problems, labeled)
    elif path.is_dir():
        yield from _folder(path, labeled)
    elif not path.exists():
        raise DataError(str(path), f"a folder of class folders, or a table ({', '.join(TABLES)})", "no such file")
    elif path.suffix.lower() in TABLES:
        yield from _table(path, root, problems, labeled)
    else:
        expected = f"a folder of class folders, or a table ({', '.join(TABLES)})"
        raise DataError(str(path), expected, f"a file that ends in {path.suffix!r}")


def _folder(folder: Path, labeled: bool) -> Iterator[Row]:
    videos = videos_below(folder)
    loose = next((name for name, _ in videos if "/" not in name), None)
    if not videos or (labeled and loose is not None):
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "an empty folder"
        found = inside if loose is None else f"{loose} in no class folder"
        kind = "one sub-folder a class with its videos" if labeled else "a folder with videos"
        raise DataError(str(folder), kind, found)
    for name, path in videos:
        yield Row(str(path), name, path, name.split("/")[0] if "/" in name and loose is None else None)


def _table(path: Path | Table, root: str | Path | None, problems: Problems, labeled: bool) -> Iterator[Row]:
    folder = path.parent if root is None else Path(root)
    for number, (where, _, row) in enumerate(read_rows(path, problems)):
        column = next((name for name in PATHS if name in row), None)
        missing = [] if column else ["path"]
        missing += ["label"] if labeled and not row.keys() & set(LABELS) else []
        if column is None or missing:
            report_missing(path, where, row, missing, (*PATHS, *LABELS, *NUMBERS, "id"), problems)
            continue
        video, name = row[column], str(number)
        if isinstance(video, (str, Path)) and str(video).strip():
            name = f"{number} {str(video).strip()}"
            video = folder / os.path.expanduser(str(video).strip())
        elif not (isinstance(video, Clip) or is_media(video)) or not isinstance(path, Table):
            problems.add(where, "the path of a video", shorten(video))
            continue
        numbers = {key: _number(row.get(key)) for key in NUMBERS}
        wrong = next((key for key, value in numbers.items() if value is not None and not value >= 0), None)
        start, end = numbers["start"] or 0.0, numbers["end"]
        if wrong is not None:
            problems.add(where, f"{wrong}: a number that is not negative", shorten(row[wrong]))
            continue
        if end is not None and end <= start:
            problems.add(where, "an end after the start", f"start {start:g} s and end {end:g} s")
            continue
        label = next((row[name] for name in LABELS if name in row), None)
        text = None if label is None or not str(label).strip() else str(label).strip()
        given = {key: None if value == "" else value for key, value in numbers.items()}
        yield Row(where, str(row.get("id") or name), video, text, **given)


def _number(value: Any) -> float | None:
    """A cell as a number; NaN if it is none, None if it is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) and not isinstance(value, bool) else math.nan
