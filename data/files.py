"""The one lister of files below a folder: follows links, ignores hidden files."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from mmattn.data.errors import DataError

logger = logging.getLogger(__name__)
ATTRIBUTES = "__MACOSX"  # macOS's folder of attributes in archives
Node = tuple[int, int]  # device and inode, which identify a folder whatever its path


def is_hidden(name: str) -> bool:
    """Whether a relative path has a part that listers ignore, such as ``.ipynb_checkpoints`` or ``._photo.png``."""
    return any(part.startswith(".") or part == ATTRIBUTES for part in name.split("/"))


def is_listed(name: str, endings: Sequence[str]) -> bool:
    """Whether a relative path has one of the endings, in upper or lower case, and is not hidden."""
    return name.lower().endswith(tuple(endings)) and not is_hidden(name)


def files_below(folder: str | Path, endings: Sequence[str]) -> list[tuple[str, Path]]:
    """Returns the files in a folder and below it, each with its relative path, sorted by path.

    Links are followed, but not to a folder that contains them, and within each entry of the folder to every other
    folder once, so links can neither form a loop nor multiply the files. A link to a missing file is listed, so that
    reading it is an error of that item.

    Args:
        folder: The folder.
        endings: Endings of the listed files, in lower case.

    Raises:
        OSError: A folder cannot be read.
    """
    found: list[tuple[str, Path]] = []
    waiting: deque[tuple[str, str, frozenset[Node], set[Node]]] = deque([(str(folder), "", frozenset(), set())])
    while waiting:
        place, parent, above, linked = waiting.popleft()
        here = _node(place)
        if here in above:
            continue
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            name = f"{parent}{entry.name}"
            linked = linked if parent else set()  # of each entry of the folder, which may be a class
            if is_hidden(entry.name):
                continue
            if os.path.isdir(entry.path):
                node = _node(entry.path)
                if not entry.is_symlink() or node not in linked:
                    linked.update({node} if entry.is_symlink() else ())
                    waiting.append((entry.path, f"{name}/", above | {here}, linked))
                continue
            is_missing = not os.path.exists(entry.path)  # where a link leads
            if is_listed(name, endings):
                found += [(name, Path(entry.path))] if is_missing or os.path.isfile(entry.path) else []
            elif is_missing:
                logger.warning("%s: a link to a file or folder that does not exist, ignored", entry.path)
    return sorted(found, key=lambda pair: pair[0].split("/"))


def _node(path: str) -> Node:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def some_below(folder: str | Path, endings: Sequence[str], kind: str) -> list[tuple[str, Path]]:
    """Returns ``files_below``.

    Raises:
        DataError: There are none; the message names the ``kind`` of file.
    """
    files = files_below(folder, endings)
    if not files:
        raise DataError(str(folder), f"a folder with {kind}", "none in it")
    return files
