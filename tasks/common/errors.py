"""Errors of configurations, checkpoints and run directories; those of data are in `mmattn.data.errors`."""

from __future__ import annotations

import importlib.util
import re

from mmattn.data.errors import ConfigError as ConfigError, UserError

# The extras of pyproject.toml by the modules that they bring; a test compares both.
EXTRAS = {
    "train": "lightning torchmetrics jsonargparse tensorboard rich matplotlib torchvision torchaudio timm sacrebleu "
    "rouge_score sentencepiece jiwer faster_coco_eval scipy",
    "codecs": "torchcodec",
    "video": "av",
    "retrieval": "bm25s",
    "export": "onnx onnxscript onnxruntime",
    "serve": "fastapi uvicorn httptools prometheus_client matplotlib",
}
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}  # modules whose package has another name


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign, or does not match the model."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or holds another run."""


class NonFiniteLossError(UserError):
    """Training stopped because the loss is not finite."""


class DiskFullError(OSError, UserError):
    """The disk, or the user's share of it, is full."""


def require(*modules: str) -> None:
    """Check before a command does any work that the packages that it needs are installed.

    Raises:
        ModuleNotFoundError: One is not; `missing_package` makes the message of it.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def missing_package(error: Exception) -> str:
    """One line for an error about a package that is not installed; for other errors, their message."""
    found = re.search(r"Requirement '(\S+)' not met|No module named '?([\w.-]+)|^Neither `(\w+)`", str(error))
    name = getattr(error, "name", None) or (found and (found[1] or found[2] or found[3]))
    if not name:
        return " ".join(str(error).split())
    name = name.partition(".")[0] if not (found and found[1]) else name  # a requirement is a name and a version
    extra = next((f"mmattn[{extra}]" for extra, modules in EXTRAS.items() if name in modules.split()), None)
    package = PACKAGES.get(name, name)
    return f"the package {package} is not installed: pip install '{extra or package}'."
