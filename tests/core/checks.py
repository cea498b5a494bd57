"""The properties of the core, one function each: the tests assert them, scripts/check_core.py prints them.

Each takes a Row and returns the largest difference found, or None if the property does not apply.
"""

from collections.abc import Callable
from typing import Any

import torch
from cases import Row
from torch import nn
from torch.export import Dim, export

from mmattn import capture

TOLERANCE = 1e-8  # in float64


def outputs_of(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def difference(left: Any, right: Any) -> float:
    """The largest absolute difference; a different shape or a non-finite value counts as infinite."""
    worst = 0.0
    for a, b in zip(outputs_of(left), outputs_of(right), strict=True):
        if a.shape != b.shape or not bool((a - b).isfinite().all()):
            return float("inf")
        if a.numel():
            worst = max(worst, float((a - b).detach().abs().max()))
    return worst


def with_gradients(function: Callable[..., Any], module: nn.Module, x: torch.Tensor, y: torch.Tensor, *masks: Any):
    """The outputs, and the gradients of inputs and parameters for a fixed random weighting of the outputs."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    generator = torch.Generator().manual_seed(2)
    outputs = outputs_of(function(module, x, y, *masks))
    loss = sum((out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in outputs)
    wanted = [x, y, *module.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return outputs, [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def masks_of(row: Row, x: torch.Tensor, y: torch.Tensor, x_hidden: Any, y_hidden: Any) -> tuple[Any, Any]:
    """A mask for each side that can be padded, False at the given index."""
    masks = []
    for name, tensor, hidden in (("x", x, x_hidden), ("y", y, y_hidden)):
        mask = torch.ones(tensor.shape[:-1], dtype=torch.bool)
        mask[hidden] = False
        masks.append(mask if name in row.attended else None)
    return masks[0], masks[1]


def variants(row: Row, x: torch.Tensor, y: torch.Tensor) -> list[tuple[Any, Any, bool]]:
    """(x_mask, y_mask, is_causal): unmasked; padded on the right and with a hole, grids ragged; each also causal."""
    padded = masks_of(row, x, y, (1, slice(3, None)), (1, slice(2, 4)))
    for mask in padded:
        if mask is not None and mask.dim() > 2:
            mask[1, 0, 1:] = False
    return [(*masks, is_causal) for is_causal in row.causal for masks in ((None, None), padded)]


def apart(left: Any, right: Any) -> float:
    """The difference of two results of `with_gradients`."""
    return max(difference(a, b) for a, b in zip(left, right, strict=True))


def forward_vs_naive(row: Row) -> float:
    module, (x, y) = row.module(), row.inputs()
    return max(difference(row.call(module, x, y, *m), row.naive(module, x, y, *m)) for m in variants(row, x, y))


def gradient_vs_naive(row: Row) -> float:
    """Gradients of the inputs and of every parameter."""
    module, (x, y) = row.module(), row.inputs()
    return max(
        difference(with_gradients(row.call, module, x, y, *m)[1], with_gradients(row.naive, module, x, y, *m)[1])
        for m in variants(row, x, y)
    )


def fused_vs_captured(row: Row) -> float:
    """Output and gradients with and without capture."""
    module, (x, y) = row.module(), row.inputs()
    worst = 0.0
    for masks in variants(row, x, y):
        fused = with_gradients(row.call, module, x, y, *masks)
        with capture(module) as maps:
            captured = with_gradients(row.call, module, x, y, *masks)
        if not maps:
            return float("inf")
        worst = max(worst, apart(fused, captured))
    return worst


def padding_invariance(row: Row) -> float | None:
    """A single sample equals itself in a padded batch, whose padding holds large numbers."""
    if not row.attended:
        return None
    module, (x, y) = row.module(), row.inputs()
    short, masks = {}, []
    for name, tensor in (("x", x), ("y", y)):
        less = 2 if name in row.attended or row.same_length else 0
        short[name] = (slice(None), *(slice(size - less) for size in tensor.shape[1:-1]))
        real = torch.zeros(tensor.shape[:-1], dtype=torch.bool)
        real[short[name]] = real[0] = True
        tensor[~real] *= 100
        masks.append(real if name in row.attended else None)
    worst = 0.0
    for is_causal in row.causal:
        if is_causal and row.together and not row.same_length:
            continue  # bottom-right alignment shifts when keys are removed without their queries
        batch = row.call(module, x, y, *masks, is_causal)
        alone = row.call(module, x[1:][short["x"]], y[1:][short["y"]], None, None, is_causal)
        for name, a, b in zip(row.outputs, outputs_of(batch), outputs_of(alone), strict=True):
            worst = max(worst, difference(a[1:][short[name]] if name else a[1:], b))
    return worst


def empty_rows(row: Row) -> float | None:
    """A sample without any key: output and gradient equal the naive loop's, where such a query sums over nothing."""
    if not row.attended:
        return None
    module, (x, y) = row.module(), row.inputs()
    masks = masks_of(row, x, y, 0, 0)
    return max(
        apart(*(with_gradients(f, module, x, y, *masks, is_causal) for f in (row.call, row.naive)))
        for is_causal in row.causal
    )


def causal_leak(row: Row) -> float | None:
    """How much past outputs change when future inputs are replaced."""
    if True not in row.causal:
        return None
    L = row.lengths[0]
    module, (x, y) = row.module(), row.inputs(lengths=(L, L))
    before = row.call(module, x, y, None, None, True)
    worst = 0.0
    for cut in range(1, L):
        later_x, later_y = x.clone(), y.clone()
        later_x[:, cut:] = 50 * torch.randn_like(x[:, cut:])
        if row.together:
            later_y[:, cut:] = 50 * torch.randn_like(y[:, cut:])
        after = row.call(module, later_x, later_y, None, None, True)
        worst = max(worst, difference(before[:, :cut], after[:, :cut]))
    return worst


def cached_vs_full(row: Row) -> float | None:
    """Token by token and in larger chunks, with and without masked keys."""
    if row.decode is None:
        return None
    module, (x, y) = row.module(), row.inputs(lengths=(9, 9))
    hidden = torch.ones(x.shape[:2], dtype=torch.bool)
    hidden[1, :2] = False  # on the left: the first queries have no keys
    worst = 0.0
    for mask in (None, hidden):
        masks = (mask if name in row.attended else None for name in "xy")
        full = row.call(module, x, y, *masks, row.causal[-1])
        for steps in ((1,) * 9, (4, 1, 1, 3), (3, 6)):
            worst = max(worst, difference(row.decode(module, x, y, mask, steps), full))
    return worst


class OfTensors(nn.Module):
    """A row as a module that takes only tensors."""

    def __init__(self, row: Row, is_causal: bool) -> None:
        super().__init__()
        self.row, self.is_causal = row, is_causal
        self.module = row.module()

    def forward(self, x, y, x_mask, y_mask):
        if self.row.same_length:  # one tensor, so that the graph shares the length
            x, y = x.split(self.row.widths, dim=-1)
        return self.row.call(self.module, x, y, x_mask, y_mask, self.is_causal)


def exported_vs_eager(row: Row) -> float | None:
    """torch.export with dynamic batch and lengths, run at other sizes, with one sample without any key."""
    if row.training:
        return None

    def arguments(batch: int, *lengths: int) -> tuple[Any, ...]:
        x, y = row.inputs(batch, lengths)
        masks = masks_of(row, x, y, (0, slice(x.shape[1] // 2, None)), 0)
        return (torch.cat([x, y], dim=-1), None, *masks) if row.same_length else (x, y, *masks)

    worst = 0.0
    for is_causal in row.causal if row.together else row.causal[-1:]:  # modules in one setting: kernels in both
        module = OfTensors(row, is_causal).eval().requires_grad_(False)  # as in tasks; tracing a scan is faster
        example = arguments(2, *row.lengths)
        shapes = tuple(
            None if given is None else dict.fromkeys(range(given.dim() - given.is_floating_point()), Dim.AUTO)
            for given in example
        )
        program = export(module, example, dynamic_shapes=shapes).module()
        for sizes in ((3, 12, 13), (1, 1, 3), (2, 3, 4)):
            given = arguments(*sizes)
            worst = max(worst, difference(program(*given), module(*given)))
    return worst


def outside_reference(row: Row) -> float | None:
    """Against a public library's implementation, if there is one."""
    return None if row.reference is None else row.reference()


COLUMNS: dict[str, Callable[[Row], float | None]] = {
    "forward vs naive": forward_vs_naive,
    "gradient vs naive": gradient_vs_naive,
    "fused vs captured": fused_vs_captured,
    "padding invariance": padding_invariance,
    "empty rows zero": empty_rows,
    "causal leak": causal_leak,
    "cached vs full": cached_vs_full,
    "exported vs eager": exported_vs_eager,
    "outside reference": outside_reference,
}
