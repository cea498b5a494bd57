"""Atomic writes of files and folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open a folder, and needs no such call."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode() -> int:
    """The mode of a new file by the user's umask; temporary files have 0600, which others cannot read."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside the target, with its suffix, for writers that take names; renamed unless they fail."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a temporary file, fsync, rename; on any error the target is unchanged and the temporary file removed.

    The temporary file is in the target's folder, since a rename is atomic only within one file system.

    Args:
        path: The target; its folder is created if missing.
        mode: "wb" or "w" (UTF-8).

    Raises:
        OSError: The folder cannot be written, or the disk is full; the old file is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        os.fchmod(descriptor, _mode())
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def clean_leftovers(folder: Path) -> None:
    """Clean up after an `atomic_write` or `atomic_folder` in `folder` that was killed; saved data are not lost."""
    for old in folder.glob(".*.old.tmp"):
        target = folder / old.name[1:].rsplit(".", 3)[0]
        if not target.exists():
            os.replace(old, target)
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def atomic_folder(path: str | Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder beside `path`, then replace `path` by it.

    Args:
        path: The folder to create or replace.
        fill: Function that is called with the empty temporary folder.

    Raises:
        Exception: Any error raised by `fill`; the old folder is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    old = temporary.with_suffix(".old.tmp")  # .NAME.RANDOM.old.tmp, parsed by clean_leftovers
    try:
        temporary.chmod(0o755)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(_mode())
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)
    return target
