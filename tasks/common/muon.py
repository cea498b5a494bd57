"""Muon for hidden matrices, AdamW for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a x + b x^3 + c x^5, steepest at zero
STEPS = 5  # after which singular values lie between 0.68 and 1.14
MOMENTUM = 0.95
RMS = 0.2  # of an update of AdamW, roughly (Liu et al. 2025, section 2.2)
BATCH = 2**22  # elements of a batch of matrices: a few copies of them are held


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of those given, by Newton-Schulz iterations (Jordan 2024).

    Matrices are processed as one batch and in their own type: `torch.optim.Muon` takes one after another in bfloat16,
    which a CPU without products in bfloat16 emulates, at twenty times the time.

    Args:
        matrices: (N, R, C).

    Returns:
        (N, R, C), singular values between 0.68 and 1.14, unless they were near zero; zeros remain zeros.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices (Jordan et al. 2024), AdamW for all other weights.

    The step of a matrix is its averaged gradient with all singular values set to about one. Steps are scaled to the
    size of AdamW's, so that both parts take the same learning rate and weight decay (Liu et al. 2025, section 2.2).

    Args:
        groups: Parameter groups, each with `params`, `lr` and `weight_decay`; the matrices (R, C) of a group with
            ``hidden=True`` are Muon's.
        adamw: Keywords of `torch.optim.AdamW` for the others.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **adamw: Any) -> None:
        groups = list(groups)
        self.adamw = torch.optim.AdamW([group for group in groups if not group["hidden"]], **adamw)
        super().__init__([*(group for group in groups if group["hidden"]), *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let AdamW work on its part of this optimizer's groups and state: both are saved, and scheduled, as one."""
        self.adamw.param_groups = [group for group in self.param_groups if not group["hidden"]]
        self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["hidden"]:
                self._step(group)
        self.adamw.step()
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[Any, ...], list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                shapes.setdefault((weight.shape, weight.device, weight.dtype), []).append(weight)
        for weights in shapes.values():
            size = max(1, BATCH // weights[0].numel())
            for first in range(0, len(weights), size):
                self._update(weights[first : first + size], group["lr"], group["weight_decay"])

    def _update(self, weights: list[Tensor], lr: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, averages, MOMENTUM)  # Nesterov's momentum
        updates = list(orthogonalize(torch.stack(ahead)).unbind())
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, updates, alpha=-lr * RMS * max(weights[0].shape) ** 0.5)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}
