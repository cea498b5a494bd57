"""Linear maps and convolutions computed by oneDNN on CPUs: maps forward and backward, convolutions in evaluation.

torch computes products of float32 by MKL, which on AMD processors with AVX-512 uses half of their width. There oneDNN
takes 0.43 of MKL's time forward and 0.5 backward (1,280 rows of 384 to 1,536, one thread); results differ by rounding.
torch computes convolutions of 1 x 1 by such products, too: oneDNN takes half of their time with channels last.
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .feedforward import ACTIVATIONS

MANY = 2**22  # multiplications, below which the call costs more than is gained
FUSED = {None: "none", "relu": "relu", "silu": "swish"}  # oneDNN's names of activations
NARROW = 64  # inputs or outputs, below which the gradient of the weights is no faster


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by oneDNN where that is faster.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out).
    """
    # An export must not depend on the number of rows.
    if torch.compiler.is_compiling() or x.numel() * len(weight) < MANY or not _is_faster(x, weight):
        return F.linear(x, weight, bias)
    x = x.contiguous()  # with other strides than of a matrix or its transpose, products take thirty times as long
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _product(x, weight, bias)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, activation: str | None = None) -> Tensor:
    """``torch.nn.functional.conv2d`` without gradients and then an activation, by oneDNN where that is faster.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in / groups, k, k).
        bias: (C_out,).
        conv: Its stride, padding, dilation and groups are used.
        activation: A name in ACTIVATIONS; None = identity.

    Returns:
        (B, C_out, H', W'), by oneDNN with channels last.
    """
    if not _is_supported(x, weight):
        x = F.conv2d(x, weight, bias, conv.stride, cast(Any, conv.padding), conv.dilation, conv.groups)
        return x if activation is None else ACTIVATIONS[activation](x)
    sizes = (conv.padding, conv.stride, conv.dilation, conv.groups)
    x = _convolved(x, weight, bias, sizes, FUSED.get(activation, "none"))
    return x if activation in FUSED else ACTIVATIONS[cast(str, activation)](x)


class OneDNNLinear(nn.Linear):
    """``nn.Linear`` by `linear`; made of plain maps by `use_onednn`."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)


def is_plain(module: Any) -> TypeGuard[nn.Linear]:
    """Whether a module is an ``nn.Linear``, by torch or by oneDNN, and not of a class derived from it."""
    return type(module) in (nn.Linear, OneDNNLinear)


def use_onednn(model: nn.Module) -> nn.Module:
    """Makes each plain ``nn.Linear`` of a model an `OneDNNLinear`, in place; its parameters and hooks stay.

    Other classes, also those derived from ``nn.Linear``, stay as they are. Results differ by rounding only.

    >>> use_onednn(nn.Sequential(nn.Linear(8, 4)))
    Sequential(
      (0): OneDNNLinear(in_features=8, out_features=4, bias=True)
    )
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear
    return model


@functools.cache
def is_available() -> bool:
    """Whether this processor has AVX-512 and torch the operator, with right results. Tested once."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    x, weight = (torch.linspace(0.0, n, n * 32).sin().view(n, 32) for n in (24, 16))
    kernel, bias = weight[:, :9].reshape(16, 1, 3, 3), weight[:, 9]
    try:
        errors = [
            _product(x, weight, weight[:, 0]) - F.linear(x, weight, weight[:, 0]),
            _product(x.T, weight.repeat(2, 1)[:24].T, None) - x.T @ weight.repeat(2, 1)[:24],  # transposed views
            _convolved(x[None, None], kernel, bias, ((1, 1), (2, 2), (1, 1), 1), "relu")
            - F.conv2d(x[None, None], kernel, bias, 2, 1).relu(),
        ]
    except (RuntimeError, AttributeError, NotImplementedError):  # operators come and go with torch
        return False
    return all(bool(error.abs().max() < 1e-4) for error in errors)


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    return weight.is_contiguous() and _is_supported(x, weight)


def _is_supported(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # a bias with strides is misread
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[Any, ...], activation: str) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias.contiguous(), *sizes, activation, [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        rows = grad.flatten(0, -2)  # (N, out)
        twice = torch.is_grad_enabled()  # `torch.autograd.grad(create_graph=True)` needs the products' gradients
        of_x = of_weight = None
        if needs_x:
            of_x = grad @ weight if twice else _product(grad, weight.T, None)
        if needs_weight:
            columns = x.flatten(0, -2)  # (N, in)
            plain = twice or min(rows.shape[1], columns.shape[1]) < NARROW
            of_weight = rows.T @ columns if plain else _product(rows.T, columns.T, None)  # (out, in)
        return of_x, of_weight, rows.sum(0) if needs_bias else None
