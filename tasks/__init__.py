"""Task packages, one folder each, on the shared core `mmattn` and the readers in `data`.

Importing this package imports nothing else: `load` finds out from a shipped directory which task it belongs to and
imports that task's predictor alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS: tuple[str, ...] = ("vqa", "translation", "summarization")


def load(directory: str | Path, device: str = "auto") -> Any:
    """Load the predictor of a shipped checkpoint directory, whichever task it is of.

    Args:
        directory: a folder with `config.json`, `model.safetensors` and the processor's files.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Returns:
        The task's predictor, e.g. `tasks.vqa.VQAPredictor`.

    Raises:
        CheckpointError: the folder is not one of ours, is incomplete, or names a task that this version has not.
    """
    import importlib

    from tasks.common.checkpoint import read_config

    task = read_config(directory)["task"]
    return importlib.import_module(f"tasks.{task}.predict").load(directory, device=device)
