"""Errors of configurations, checkpoints and run directories; those of data are in `mmattn.data.errors`."""

from __future__ import annotations

from mmattn.data.errors import ConfigError as ConfigError, UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign, or does not match the model."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or holds another run."""


class NonFiniteLossError(UserError):
    """Training stopped because the loss is not finite."""


class DiskFullError(OSError, UserError):
    """The disk, or the user's share of it, is full."""
