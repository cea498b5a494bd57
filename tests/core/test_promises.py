"""Every kernel and module has every property: scripts/check_core.py prints the same as a table."""

import dataclasses

import pytest
import torch
from checks import (
    COLUMNS,
    TOLERANCE,
    cached_vs_full,
    causal_leak,
    difference,
    empty_rows,
    forward_vs_naive,
    gradient_vs_naive,
    masks_of,
    padding_invariance,
    variants,
    with_gradients,
)
from rows import ROWS
from rows_sparse import MORE

from mmattn import KERNELS
from tests.conftest import slow_but_first

EXPORT = "exported vs eager"
EXPORTED = [row for row in ROWS if not row.training]
LIKE = {  # composed of the same parts
    "Decoder": ("CrossModalAttention", "MultimodalFusionBlock", "CoAttention"),
    "BERT": ("RoBERTa",),
    "ViT": ("DeiT", "DINOv2", "SigLIP"),
}


def kind_of(row):
    name = row.name.split(",")[0]
    return next((kind for kind, others in LIKE.items() if name in others), name)


def traced_slowly(row):
    """Loops over buckets, sentences or blocks are traced for seconds: one of them represents all."""
    return row.name.split(",")[0] in ("kernel lsh", "kernel sparse", "HierarchicalAttention", "DeformableAttention")


def family_of(row):
    """A public family counts as one, every other row separately."""
    return kind_of(row) if kind_of(row) in ("BERT", "ViT") else row.name


@pytest.mark.parametrize("row", slow_but_first([*ROWS, *MORE], family_of), ids=lambda row: row.name)
@pytest.mark.parametrize("column", [name for name in COLUMNS if name != EXPORT])
def test_property(row, column):
    found = COLUMNS[column](row)
    assert found is None or found <= TOLERANCE  # None: does not apply


@pytest.mark.parametrize(
    "row",
    slow_but_first(sorted(EXPORTED, key=traced_slowly), lambda row: traced_slowly(row) or kind_of(row)),
    ids=lambda row: row.name,
)
def test_export_of_one_causal_setting(row):
    """Causal if supported; `test_export` covers both settings. Tracing is slow."""
    assert COLUMNS[EXPORT](dataclasses.replace(row, causal=row.causal[-1:])) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("row", EXPORTED, ids=lambda row: row.name)
def test_export(row):
    assert COLUMNS[EXPORT](row) <= TOLERANCE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_float32(row):
    module, (x, y) = row.module(), row.inputs()
    for masks in variants(row, x, y):
        exact = with_gradients(row.call, module, x, y, *masks)
        single = with_gradients(row.call, module.float(), x.float(), y.float(), *masks)
        for a, b in zip((*exact[0], *exact[1]), (*single[0], *single[1]), strict=True):
            assert difference(a, b) < 1e-4 * max(1.0, float(a.detach().abs().max()))
        module.double()


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.training or not row.name.startswith("kernel monotonic")],  # decisions have no gradient
    ids=lambda row: row.name,
)
def test_every_parameter_gets_a_gradient(row):
    module, (x, y) = row.module(), row.inputs()
    _, (_, _, *found) = with_gradients(row.call, module, x, y, None, None, row.causal[0])
    names = [name for name, _ in module.named_parameters()]
    # A key bias shifts all scores of a softmax equally: its gradient is zero.
    without = [
        n
        for n, g in zip(names, found, strict=True)
        if not g.abs().max() > 1e-12 and not n.endswith(("k_proj.bias", "k_norm.bias"))
    ]
    assert without == []


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name.startswith("kernel") and row.name != "kernel hard"],  # straight-through gradient
    ids=lambda row: row.name,
)
def test_gradcheck(row):
    module, (x, y) = row.module(), row.inputs()
    masks = variants(row, x, y)[-1]
    inputs = (x.requires_grad_(row.name != "kernel monotonic"), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: row.call(module, x, y, *masks), inputs, fast_mode=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_half_precision_is_finite(row):
    """Scores beyond the range of half precision, and a sample without keys, under autocast: forward and backward."""
    module, (x, y) = row.module().float(), row.inputs()
    masks = masks_of(row, x, y, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, found = with_gradients(row.call, module, 30 * x.float(), 30 * y.float(), *masks, row.causal[-1])
    assert all(tensor.isfinite().all() for tensor in (*outputs, *found))


def test_every_kernel_has_a_row():
    assert {f"kernel {kind}" for kind in KERNELS} <= {row.name for row in ROWS}


def test_checks_detect_broken_modules():
    """Each check detects a wrong module: causal flag ignored, mask ignored, scale changed."""

    def broken(row, change):
        return dataclasses.replace(row, call=lambda module, *arguments: row.call(module, *change(*arguments)))

    row = next(row for row in ROWS if row.name == "MultiHeadAttention")
    blind = broken(row, lambda x, y, x_mask, y_mask, is_causal: (x, y, None, y_mask, is_causal))
    assert forward_vs_naive(blind) > 1e-3
    assert padding_invariance(blind) > 1e-3
    assert empty_rows(blind) > 1e-3
    leaky = broken(row, lambda x, y, x_mask, y_mask, is_causal: (x, y, x_mask, y_mask, False))
    assert causal_leak(leaky) > 1e-3
    assert cached_vs_full(leaky) > 1e-3
    scaled = broken(row, lambda x, y, *masks: (x * 1.01, y, *masks))
    assert gradient_vs_naive(scaled) > 1e-3
    assert difference(torch.tensor(float("nan")), torch.tensor(0.0)) == float("inf")
