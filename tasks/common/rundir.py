"""The run directory: the files that a run writes, and the checks that no run overwrites another."""

from __future__ import annotations

import csv
import datetime
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from mmattn.data import readers
from mmattn.tasks.common.errors import RunDirectoryError
from mmattn.tasks.common.files import atomic_write, clean_leftovers, write_json

RUN, CONFIG, METRICS, REPORT, LOCK = "run.json", "config.yaml", "metrics.json", "report.html", ".lock"
# What a run has written when it has no checkpoint yet, besides files of evaluations.
STARTED = re.compile(
    r"run\.json|config\.yaml|features_[0-9a-f]+_\d+\.bin|processor(/\w+\.(json|safetensors))?|"
    r"logs(/version_\d+(/metrics\.csv|/hparams\.yaml|/events\.out\.tfevents\.[^/]+)?)?"
)
EVALUATION = {METRICS, REPORT, LOCK, "confusion_val.png", "confusion_test.png"}  # files of an evaluation alone
logger = logging.getLogger(__name__)
PACKAGES = ("mmattn", "torch", "lightning", "torchmetrics", "torchvision", "timm", "tokenizers", "numpy")


def is_run(folder: Path) -> bool:
    """Whether the folder is the run directory of a run."""
    return (folder / RUN).is_file()


def writable(folder: Path) -> None:
    """Create the folder if necessary and check that it is writable.

    Raises:
        RunDirectoryError: The folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"{folder}: the run directory cannot be written ({error.strerror}); "
            f"choose another by --trainer.default_root_dir."
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the run directory for this process, and yield whether it is held; the lock ends with it, however it ends.

    A POSIX record lock, which forked workers do not inherit. Without them (on Windows) nothing is locked.

    Raises:
        RunDirectoryError: Another process trains in it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield False
        return
    writable(folder)
    with (folder / LOCK).open("a") as file:
        is_held = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirectoryError(
                f"{folder}: another process is training in this run directory; wait until it ends, stop it, or choose "
                f"another by --trainer.default_root_dir."
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("%s: the run directory cannot be locked (%s).", folder, error.strerror)
            is_held = False
        yield is_held


def prepare(folder: Path, resume: bool, overwrite: bool, is_held: bool = False) -> None:
    """Prepare the run directory.

    A run that ended before its first checkpoint is replaced if the folder has no other files.

    Args:
        folder: The run directory.
        resume: Whether its run goes on.
        overwrite: Whether it may be emptied.
        is_held: Whether this process holds its lock, so that no other process trains in it.

    Raises:
        RunDirectoryError: The folder is not writable; it is not empty, with neither `resume` nor `overwrite`; it has no
            run to resume; or it is to be overwritten and is not a run directory.
    """
    writable(folder)
    clean_leftovers(folder)
    if resume:
        if not is_run(folder):
            raise RunDirectoryError(f"{folder}: nothing to resume: expected a run directory, found no {RUN}.")
        return
    if {entry.name for entry in folder.iterdir()} <= EVALUATION:
        return
    if not overwrite and is_held and is_run(folder):
        others = [entry for entry in folder.iterdir() if entry.name not in EVALUATION]
        files = [path.relative_to(folder).as_posix() for entry in others for path in (entry, *entry.rglob("*"))]
        if all(STARTED.fullmatch(name) for name in files) and not any(entry.is_symlink() for entry in others):
            _remove(others)
            return
    if not overwrite and is_run(folder) and not list(folder.glob("*.ckpt")):
        raise RunDirectoryError(
            f"{folder}: holds a run that ended before its first checkpoint; --overwrite true empties it."
        )
    if not overwrite:
        raise RunDirectoryError(
            f"{folder}: the run directory is not empty. Resume its run by --ckpt_path last, empty it by "
            f"--overwrite true, or choose another by --trainer.default_root_dir."
        )
    if not is_run(folder):
        raise RunDirectoryError(f"{folder}: --overwrite empties only directories of earlier runs; found no {RUN}.")
    _remove([entry for entry in folder.iterdir() if entry.name != LOCK])


def _remove(entries: Sequence[Path]) -> None:
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Check that the disk has space for the checkpoints of a run, those of an earlier run counted as free.

    Raises:
        RunDirectoryError: It has less than `needed` bytes.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free + sum(path.stat().st_size for path in folder.glob("*.ckpt"))
    if free < needed:
        raise RunDirectoryError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free space for checkpoints, found {free / 1e9:.1f} GB; "
            f"choose another folder by --trainer.default_root_dir."
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The class of the machine: its GPU, or its processor and number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    kind, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*: (.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        kind = found[1] if found else kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{kind}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"


def record_start(folder: Path, task: str, seed: int, command: str, config: str, resumed: bool) -> None:
    """Write config.yaml (the resolved configuration) and run.json (seed, versions, command, data fingerprint)."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if resumed:
        record = read_json(folder / RUN)
        record.setdefault("resumed", []).append({"at": now, "versions": versions()})
    else:
        record = {"task": task, "command": command, "seed": seed, "started": now, "versions": versions(), "data": {}}
        record["machine"] = machine()
        with atomic_write(folder / CONFIG, "w") as file:
            file.write(config)
    write_json(folder / RUN, record)


def record_data(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Add the data fingerprint of a run whose model is not trained on all data to run.json."""
    record = {name: value for name, value in read_json(folder / RUN).items() if name != "refit"}
    write_json(folder / RUN, {**record, "data": dict(fingerprint)})


def record_refit(folder: Path, refit: Mapping[str, Any]) -> None:
    """Add to run.json that the model was trained again, on all data."""
    write_json(folder / RUN, {**read_json(folder / RUN), "refit": dict(refit)})


def record_metrics(folder: Path, part: str, figures: Mapping[str, Any]) -> None:
    """Replace one part ("fit", "validation", "test") of metrics.json and keep the others."""
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
    write_json(folder / METRICS, {**read_json(folder / METRICS), part: rounded})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; an empty dictionary if it does not exist."""
    return dict(readers.read_json(path)) if path.exists() else {}


def print_metrics(title: str, figures: Mapping[str, float]) -> None:
    """Print a table of metrics on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    console = Console()
    console.print(
        title, markup=False, highlight=False, soft_wrap=True
    )  # rich would wrap a table title to the table's width
    console.print(table)


def logged(root: Path) -> list[dict[str, float]]:
    """The rows of the run's CSV logs, those of a resumed run after the earlier ones; later values replace earlier."""
    files = sorted(root.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    steps: dict[float, dict[str, float]] = {}
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if name and value}
                steps.setdefault(values.pop("step", 0.0), {}).update(values)
    return [{"step": step, **values} for step, values in sorted(steps.items())]


def column(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """Steps and values of a logged figure."""
    return [(row["step"], row[name]) for row in rows if name in row]
