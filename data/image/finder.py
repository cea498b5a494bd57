"""The search for the images that a data set's file names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmattn.data.errors import DataError
from mmattn.data.names import find_file


class BadItem(Exception):
    """An item is invalid; the arguments are the expected and the found value."""


class ImageFinder:
    """Finds images by name in several folders.

    Args:
        folders: The folders, of which some may not exist.
        remedy: What to do if a name is in two of them.
    """

    def __init__(self, folders: Sequence[Path], remedy: str = "--data.root FOLDER decides") -> None:
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.tried = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        self.remedy = remedy
        self.users: dict[str, str] = {}  # image: location of the item that uses it

    def find(self, *names: str) -> Path:
        """The only file with one of the names, of which the first that exists counts.

        Raises:
            BadItem: There is none, or there are several.
        """
        for name in names:
            found: list[Path] = []
            for folder in self.folders:
                path = find_file(folder / name)
                if os.path.isfile(path) and not any(os.path.samefile(path, other) for other in found):
                    found.append(path)
            if len(found) > 1:
                raise BadItem("one image of that name", f"{' and '.join(map(str, found))}; {self.remedy}")
            if found:
                return found[0]
        raise BadItem(f"its image {names[0]} in {self.tried}", "no such file")

    def use(self, path: Path, where: str) -> None:
        """Note that an item uses an image.

        Raises:
            BadItem: Another uses it already.
        """
        first = self.users.setdefault(str(path), where)
        if first != where:
            raise BadItem("an image of its own", f"{path}, which {first} has already")


def check_root(root: str | Path | None) -> Path | None:
    """The folder of the images.

    Raises:
        DataError: It is no folder.
    """
    if root is None:
        return None
    if not Path(root).is_dir():
        raise DataError(f"data.root {root}", "a folder", "a file" if Path(root).exists() else "nothing")
    return Path(root)


def image_folders(path: Path, root: str | Path | None) -> list[Path]:
    """The folders in which images of a data set's file are searched for.

    Args:
        path: The file. Its folder and the one above are searched, `images/` of both, and folders with the name of the
            split in COCO's own file names (`instances_train2017.json`: `train2017/`).
        root: The only folder; None: those of the file.

    Raises:
        DataError: The root is no folder.
    """
    given = check_root(root)
    if given is not None:
        return [given]
    parents = [path.parent, path.parent.parent]
    subset = path.stem.rpartition("_")[2]
    names = ("images", "Images", subset, f"images/{subset}")
    return [*parents, *(parent / name for parent in parents for name in names)]
