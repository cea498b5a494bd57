"""Auxiliary losses of modules."""

from __future__ import annotations

from torch import Tensor, nn


def aux_losses(model: nn.Module) -> Tensor | None:
    """Returns the sum of ``aux_loss()`` over all modules that define it, or None if there are none.

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
