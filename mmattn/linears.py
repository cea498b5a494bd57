"""Linear maps for inference with packed weights in float32, bfloat16 or int8.

On one core with AVX-512 and 160 rows of 512, packed float32 runs at twice the speed of a plain ``nn.Linear``, bfloat16
at four times, int8 at six. With AVX2 alone int8 runs at 1.7 to 4 times its speed, packed float32 is faster only with
many outputs, and there are no products in bfloat16.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .cpu import fuse_projections
from .onednn import is_plain


class PackedLinear(nn.Module):
    """``x W^T + b`` with W packed once in the layout of oneDNN's matrix products.

    Args:
        weight: (out, in), on the CPU, float32 or bfloat16; inputs are rounded to its type, outputs are not.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.bias = None if bias is None else bias.detach().to(self.dtype).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out), of x's type."""
        out = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "")
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.dtype}"


class Int8Linear(nn.Module):
    """``x W^T + b`` in int8, with one static scale per row of W and one dynamic scale for x.

    Symmetric weights, asymmetric activations, sums in 32 bits (Jacob et al. 2018, section 2). With one scale for x the
    rounding of a row depends on the other rows; one scale per row made greedy search 1.09 and five beams 1.38 times as
    slow.

    Args:
        weight: (out, in), on the CPU, float32.
        bias: (out,) or None.
        engine: Of ``torch.backends.quantized``; determines the packed layout.
        reduce_range: Whether x is rounded to seven bits instead of eight. Without VNNI the sum of two products is
            limited to 16 bits, which those of eight bits exceed.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, engine: str = "onednn", reduce_range: bool = False) -> None:
        super().__init__()
        self.reduce_range = reduce_range
        self.out_features, self.in_features = weight.shape
        weight = weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()  # (out,)
        before = torch.backends.quantized.engine
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
            torch.backends.quantized.engine = engine
            try:
                rounded = torch.quantize_per_channel(weight, scales, torch.zeros_like(scales).long(), 0, torch.qint8)
                bias = None if bias is None else bias.detach().float().contiguous()
                self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
            finally:
                torch.backends.quantized.engine = before

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        found = torch.ops.quantized.linear_dynamic(x if x.dim() > 1 else x[None], self.packed, self.reduce_range)
        return found if x.dim() > 1 else found[0]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8"


PRECISIONS = ("float32", "bfloat16", "int8")
INT8 = (("onednn", False), ("x86", True), ("onednn", True))  # `engine` and `reduce_range`, the fastest first
MANY = 1024  # outputs: with AVX2 alone, fewer are computed no faster by packed weights in float32


def make_linear(weight: Tensor, bias: Tensor | None, precision: str) -> nn.Module:
    """Makes the fastest linear map of a precision on this CPU: packed, or an ``nn.Linear`` if packing gains nothing.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        precision: One of PRECISIONS.

    Raises:
        ValueError: An unknown precision.
    """
    if precision == "int8":
        return Int8Linear(weight, bias, *_int8_product())
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of: {', '.join(PRECISIONS)}")
    if precision == "float32" and len(weight) < MANY and torch.backends.cpu.get_cpu_capability() == "AVX2":
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        plain.weight = nn.Parameter(weight.detach(), False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach(), False)
        return plain
    return PackedLinear(weight.to(getattr(torch, precision)), bias)


@functools.cache
def _int8_product() -> tuple[str, bool]:
    """The first of INT8 whose products are right on this processor; tested once."""
    for engine, reduce_range in INT8:
        make = functools.partial(Int8Linear, engine=engine, reduce_range=reduce_range)
        if _fault(make, 0.2) is None:
            return engine, reduce_range
    return INT8[0]


@functools.cache
def why_not(precision: str) -> str | None:
    """Returns why a precision is not available on this machine with this torch, or None if it is. Tested once."""
    allowed = {"float32": 1e-4, "bfloat16": 0.2, "int8": 0.2}[precision]
    return _fault(lambda weight, bias: make_linear(weight, bias, precision), allowed)


def _fault(make: Callable[[Tensor, Tensor], nn.Module], allowed: float) -> str | None:
    """What is wrong with a kind of linear map, whose largest error may be `allowed`."""
    weight = torch.linspace(-1.0, 1.0, 48 * 64).view(48, 64).sin()
    x = torch.linspace(0.0, 9.0, 3 * 64).view(3, 64).cos()
    try:
        with torch.inference_mode():
            error = (make(weight, weight[:, 0])(x) - F.linear(x, weight, weight[:, 0])).abs().max()
    except (RuntimeError, AttributeError, NotImplementedError) as problem:  # operators come and go with torch
        return f"not supported by torch {torch.__version__} on this machine: {str(problem).splitlines()[0]}"
    return None if error < allowed else f"its products are wrong on this machine, by {error:.3g}"


def prepare(model: nn.Module, precision: str = "float32") -> nn.Module:
    """Packs the weights of all linear maps in a model, in place, and fuses query, key and value projections.

    For inference on a CPU only: packed maps can be neither trained nor saved. If the processor does not have the
    precision, the model is prepared in float32; a model that is not float32 on the CPU is unchanged. A warning states
    the reason.

    Args:
        model: A model in float32.
        precision: Precision of the products: "float32", "bfloat16" or "int8". Activations stay float32.

    Returns:
        The model.

    Raises:
        ValueError: An unknown precision.

    >>> model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU())
    >>> prepare(model)[0]
    PackedLinear(64, 2048, torch.float32)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; expected one of: {', '.join(PRECISIONS)}")
    weights = (module.weight for module in model.modules() if is_plain(module))
    foreign = next((w for w in weights if w.device.type != "cpu" or w.dtype != torch.float32), None)
    reason, instead = why_not(precision), "" if precision == "float32" else ", float32 is used"
    if foreign is not None:
        reason = f"its weights are {foreign.dtype} on {foreign.device}, packing is for float32 on the CPU"
        instead = ", linear maps are unchanged"
    if reason is not None:
        warnings.warn(f"precision {precision!r} is not available{instead}: {reason}", stacklevel=2)
        return prepare(model) if foreign is None and precision != "float32" else model
    model.eval().requires_grad_(False)
    # No list holds the plain maps: each is freed once it is packed, so that few of the weights are in memory twice.
    for attention in [module for module in model.modules() if isinstance(module, MultiHeadAttention)]:
        fuse_projections(attention, lambda weight, bias: make_linear(weight, bias, precision))
    for parent in [module for module in model.modules() if not is_plain(module)]:
        for name in [name for name, child in parent.named_children() if is_plain(child)]:
            child = getattr(parent, name)
            setattr(parent, name, make_linear(child.weight, child.bias, precision))
    return model
