"""Attention maps on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import repeat_heads
from ..kernels.base import Kernel
from ..masks import Mask
from ..probe import Probe


@contextmanager
def capture(
    model: nn.Module, *, differentiable: bool = False, only: Collection[str] | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """Captures the attention maps of all calls of the model inside the context.

    Each kernel computes ``weights() @ v`` instead, so gradients flow through the maps, which can be supervised in
    training as well as inspected. Compiled models are run eagerly, and gradient checkpointing is disabled meanwhile.

    Args:
        model: A module that contains attentions of this package.
        differentiable: Whether maps always have gradients, also in a frozen model or after a hard choice.
        only: Paths of the attentions to capture, while all others remain fused; None: all.

    Yields:
        The maps (B, h, L, S) by module path of the attention that owns the kernel, one per call, in order of call; the
        inputs of a `mmattn.probe.Probe` (gates, weights not made by a kernel), of any shape, by the probe's path.

    Raises:
        ValueError: A cached decoding step runs inside; generation is explained by one teacher-forced pass.

    >>> from mmattn import Encoder
    >>> with capture(Encoder(32, 2, 4)) as maps:
    ...     pass
    >>> maps
    {}
    """
    maps: dict[str, list[Tensor]] = {}
    handles: list[Any] = []
    replaced: dict[Any, Any] = {}
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    try:
        for name, module in model.named_modules():
            if isinstance(module, Kernel) and (only is None or owner_path(name) in only):
                replaced[module] = module.__dict__.get("forward")  # of a capture around this one
                explicit = _Explicit(module, maps, owner_path(name), differentiable, replaced[module])
                module.forward = explicit  # type: ignore[assignment]
            elif isinstance(module, Probe):
                handles.append(module.register_forward_hook(_probe_hook(maps, plain_path(name), differentiable)))
        for stack in checkpointing:  # recomputation would record maps twice
            stack.gradient_checkpointing = False  # type: ignore[assignment]
        with _eagerly():
            yield maps
    finally:
        for handle in handles:
            handle.remove()
        for module, before in replaced.items():
            del module.forward
            if before is not None:
                module.forward = before
        for stack in checkpointing:
            stack.gradient_checkpointing = True  # type: ignore[assignment]


class _Explicit:
    """The forward pass of a kernel by its weights, which are recorded, by the captures around this one, too."""

    def __init__(
        self, kernel: Kernel, maps: dict[str, list[Tensor]], owner: str, differentiable: bool, outer: _Explicit | None
    ) -> None:
        self.kernel, self.maps, self.owner, self.outer = kernel, maps, owner, outer
        self.differentiable: bool = differentiable or (outer is not None and outer.differentiable)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: Any = None) -> Tensor:
        if cache is not None:
            raise ValueError("capture does not support cached decoding: explain it by one pass over the whole sequence")
        kernel = self.kernel
        kernel.check(mask)
        weights = kernel.weights(q, k, mask)  # (B, h, L, S)
        if self.differentiable and not weights.requires_grad:
            weights = weights.requires_grad_()
        self.record(weights)
        if kernel.dropout:
            weights = F.dropout(weights, kernel.dropout, kernel.training)
        return kernel.finish(weights @ repeat_heads(v, q.shape[1])).to(v.dtype)

    def record(self, weights: Tensor) -> None:
        self.maps.setdefault(self.owner, []).append(weights)
        if self.outer is not None:
            self.outer.record(weights)


def _probe_hook(maps: dict[str, list[Tensor]], path: str, differentiable: bool) -> Callable[..., None]:
    def hook(probe: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if differentiable and not output.requires_grad:
            output.requires_grad_()
        maps.setdefault(path, []).append(output)

    return hook


def plain_path(name: str) -> str:
    """Returns a module's path without torch.compile's wrapper."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def owner_path(name: str) -> str:
    """Returns the path of the parent of a module."""
    return plain_path(name).rpartition(".")[0]


def _eagerly() -> Any:
    # Without dynamo imported, nothing is compiled; importing it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def shares(maps: Tensor) -> Tensor:
    """Returns maps (..., P) of which each row is divided by its sum; rows of zeros become uniform."""
    total = maps.sum(-1, keepdim=True)
    return torch.where(total > 0, maps / total.clamp_min(torch.finfo(maps.dtype).tiny), 1 / maps.shape[-1])
