"""Errors of configurations, checkpoints and run directories; those of data are in `mmattn.data.errors`."""

from __future__ import annotations

import re

from mmattn.data.errors import ConfigError as ConfigError, UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign, or does not match the model."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or holds another run."""


class NonFiniteLossError(UserError):
    """Training stopped because the loss is not finite."""


class DiskFullError(OSError, UserError):
    """The disk, or the user's share of it, is full."""


def missing_package(error: Exception) -> str:
    """One line for an error about a package that is not installed; for other errors, their message."""
    found = re.search(r"Requirement '(\S+)' not met|No module named '?([\w.-]+)", str(error))
    name = (found[1] or found[2].partition(".")[0]) if found else None
    name = {"PIL": "pillow", "yaml": "pyyaml"}.get(name, name) if name else None
    return f"the package {name} is not installed: pip install {name!r}." if name else " ".join(str(error).split())
