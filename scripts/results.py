"""results.json of a task: every measured figure with what it takes to measure it again."""

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
    """Where a task keeps its figures."""
    return tasks()[task].folder / "results.json"


def read_results(task: str) -> dict[str, Any]:
    """All entries of a task by name."""
    path = results_path(task)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record_result(
    task: str, name: str, *, command: str, metrics: Mapping[str, Any], seconds: float, config: str = "", note: str = ""
) -> None:
    """Add or replace one entry.

    Args:
        task: The task.
        name: The entry's name; an entry of that name is replaced.
        command: What reruns it.
        metrics: The figures.
        seconds: How long it took.
        config: The YAML file, if one was used.
        note: What a reader must know.
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
    write_json(results_path(task), read_results(task) | {name: entry | ({"note": note} if note else {})})


def commit() -> str:
    """The commit of the checkout, marked where files differ from it, other than those that results are written to."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changes = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!tasks/*/results.json"]
    changed = subprocess.run(changes, cwd=ROOT, capture_output=True).returncode
    return found.stdout.strip() + ("-dirty" if changed == 1 else "")


def machine() -> str:
    """The hardware in a few words, no host name."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
