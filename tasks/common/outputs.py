"""The one rule for files that a command writes.

An output is never an input, none is written twice in a run, names stay inside their folder, and in a folder nothing is
replaced that exists and was not written by an earlier run.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmattn.data.errors import UserError
from mmattn.data.processor import SETTINGS
from mmattn.tasks.common.checkpoint import CONFIG, PROCESSOR
from mmattn.tasks.common.files import atomic_path, clean_abandoned, is_special
from mmattn.tasks.common.rundir import RUN

MEDIA = ("image", "audio", "mask")  # fields of items that may be files
SIGNATURE, HEAD = b"\x89PNG\r\n\x1a\n", 33  # of a PNG: its first bytes, and how many precede its second chunk
_TEXT = b"tEXtSoftware\0mmattn"
CHUNK = struct.pack(">I", len(_TEXT) - 4) + _TEXT + struct.pack(">I", zlib.crc32(_TEXT))  # marks PNGs as ours


class Outputs:
    """The outputs of a run, each checked before it is written.

    Args:
        inputs: Files and items (paths, mappings, samples) that the run reads.
        taken: Other outputs of the run.
    """

    def __init__(self, inputs: Iterable[Any], taken: Iterable[str | Path] = ()) -> None:
        self._inputs: set[tuple[int, int]] = set()  # device and inode, so that links are found out
        for path in (path for item in inputs for path in _files_of(item)):
            with suppress(OSError, ValueError):
                status = os.stat(path)
                self._inputs.add((status.st_dev, status.st_ino))
        self._written = {os.path.realpath(path) for path in taken}
        self._cleaned: set[Path] = set()
        self._numbers: dict[Path, int] = {}  # the next to append to a name

    def claim(self, path: str | Path, replace: bool = False) -> Path:
        """Check an output, and clean up after killed runs beside it.

        Args:
            path: The file.
            replace: Whether it may exist: the user named it.

        Raises:
            UserError: It is an input, was written by this run, or exists and is not ours.
        """
        path = Path(path)
        if is_special(path):
            return path
        if path.exists():
            status = path.stat()
            if (status.st_dev, status.st_ino) in self._inputs:
                raise UserError(f"{path}: expected a name for an output, found an input; choose another.")
            if not replace and not _is_ours(path):
                raise UserError(
                    f"{path}: exists, and was not written by mmattn; choose another folder, or remove the file."
                )
        real = os.path.realpath(path)
        if real in self._written:
            raise UserError(f"{path}: expected a name for each output, found that of another output of this run.")
        self._written.add(real)
        if path.parent not in self._cleaned:
            self._cleaned.add(path.parent)
            clean_abandoned(path.parent)
        return path

    def place(self, folder: str | Path, name: str, endings: Sequence[str]) -> Path:
        """Claim a PNG in a folder for an item: its name without the ending of an image, inside the folder.

        Args:
            folder: The folder.
            name: Name of the item, such as a relative path; of other paths the last part is used. If an earlier item
                has the name without the ending, the ending or a number is appended.
            endings: Endings that are removed.

        Raises:
            UserError: See `claim`; or a link leads out of the folder.
        """
        given = Path(name.replace("\0", ""))
        ending = given.suffix if given.suffix.lower() in endings else ""
        is_inside = given.name and not given.is_absolute() and ".." not in given.parts
        stem = (str(given) if is_inside else given.name.strip(".") or "item").removesuffix(ending)
        base = Path(folder, stem)
        numbers = itertools.count(self._numbers.get(base, 2))
        for more in itertools.chain(("", ending), (f"-{number}" for number in numbers)):
            path = base.with_name(f"{base.name}{more}.png")
            real = os.path.realpath(path)
            if not Path(real).is_relative_to(os.path.realpath(folder)):
                raise UserError(f"{path}: expected a file in {folder}, found a link that leads out of it.")
            if real not in self._written:
                break
        self._numbers[base] = next(numbers)
        return self.claim(path)


def save_png(path: str | Path, save: Callable[[Path], Any]) -> None:
    """Write a PNG by a function that takes its name, and mark it as ours."""
    with atomic_path(path, ".png") as temporary:
        save(temporary)
        content = temporary.read_bytes()
        if content.startswith(SIGNATURE):
            temporary.write_bytes(content[:HEAD] + CHUNK + content[HEAD:])


def check_export(folder: Path) -> None:
    """Check a folder for exported programs, and clean up after killed runs in it.

    Raises:
        UserError: It has a model or a run, whose processor an export would replace; or programs of other origin.
    """
    if (folder / CONFIG).exists() or (folder / RUN).exists():
        raise UserError(f"{folder}: expected a folder for exported programs, found a model or a run; choose another.")
    others = (path for pattern in ("*.onnx", "*.pt2", PROCESSOR) for path in folder.glob(pattern))
    if not (folder / PROCESSOR / SETTINGS).exists() and (found := next(others, None)) is not None:
        raise UserError(f"{found}: exists, and was not written by an export of mmattn; choose another folder.")
    clean_abandoned(folder)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(HEAD + len(CHUNK))[HEAD:] == CHUNK


def _files_of(item: Any) -> Iterator[str | Path]:
    fields = item if isinstance(item, Mapping) else getattr(item, "__dict__", {})
    for value in (item, *(fields.get(key) for key in MEDIA)):
        is_path = isinstance(value, (str, Path))
        found = [value] if is_path else [getattr(value, name, None) for name in ("path", "filename", "name")]
        yield from (path for path in found if isinstance(path, (str, Path)))  # of tars, PIL images, file objects
