"""Losses that modules ask for beside the task's own."""

from __future__ import annotations

from torch import Tensor, nn


def aux_losses(model: nn.Module) -> Tensor | None:
    """The sum of ``aux_loss()`` over all modules that have one, or None where there is none.

    >>> from mmattn import Encoder
    >>> aux_losses(Encoder(32, 1, 4)) is None
    True
    """
    total = None
    for module in model.modules():
        method = getattr(module, "aux_loss", None)
        loss = method() if callable(method) else None
        if loss is not None:
            total = loss if total is None else total + loss
    return total
