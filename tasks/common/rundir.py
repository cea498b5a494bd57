"""The run directory: what a run leaves behind, and that no run destroys another."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmattn.data import readers
from mmattn.tasks.common.errors import RunDirectoryError
from mmattn.tasks.common.files import atomic_write, clean_leftovers, write_json

RUN, CONFIG, METRICS = "run.json", "config.yaml", "metrics.json"
PACKAGES = ("mmattn", "torch", "lightning", "torchmetrics", "torchvision", "timm", "tokenizers", "numpy")


def is_run(folder: Path) -> bool:
    """Whether a run of ours has begun in this folder."""
    return (folder / RUN).is_file()


def writable(folder: Path) -> None:
    """Make the folder if need be.

    Raises:
        RunDirectoryError: It cannot be made or written.
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


def prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the run directory ready.

    Raises:
        RunDirectoryError: Not writable; in use and neither resumed nor to be overwritten; nothing to resume; or asked
            to overwrite a folder that is no run's.
    """
    writable(folder)
    clean_leftovers(folder)
    if resume:
        if not is_run(folder):
            raise RunDirectoryError(f"{folder}: nothing to resume: no run has begun there.")
        return
    if {entry.name for entry in folder.iterdir()} <= {METRICS}:  # empty, or only measured into
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
        raise RunDirectoryError(
            f"{folder}: --overwrite empties only directories of earlier runs, and this one has no {RUN}."
        )
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def record_start(folder: Path, task: str, seed: int, command: str, config: str, resumed: bool) -> None:
    """Write config.yaml (the resolved configuration) and run.json (seed, versions, command, data's fingerprint)."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if resumed:
        record = read_json(folder / RUN)
        record.setdefault("resumed", []).append({"at": now, "versions": versions()})
    else:
        record = {"task": task, "command": command, "seed": seed, "started": now, "versions": versions(), "data": {}}
        with atomic_write(folder / CONFIG, "w") as file:
            file.write(config)
    write_json(folder / RUN, record)


def record_data(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Add what the data were to run.json."""
    write_json(folder / RUN, {**read_json(folder / RUN), "data": dict(fingerprint)})


def record_metrics(folder: Path, part: str, figures: Mapping[str, Any]) -> None:
    """Replace one part ("fit", "validation", "test") of metrics.json and keep the others."""
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
    write_json(folder / METRICS, {**read_json(folder / METRICS), part: rounded})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of ours, or an empty dictionary where there is none."""
    return dict(readers.read_json(path)) if path.exists() else {}


def print_metrics(title: str, figures: Mapping[str, float]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    console = Console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)  # a title of the table is as narrow as it
    console.print(table)
