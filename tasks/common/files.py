"""Atomic writes of files and folders; in place where a path is no regular file."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmattn.tasks.common.errors import DiskFullError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".mmattn.tmp"  # ending of temporary files and folders, by which `clean_abandoned` knows them


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open a folder, and needs no such call."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode(target: Path | None = None) -> int:
    """The mode of an existing target, or of a new file by the user's umask; temporary files have 0600."""
    if target is not None and target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _descriptor(path: str | Path) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout or /dev/fd/3 names, if any."""
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path))
    if found is not None:
        return int(found[1])
    with suppress(OSError):
        return next((n for n in (1, 2) if os.path.samestat(os.stat(path), os.fstat(n))), None)
    return None


def is_special(path: str | Path) -> bool:
    """Whether a path is written in place: a device, a FIFO, or where this process's output goes."""
    with suppress(OSError):
        mode = os.stat(path).st_mode
        return _descriptor(path) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _open_special(path: str | Path, mode: str) -> IO[Any]:
    number = _descriptor(path)
    # A duplicate shares the position; a path opened anew would truncate what was redirected to a file.
    return open(path if number is None else os.dup(number), mode, encoding=None if "b" in mode else "utf-8")


def _real(path: str | Path) -> Path:
    """The path behind links, whose folder is created if missing.

    Raises:
        OSError: The links form a loop, or the folder cannot be created.
    """
    with suppress(FileNotFoundError):
        os.stat(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


@contextmanager
def _full_disk_named(target: str | Path) -> Iterator[None]:
    """Raise the errors of a full disk, which Python, PyTorch and safetensors report in different ways, as one.

    Raises:
        DiskFullError: The disk is full; names the target.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) and TEMPORARY not in str(error.filename):  # of another target
            raise
        cause: BaseException | None = error
        while cause is not None:
            number = getattr(cause, "errno", None)
            if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(cause):
                number = number or errno.ENOSPC
                raise DiskFullError(number, os.strerror(number), str(target)) from error
            cause = cause.__cause__ or cause.__context__
        raise


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a temporary file or folder while its writer lives; whether that succeeds.

    It doesn't if another process has the lock, or if there are no locks: on Windows and on some network file systems.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(descriptor)


def clean_abandoned(folder: str | Path) -> None:
    """Remove the temporary files and folders in a folder whose writer was killed."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = Path(folder, name)
        if name.endswith(TEMPORARY):
            with suppress(OSError), _locked(path) as free:
                if free:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def atomic_path(path: str | Path, ending: str | None = None) -> Iterator[Path]:
    """A temporary file for writers that take names, moved to the target unless they fail.

    Args:
        path: The target, see `atomic_write`.
        ending: Ending of the temporary file; None: that of the target.
    """
    special = is_special(path)
    target = Path(path) if special else _real(path)
    place = None if special else target.parent
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=TEMPORARY, dir=place))
    temporary = folder / (target.name if ending is None else f"{target.stem}{ending}")
    try:
        with _full_disk_named(target), _locked(folder):
            yield temporary
            if special:
                with temporary.open("rb") as source, _open_special(path, "wb") as file:
                    shutil.copyfileobj(source, file)
                return
            for part in folder.iterdir():  # an ONNX program may have its weights in a second file
                os.replace(part, target.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a temporary file, fsync, rename; on any error the target is unchanged and the temporary file removed.

    The temporary file is in the target's folder, since a rename is atomic only within one file system. Links are
    followed. What is no regular file (a device, a FIFO, /dev/stdout, /dev/fd/3) is opened in place.

    Args:
        path: The target; its folder is created if missing.
        mode: "wb" or "w" (UTF-8).

    Raises:
        DiskFullError: The disk is full; the old file is unchanged.
        OSError: The target is a folder, or its folder cannot be written.
    """
    if is_special(path):
        with _full_disk_named(path), _open_special(path, mode) as file:
            yield file
        return
    target = _real(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=TEMPORARY, dir=target.parent)
    temporary = Path(name)
    try:
        encoding = None if "b" in mode else "utf-8"
        with _full_disk_named(target), open(descriptor, mode, encoding=encoding) as file, _locked(temporary):
            os.fchmod(descriptor, _mode(target))
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
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
        DiskFullError: The disk is full; the old folder is unchanged.
        Exception: Any error raised by `fill`, likewise.
    """
    target = _real(path)
    clean_abandoned(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=TEMPORARY, dir=target.parent))
    old = Path(f"{temporary}".removesuffix(TEMPORARY) + ".old.tmp")  # .NAME.RANDOM.old.tmp, parsed by clean_leftovers
    try:
        temporary.chmod(0o755)
        with _full_disk_named(target), _locked(temporary):
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
