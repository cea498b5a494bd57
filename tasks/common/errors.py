"""What else can be wrong than data: configurations, checkpoints, run directories."""

from __future__ import annotations

from mmattn.data.errors import ConfigError as ConfigError, UserError


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign, or does not fit the model."""


class RunDirectoryError(UserError):
    """The run directory cannot be written, or holds another run."""


class NonFiniteLossError(UserError):
    """Training stopped because the loss is not a finite number."""
