"""Tiny trainings for the tests, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmattn.tasks.common.task import tasks

# An epoch takes a fraction of a second.
COMMON = (
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1 "
    "--trainer.enable_progress_bar false"
)


def run(command: str, folder: Path, options: str = "", base: str | None = None, task: str = "vqa") -> Path:
    """Run fit, validate or test of a task with tiny settings; later options override."""
    from mmattn.tasks.common import cli

    words = (f"{COMMON} {tasks()[task].tiny}" if base is None else base).split()
    given = options.split()
    pairs = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in given]
    kept = [word for pair in pairs if command == "fit" or not pair[0].startswith("--model") for word in pair]
    cli.run(tasks()[task], command, [*kept, *given, "--trainer.default_root_dir", str(folder)])
    return folder


def ask(command: str, *words: object, task: str = "vqa") -> None:
    """Run predict, explain or export of a task, on the CPU."""
    from mmattn.tasks.common import commands
    from mmattn.tasks.common.dispatch import model_parser

    given = [*map(str, words), "--device", "cpu"]
    commands.run(tasks()[task], command, model_parser(tasks()[task], command).parse_args(given))


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Any]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
