"""The promises of the core as columns, and what makes them as rows. The tests assert them, scripts/check_core.py prints them.

A row calls its module on x (B, L, .) and y (B, S, .), each with a key mask; where a module attends to itself alone, y is
not used. A column returns the largest difference it found, None where it does not apply.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import naive
import torch
from naive import Allowed
from torch import nn
from torch.export import Dim, export

from mmattn import (
    ALiBi,
    AttentionPooling,
    CoAttention,
    CrossModalAttention,
    Decoder,
    Encoder,
    Mask,
    MultiHeadAttention,
    MultimodalFusionBlock,
    T5Bias,
    build_kernel,
    capture,
)

E, HEADS, B, L, S = 8, 2, 2, 5, 7
TOLERANCE = 1e-8


@dataclass
class Row:
    """A kernel or module under check.

    Its functions take (module, x, y, x_mask, y_mask, is_causal); masks are None or bool, True = a real token.
    """

    name: str
    build: Callable[[], nn.Module]
    call: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    naive: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    same_length: bool = False  # L == S
    x_attended: bool = False  # someone attends to x: it can be padded
    y_attended: bool = True
    causal: bool = False  # takes is_causal; outputs follow x
    always_causal: bool = False
    outputs: tuple[str, ...] = ("x",)  # whose rows each output follows; "" = neither
    decode: Callable[..., torch.Tensor] | None = None  # (module, x, y, y_mask): step by step
    training: bool = False
    widths: tuple[int, int] = (E, E)
    skip: tuple[str, ...] = ()
    export_lengths: tuple[int, ...] = field(default=(11, 1))

    def module(self) -> nn.Module:
        """Seeded, random, float64: every parameter too, or a zero bias could hide its own absence."""
        torch.manual_seed(0)
        module = self.build().double().train(self.training)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def inputs(self, batch: int = B, length: int = L, keys: int = S) -> tuple[torch.Tensor, torch.Tensor]:
        """Seeded random x and y."""
        generator = torch.Generator().manual_seed(1)
        keys = length if self.same_length else keys
        return tuple(  # type: ignore[return-value]
            torch.randn(batch, n, width, generator=generator, dtype=torch.float64)
            for n, width in zip((length, keys), self.widths, strict=True)
        )


def outputs_of(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def difference(left: object, right: object) -> float:
    """The largest absolute difference; not a number or another shape counts as infinite."""
    worst = 0.0
    for a, b in zip(outputs_of(left), outputs_of(right), strict=True):
        if a.shape != b.shape or not bool((a - b).isfinite().all()):
            return float("inf")
        if a.numel():
            worst = max(worst, float((a - b).detach().abs().max()))
    return worst


def gradients(row: Row, function: Callable[..., object], module: nn.Module, *arguments: object) -> list[torch.Tensor]:
    """Of inputs and parameters, for a fixed random weighting of the outputs."""
    x, y, *masks = arguments
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    generator = torch.Generator().manual_seed(2)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in outputs_of(function(module, x, y, *masks))
    )
    wanted = [x, y, *module.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def mask_variants(row: Row) -> list[tuple[torch.Tensor | None, torch.Tensor | None, bool]]:
    """(x_mask, y_mask, is_causal): none, padded at the right and with a hole, each also causal."""
    keys = L if row.same_length else S
    x_mask, y_mask = torch.ones(B, L, dtype=torch.bool), torch.ones(B, keys, dtype=torch.bool)
    x_mask[1, 3:] = False
    y_mask[1, 2:4] = False
    padded = (x_mask if row.x_attended else None, y_mask if row.y_attended else None)
    causal = [True] if row.always_causal else [False, True] if row.causal else [False]
    return [(*masks, flag) for flag in causal for masks in ((None, None), padded)]


def forward_vs_naive(row: Row) -> float:
    module, (x, y) = row.module(), row.inputs()
    return max(difference(row.call(module, x, y, *m), row.naive(module, x, y, *m)) for m in mask_variants(row))


def gradient_vs_naive(row: Row) -> float:
    module, (x, y) = row.module(), row.inputs()
    return max(
        difference(gradients(row, row.call, module, x, y, *m), gradients(row, row.naive, module, x, y, *m))
        for m in mask_variants(row)
    )


def fused_vs_captured(row: Row) -> float:
    """Output and gradient, with and without capture."""
    module, (x, y) = row.module(), row.inputs()
    worst = 0.0
    for masks in mask_variants(row):
        fused = (*outputs_of(row.call(module, x, y, *masks)), *gradients(row, row.call, module, x, y, *masks))
        # A kernel alone has no owner: give it one.
        with capture(nn.ModuleDict({"owner": module})) as maps:
            captured = (*outputs_of(row.call(module, x, y, *masks)), *gradients(row, row.call, module, x, y, *masks))
        if not maps:
            return float("inf")
        worst = max(worst, difference(fused, captured))
    return worst


def padding_invariance(row: Row) -> float:
    """A sample alone equals itself in a padded batch, where the padding holds large rubbish."""
    module, (x, y) = row.module(), row.inputs()
    lengths = {"x": x.shape[1] - 2, "y": y.shape[1] - 2}
    masks = {}
    padded = {"x": x.clone(), "y": y.clone()}
    for name, attended in (("x", row.x_attended), ("y", row.y_attended)):
        masks[name] = None
        if attended:
            masks[name] = torch.ones(B, padded[name].shape[1], dtype=torch.bool)
            masks[name][1, lengths[name] :] = False
            padded[name][1, lengths[name] :] *= 100
        elif not row.same_length:
            lengths[name] = padded[name].shape[1]
    worst = 0.0
    for is_causal in {m[2] for m in mask_variants(row)}:
        together = row.call(module, padded["x"], padded["y"], masks["x"], masks["y"], is_causal)
        alone = row.call(module, x[1:, : lengths["x"]], y[1:, : lengths["y"]], None, None, is_causal)
        for name, a, b in zip(row.outputs, outputs_of(together), outputs_of(alone), strict=True):
            worst = max(worst, difference(a[1:, : lengths.get(name)], b))
    return worst


def empty_rows(row: Row) -> float:
    """A sample without any key: forward and gradient equal the naive loop, where such a row sums over nothing."""
    module, (x, y) = row.module(), row.inputs()
    x_mask, y_mask = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(y.shape[:2], dtype=torch.bool)
    x_mask[0] = False
    y_mask[0] = False
    worst = 0.0
    for is_causal in {m[2] for m in mask_variants(row)}:
        masks = (x_mask if row.x_attended else None, y_mask if row.y_attended else None, is_causal)
        worst = max(
            worst,
            difference(row.call(module, x, y, *masks), row.naive(module, x, y, *masks)),
            difference(gradients(row, row.call, module, x, y, *masks), gradients(row, row.naive, module, x, y, *masks)),
        )
    return worst


def causal_leak(row: Row) -> float | None:
    """Whatever happens to the future, the past stays bitwise or nearly so."""
    if not (row.causal or row.always_causal):
        return None
    module, (x, y) = row.module(), row.inputs(keys=L)
    before = outputs_of(row.call(module, x, y, None, None, True))[0]
    worst = 0.0
    for cut in range(1, L):
        later_x, later_y = x.clone(), y.clone()
        later_x[:, cut:] = 50 * torch.randn_like(x[:, cut:])
        if row.same_length:
            later_y[:, cut:] = 50 * torch.randn_like(y[:, cut:])
        after = outputs_of(row.call(module, later_x, later_y, None, None, True))[0]
        worst = max(worst, difference(before[:, :cut], after[:, :cut]))
    return worst


def cached_vs_full(row: Row) -> float | None:
    """Token by token, and in pieces of other sizes, with and without padding in what is attended across."""
    if row.decode is None:
        return None
    module, (x, y) = row.module(), row.inputs(length=9, keys=9)
    y_mask = torch.ones(B, y.shape[1], dtype=torch.bool)
    y_mask[1, :2] = False
    worst = 0.0
    for mask in (None, y_mask):
        full = row.call(module, x, y, mask if row.x_attended else None, mask, row.causal or row.always_causal)
        for steps in ((1,) * 9, (4, 1, 1, 3), (3, 6)):
            worst = max(worst, difference(row.decode(module, x, y, mask, steps), full))
    return worst


class Wrapped(nn.Module):
    """A row as a module of tensors alone."""

    def __init__(self, row: Row, module: nn.Module, is_causal: bool) -> None:
        super().__init__()
        self.call, self.inner, self.is_causal = row.call, module, is_causal

    def forward(self, x, y, x_mask, y_mask):
        return self.call(self.inner, x, y, x_mask, y_mask, self.is_causal)


def exported_vs_eager(row: Row) -> float | None:
    """torch.export with dynamic batch and lengths, run at other sizes, with a sample that has no key at all."""
    if row.training:
        return None
    module = row.module()
    is_causal = row.causal or row.always_causal
    wrapped = Wrapped(row, module, is_causal).eval()

    def arguments(batch: int, length: int, keys: int) -> tuple[torch.Tensor, ...]:
        x, y = row.inputs(batch, length, keys)
        x_mask, y_mask = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(y.shape[:2], dtype=torch.bool)
        x_mask[0, x.shape[1] // 2 :] = False
        y_mask[0] = False
        return x, y, x_mask, y_mask

    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    unused_y = {} if row.y_attended else {0: Dim.AUTO, 1: Dim.AUTO}
    shapes = {"x": dynamic, "y": unused_y or dynamic, "x_mask": {0: Dim.AUTO, 1: Dim.AUTO}, "y_mask": {0: Dim.AUTO, 1: Dim.AUTO}}
    program = export(wrapped, arguments(2, L, S), dynamic_shapes=shapes).module()
    worst = 0.0
    for batch, length, keys in ((3, 11, 13), (1, 1, 3), (2, 3, 2)):
        given = arguments(batch, length, keys)
        worst = max(worst, difference(program(*given), wrapped(*given)))
    return worst


def empty_rows_exported() -> None: ...


COLUMNS: dict[str, Callable[[Row], float | None]] = {
    "forward vs naive": forward_vs_naive,
    "gradient vs naive": gradient_vs_naive,
    "fused vs captured": fused_vs_captured,
    "padding invariance": padding_invariance,
    "empty rows": empty_rows,
    "causal leak": causal_leak,
    "cached vs full": cached_vs_full,
    "exported vs eager": exported_vs_eager,
}
