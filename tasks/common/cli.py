"""fit, validate and test of a task, as the command line and `mmattn.fit` call them."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import set_parsing_settings

from mmattn.tasks.common.refit import FitCLI
from mmattn.tasks.common.task import Task
from mmattn.tasks.common.task_cli import TaskCLI
from mmattn.tasks.common.trainer import ALLOWED_IMPORTS

# Lightning's warnings about intended behavior: mid-epoch resumption is exact, and both loggers share a folder.
KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*dataloader is not resumable.*",
    ".*in eval mode at the start of training.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",
    ".*callbacks used to create the checkpoint.*",  # a run may be resumed without a limit of time
    ".*sync_dist=True.*",  # metrics gather over processes themselves
)


def run(
    task: Task, command: str, argv: Sequence[str], program: str = "", sources: Mapping[str, Any] | None = None
) -> TaskCLI:
    """Run fit, validate or test of a task.

    Args:
        task: The task.
        command: fit, validate or test.
        argv: The command's options.
        program: The name under which the command was called.
        sources: Samples in memory by split, if it was called by `mmattn.fit`.

    Raises:
        UserError: The configuration, the data or a checkpoint is invalid.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for known in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=known)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=ALLOWED_IMPORTS)
    arguments = ["--help" if word == "--help-all" else word for word in argv]
    try:
        return FitCLI(task, command, arguments, program or f"python -m tasks.{task.name}", sources)
    except SystemExit as stop:
        sys.stdout.flush()
        raise stop
