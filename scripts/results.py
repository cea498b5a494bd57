"""results.json of a task: every measured figure with the command, commit and machine that reproduce it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmattn.tasks.common.files import write_json
from mmattn.tasks.common.rundir import versions
from mmattn.tasks.common.task import tasks

ROOT = Path(__file__).resolve().parents[1]


def results_path(task: str) -> Path:
    """Path of a task's results.json."""
    return tasks()[task].folder / "results.json"


def read_results(task: str) -> dict[str, Any]:
    """All entries of a task, by name."""
    path = results_path(task)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record_result(
    task: str,
    name: str,
    *,
    command: str,
    metrics: Mapping[str, Any],
    seconds: float,
    config: str = "",
    note: str = "",
    metric: str = "",
) -> None:
    """Add or replace one entry.

    Args:
        task: Name of the task.
        name: Name of the entry; an entry of that name is replaced.
        command: Command that reproduces the figures.
        metrics: The figures.
        seconds: Duration in seconds.
        config: The YAML file, if one was used.
        note: Additional information.
        metric: The main metric, if it is not the task's.
    """
    entry = {
        "command": command,
        "config": config,
        "metrics": {key: round(value, 4) if isinstance(value, float) else value for key, value in metrics.items()},
        "seconds": round(seconds, 1),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    write_json(
        results_path(task),
        read_results(task) | {name: entry | {k: v for k, v in (("note", note), ("metric", metric)) if v}},
    )


def commit() -> str:
    """The checkout's commit, marked if files differ from it, other than those to which results are written."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changes = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!tasks/*/results.json"]
    changed = subprocess.run(changes, cwd=ROOT, capture_output=True).returncode
    return found.stdout.strip() + ("-dirty" if changed == 1 else "")


def machine() -> str:
    """A short description of the hardware, without the host name."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
