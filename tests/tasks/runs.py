"""Tiny training runs for the tests, in this process."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.tasks.common.checkpoint import read_weights
from mmattn.tasks.common.task import tasks
from tests.conftest import refused

ROOT = Path(__file__).resolve().parents[2]

# An epoch takes a fraction of a second.
COMMON = (
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1 "
    "--trainer.enable_progress_bar false"
)
BRIEF = "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.limit_val_batches 1 "  # for fine-tuning
BRIEF += "--trainer.enable_progress_bar false "
STILL = "--optim.lr 1e-12 --optim.weight_decay 0 --optim.warmup_steps 1"  # steps that change nothing
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # which change at any learning rate


@functools.cache
def _make_data_once() -> None:
    """Lets all runs of this process share the built-in data: `fit` opens all of the validation split."""
    for task in tasks().values():
        module = importlib.import_module(f"{task.package}.{task.demo.partition(':')[0]}")
        made = functools.cache(module.make)
        module.make = lambda *given, made=made, **more: [copy.copy(sample) for sample in made(*given, **more)]


def run(command: str, folder: Path, options: str = "", base: str | None = None, task: str = "vqa") -> Path:
    """Runs fit, validate or test of a task with tiny settings; later options override earlier ones."""
    from mmattn.tasks.common import cli

    _make_data_once()
    words = (f"{COMMON} {tasks()[task].tiny}" if base is None else base).split()
    words += ["--trainer.report", "false"]  # it takes seconds
    given = options.split()
    words += ["--data.train", "demo"] if command == "fit" and "--config" not in given else []
    pairs = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in given]
    measured = ("--data", "--trainer")  # options of a finished model
    kept = [word for pair in pairs if command == "fit" or pair[0].startswith(measured) for word in pair]
    cli.run(tasks()[task], command, [*kept, *given, "--trainer.default_root_dir", str(folder)])
    return folder


def ask(command: str, *words: object, task: str = "vqa") -> None:
    """Runs predict, explain or export of a task on the CPU."""
    from mmattn.tasks.common import commands
    from mmattn.tasks.common.dispatch import model_parser

    given = [*map(str, words), "--device", "cpu"]
    commands.run(tasks()[task], command, model_parser(tasks()[task], command).parse_args(given))


def ask_folder(
    folder: Path, errors: Mapping[str, str], capsys: pytest.CaptureFixture[str], *words: object, task: str
) -> dict[str, Any]:
    """The predictions for a folder's files; each unreadable file gives one error, and stops a strict run."""
    given = ("--input", folder, "--output", folder.parent / "o", *words)
    refused(re.escape(min(errors)), ask, "predict", *given, task=task, error=DataError)
    assert not (folder.parent / "o").exists(), "no partial output remains"
    ask("predict", *given, "--on_error", "skip", task=task)
    rows = {row["id"]: row for row in lines(folder.parent / "o")}
    found = {name: rows.pop(name)["error"] for name in list(rows) if "error" in rows[name]}
    assert found.keys() == errors.keys()
    assert all(message in found[name] and name in found[name] for name, message in errors.items())
    assert not any("\n" in message for message in found.values())
    assert f"{len(found)} of {len(found) + len(rows)} items skipped" in capsys.readouterr().err
    return rows


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def weights(run: Path) -> dict[str, Tensor]:
    """The weights of a run's model folder."""
    return read_weights(run / "model" / "model.safetensors")


def assert_kept(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *but: str) -> int:
    """Asserts unchanged weights, except statistics and names that contain one of these; returns their number."""
    names = [name for name in before if not name.endswith(STATISTICS) and not any(part in name for part in but)]
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in names)
    return len(names)


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """A JSON file's content, to be changed in place."""
    content = read(path)
    yield content
    path.write_text(json.dumps(content), encoding="utf-8")


def damage(path: Path, change: dict[str, Any] | str | None) -> None:
    """Deletes a file (None), replaces its text, or updates values of its JSON."""
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        with edited(path) as values:
            values.update(change)


def lines(path: Path) -> list[Any]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Writes what `lines` reads."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def python(*words: object, cwd: Path = ROOT, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments and one thread; asserts the exit code."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done
