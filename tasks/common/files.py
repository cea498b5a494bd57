"""Files that are either written whole or not at all."""

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
    """What the user's umask leaves to a new file; temporary ones begin as 0600, which would hide results."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A name beside the target, with its suffix, for a writer that takes names; renamed unless something fails."""
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
    """Write beside the target, fsync, rename; on any error the target is as it was and nothing is left beside it.

    The temporary file lies in the target's own folder, since a rename is atomic only within one file system.

    Args:
        path: The target; its folder is made if missing.
        mode: "wb" or "w" (UTF-8).

    Raises:
        OSError: The folder cannot be written, or the disk is full; the old file is unharmed.
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
    """Write JSON atomically, readable by people."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def clean_leftovers(folder: Path) -> None:
    """Put right what a kill inside `atomic_write` or `atomic_folder` left in `folder`: nothing saved before is lost."""
    for old in folder.glob(".*.old.tmp"):
        target = folder / old.name[1:].rsplit(".", 3)[0]
        if not target.exists():
            os.replace(old, target)
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def atomic_folder(path: str | Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write a new folder beside `path`, then put it in the place of `path`.

    Args:
        path: The folder to make or replace.
        fill: Called with an empty folder.

    Raises:
        Whatever `fill` raises; the old folder is then as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    old = temporary.with_suffix(".old.tmp")  # .NAME.RANDOM.old.tmp, which clean_leftovers takes apart again
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
