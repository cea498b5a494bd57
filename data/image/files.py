"""Sources of labeled images: a tree of class folders, a tar of one, a CSV, or a torchvision data set by name."""

from __future__ import annotations

import atexit
import errno
import inspect
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmattn.data.errors import DataError, Problems, nearest, shorten
from mmattn.data.files import files_below, is_listed
from mmattn.data.image.processor import IMAGE_EXTENSIONS, ImageSource, limit_of
from mmattn.data.readers import TABLES, as_path, read_rows, report_missing
from mmattn.data.table import Table, is_media

TORCHVISION = "torchvision/"
Row = tuple[str, str, ImageSource, str | None]  # location of an image, for messages; id; image; label
DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)  # of a tar, compressed or not
MAX_BYTES = 8 << 30  # of the images in a compressed tar, which need space in a temporary file
LIMIT = "MMATTN_MAX_BYTES"  # environment variable of another limit
PATH_COLUMNS, LABEL_COLUMNS = ("path", "image"), ("label", "labels")


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image within a tar, read on demand: from the tar, or from a temporary file if the tar is compressed."""

    path: Path
    offset: int
    size: int
    archive: str  # name of the tar

    def read(self) -> bytes:
        """Returns the file's bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def fingerprint(self) -> str:
        """Returns the member's identity for fingerprints, the analogue of a file's name and size."""
        return f"{self.archive} {self.offset} {self.size}"


def read_images(
    source: str | Path | Table, split: str, root: str | Path | None, problems: Problems, labeled: bool = False
) -> Iterator[Row]:
    """Yields the labeled images of a path, or of a table in memory.

    - a folder: one sub-folder per class, images at any depth below it (torchvision's ``ImageFolder``);
    - a ``.tar``, compressed or not: such a tree, alone or in one outer folder;
    - a ``.csv``, ``.tsv`` or ``.jsonl``: the columns ``path`` (or ``image``) and ``label``, paths relative to the file;
    - ``torchvision/NAME``: a data set of torchvision whose files exist below ``root``.

    Args:
        source: The path.
        split: train, val or test, for torchvision.
        root: See ``ClassificationDataset``.
        problems: Collects the invalid items.
        labeled: Whether a table without a column of labels is an error.

    Raises:
        DataError: The path as a whole is none of these.
    """
    if str(source).startswith(TORCHVISION):
        yield from read_torchvision(str(source).removeprefix(TORCHVISION), split, root)
        return
    path = as_path(source)
    if isinstance(path, Table):
        yield from read_table(path, root, problems, labeled)
    elif path.is_dir():
        yield from read_folder(path)
    elif not path.exists():
        expected = "a folder of class folders, a tar of one, a CSV, or torchvision/NAME"
        raise DataError(str(path), expected, "no such file")
    elif path.suffix.lower() in TABLES:
        yield from read_table(path, root, problems, labeled)
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
    """Yields the images of a tar of class folders, which are read on demand.

    Those of a compressed tar are first written to a temporary file, which is removed when the process ends.
    """
    try:
        with tarfile.open(path) as archive:
            plain = type(archive.fileobj).__name__ == "BufferedReader"
            members = list(_listed(archive)) if plain else []
            images = [TarImage(path, m.offset_data, m.size, path.name) for m in members]
            if not plain:
                members, images = _unpack(archive, path)
    except DAMAGED as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            where = f"space for its images in {tempfile.gettempdir()} (TMPDIR names another folder)"
            raise DataError(str(path), where, "a full disk") from None
        raise DataError(str(path), "a whole tar", f"a truncated or damaged one ({shorten(str(error))})") from None
    parts = [PurePosixPath(member.name.removeprefix("./")).parts for member in members]
    outer = 1 if parts and len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts) else 0
    size = path.stat().st_size
    for member, place, image in zip(members, parts, images, strict=True):
        where = f"{path}, member {member.name}"
        if len(place) < outer + 2:
            raise DataError(where, "CLASS/NAME", "an image in no class folder")
        if plain and member.offset_data + member.size > size:
            raise DataError(where, "a whole tar", "one that ends within this member")
        yield where, "/".join(place[outer:]), image, place[outer]


def _listed(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the images of a tar."""
    for member in archive:
        if member.isfile() and is_listed(member.name.removeprefix("./"), IMAGE_EXTENSIONS):
            yield member


def _unpack(archive: tarfile.TarFile, path: Path) -> tuple[list[tarfile.TarInfo], list[TarImage]]:
    """Writes the images of a compressed tar to a temporary file, one after the other.

    Raises:
        DataError: They exceed the limit.
    """
    limit, members, images = limit_of(LIMIT, MAX_BYTES), [], []
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="mmattn-", suffix=".images"))
        for member in _listed(archive):
            image = TarImage(Path(file.name), file.tell(), member.size, path.name)
            if image.offset + image.size > limit:
                expected = f"at most {limit:,} bytes of images in a compressed tar"
                raise DataError(str(path), expected, f"more; decompress it, or set {LIMIT}")
            shutil.copyfileobj(archive.extractfile(member), file)  # type: ignore[arg-type]
            members.append(member)
            images.append(image)
        file.flush()
        atexit.register(stack.pop_all().close)
    return members, images


def read_table(path: Path | Table, root: str | Path | None, problems: Problems, labeled: bool = False) -> Iterator[Row]:
    """Yields the images of a CSV, TSV or JSONL with their paths and labels."""
    folder = path.parent if root is None else Path(root)
    for number, (where, _, row) in enumerate(read_rows(path, problems)):
        column = next((name for name in PATH_COLUMNS if name in row), None)
        label = next((row[name] for name in LABEL_COLUMNS if name in row), None)
        missing = [] if column else ["path"]
        missing += ["label"] if labeled and not row.keys() & set(LABEL_COLUMNS) else []
        if column is None or missing:
            report_missing(path, where, row, missing, (*PATH_COLUMNS, *LABEL_COLUMNS, "id"), problems)
            continue
        text = "|".join(map(str, label)) if isinstance(label, list) else None if label is None else str(label)
        image, name = row[column], str(number)
        if isinstance(image, (str, Path)) and str(image).strip():
            name = f"{number} {str(image).strip()}"
            image = folder / os.path.expanduser(str(image).strip())
        elif not is_media(image) or not isinstance(path, Table):
            problems.add(where, "the path of an image", shorten(image))
            continue
        yield where, str(row.get("id") or name), image, text


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
