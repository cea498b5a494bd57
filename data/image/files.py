"""Sources of labeled images: a tree of class folders, a tar of one, a CSV, or a torchvision data set by name."""

from __future__ import annotations

import inspect
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmattn.data.errors import DataError, Problems, nearest, shorten
from mmattn.data.files import files_below, is_listed
from mmattn.data.image.processor import IMAGE_EXTENSIONS, ImageSource
from mmattn.data.readers import TABLES, read_rows, report_missing

TORCHVISION = "torchvision/"
Row = tuple[str, str, ImageSource, str | None]  # location of an image, for messages; id; image; label
DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)  # of a tar, compressed or not
PATH_COLUMNS, LABEL_COLUMNS = ("path", "image"), ("label", "labels")


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image within an uncompressed tar, read on demand."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the file's bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def fingerprint(self) -> str:
        """Returns the member's identity for fingerprints, the analogue of a file's name and size."""
        return f"{self.path.name} {self.offset} {self.size}"


def read_images(source: str | Path, split: str, root: str | Path | None, problems: Problems) -> Iterator[Row]:
    """Yields the labeled images of a path.

    - a folder: one sub-folder per class, images at any depth below it (torchvision's ``ImageFolder``);
    - a ``.tar``, compressed or not: such a tree, alone or in one outer folder;
    - a ``.csv``, ``.tsv`` or ``.jsonl``: the columns ``path`` (or ``image``) and ``label``, paths relative to the file;
    - ``torchvision/NAME``: a data set of torchvision whose files exist below ``root``.

    Args:
        source: The path.
        split: train, val or test, for torchvision.
        root: See ``ClassificationDataset``.
        problems: Collects the invalid items.

    Raises:
        DataError: The path as a whole is none of these.
    """
    if str(source).startswith(TORCHVISION):
        yield from read_torchvision(str(source).removeprefix(TORCHVISION), split, root)
        return
    path = Path(source)
    if path.is_dir():
        yield from read_folder(path)
    elif not path.exists():
        expected = "a folder of class folders, a tar of one, a CSV, or torchvision/NAME"
        raise DataError(str(path), expected, "no such file")
    elif path.suffix.lower() in TABLES:
        yield from read_table(path, root, problems)
    elif _is_tar(path):
        yield from read_tar(path)
    else:
        expected = f"a folder of class folders, a tar of one, or a table ({', '.join(TABLES)})"
        raise DataError(str(path), expected, f"a file that ends in {path.suffix!r}")


def read_folder(folder: Path) -> Iterator[Row]:
    """Yields the images of a tree of class folders."""
    files = files_below(folder, IMAGE_EXTENSIONS)
    loose = next((name for name, _ in files if "/" not in name), None)
    if loose is not None or not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "an empty folder"
        found = inside if loose is None else f"{loose} in no class folder"
        raise DataError(str(folder), "one sub-folder a class with its images", found)
    for name, path in files:
        yield str(path), name, path, name.split("/")[0]


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except DAMAGED:
        return True  # read_tar raises the error


def read_tar(path: Path) -> Iterator[Row]:
    """Yields the images of a tar of class folders; those of an uncompressed tar are read on demand."""
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive if m.isfile() and is_listed(m.name.removeprefix("./"), IMAGE_EXTENSIONS)]
            plain = archive.fileobj is not None and type(archive.fileobj).__name__ == "BufferedReader"
            compressed = {} if plain else {m.name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    except DAMAGED as error:
        raise DataError(str(path), "a whole tar", f"a truncated or damaged one ({shorten(str(error))})") from None
    parts = [PurePosixPath(member.name.removeprefix("./")).parts for member in members]
    outer = 1 if parts and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts) else 0
    size = path.stat().st_size
    for member, place in zip(members, parts, strict=True):
        where = f"{path}, member {member.name}"
        if len(place) < outer + 2:
            raise DataError(where, "CLASS/NAME", "an image in no class folder")
        if plain and member.offset_data + member.size > size:
            raise DataError(where, "a whole tar", "one that ends within this member")
        image = TarImage(path, member.offset_data, member.size) if plain else compressed[member.name]
        yield where, "/".join(place[outer:]), image, place[outer]


def read_table(path: Path, root: str | Path | None, problems: Problems) -> Iterator[Row]:
    """Yields the images of a CSV, TSV or JSONL with their paths and labels."""
    folder = path.parent if root is None else Path(root)
    for number, (where, _, row) in enumerate(read_rows(path, problems)):
        column = next((name for name in PATH_COLUMNS if name in row), None)
        label = next((row[name] for name in LABEL_COLUMNS if name in row), None)
        if column is None:
            missing = ["path"] if label is not None else ["path", "label"]
            report_missing(path, where, row, missing, (*PATH_COLUMNS, *LABEL_COLUMNS, "id"), problems)
        elif not isinstance(row[column], str) or not row[column].strip():
            problems.add(where, "the path of an image", shorten(row[column]))
        else:
            if isinstance(label, list):
                label = "|".join(map(str, label))
            text = None if label is None else str(label)
            image = folder / os.path.expanduser(row[column].strip())
            yield where, str(row.get("id") or f"{number} {row[column].strip()}"), image, text


def read_torchvision(name: str, split: str, root: str | Path | None) -> Iterator[Row]:
    """Yields the images of a torchvision data set from existing files, without a download."""
    from torchvision import datasets

    kind: Any = getattr(datasets, name, None)
    known = [entry for entry in datasets.__all__ if inspect.isclass(getattr(datasets, entry))]
    if kind is None or name not in known:
        raise DataError(f"{TORCHVISION}{name}", "a data set of torchvision", f"no such name{nearest(name, known)}")
    accepted = inspect.signature(kind.__init__).parameters
    if root is None and "root" in accepted:
        raise DataError(f"{TORCHVISION}{name}", "data.root: the folder that holds its files", "none")
    choices: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        choices = [{"train": split == "train"}]
    elif "split" in accepted:
        choices = [{"split": split}] + ([] if split == "train" else [{"split": "test"}])
    options = {key: value for key, value in (("root", str(root)), ("download", False)) if key in accepted}
    found = ""
    for choice in choices:
        try:
            dataset = kind(**options, **choice)
            break
        except (RuntimeError, ValueError, OSError) as error:
            found = shorten(str(error).splitlines()[0], 200)
    else:
        raise DataError(f"{TORCHVISION}{name} in {root}", f"its files, split {split}", found) from None
    classes = getattr(dataset, "classes", None)
    for number in range(len(dataset)):
        image, label = dataset[number]
        if not isinstance(label, int):
            raise DataError(f"{TORCHVISION}{name}", "a data set with one class an image", shorten(label))
        text = str(classes[label]) if classes else str(label)
        yield f"{TORCHVISION}{name}, item {number}", f"{split}-{number}", image, text
