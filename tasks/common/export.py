"""Export to torch.export and ONNX with dynamic sizes; each program is compared with the eager model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.tasks.common.errors import UserError
from mmattn.tasks.common.files import atomic_path


class ExportError(UserError):
    """An exported program differs from the model, or a required package is missing."""


_registered: set[type] = set()


def _register_output(value: Any) -> None:
    """Register the type of a named tuple, so that exported programs that return it can be saved."""
    kind = type(value)
    if isinstance(value, tuple) and kind is not tuple and kind not in _registered:
        name = f"{kind.__module__}.{kind.__qualname__}"
        torch.utils._pytree._register_namedtuple(kind, serialized_type_name=name)
        _registered.add(kind)


def outputs_of(value: Any) -> list[Tensor]:
    """The tensors of a model's output, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' messages and warnings; errors are raised."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def export_program(
    model: nn.Module, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, Any]]
) -> torch.export.ExportedProgram:
    """Export a model that is called by keywords, with dynamic dimensions.

    Args:
        model: The model, in evaluation mode.
        inputs: Example tensors by argument name; dynamic sizes should be at least two.
        dynamic: Dynamic dimensions of each argument.
    """
    shapes = {name: dict(dynamic.get(name, {})) or None for name in inputs}
    options: dict[str, Any] = {"kwargs": dict(inputs), "dynamic_shapes": shapes, "strict": False}
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(model, (), **options)
        except torch._dynamo.exc.UserError:  # guards that cannot be proved become runtime checks
            return torch.export.export(model, (), prefer_deferred_runtime_asserts_over_guards=True, **options)


def export_model(
    model: nn.Module,
    examples: Sequence[Mapping[str, Tensor]],
    dynamic: Mapping[str, Mapping[int, Any]],
    folder: Path,
    name: str,
    formats: Sequence[str],
    tolerance: float = 1e-4,
) -> list[str]:
    """Write `NAME.pt2` and `NAME.onnx`, each compared with the eager model on every example.

    Args:
        model: The model; its forward takes the examples' tensors as keywords.
        examples: At least two examples of different batch sizes and lengths; the first is traced.
        dynamic: Dynamic dimensions of each argument.
        folder: Output folder; created if missing.
        name: Name of the files without suffix.
        formats: Formats to write, of "torch" and "onnx".
        tolerance: Largest absolute difference that is accepted.

    Returns:
        A line for each file, with the largest difference.

    Raises:
        ExportError: A program differs from the model; it is not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval().cpu()
    with torch.no_grad():
        output = model(**examples[0])
    _register_output(output)
    program = export_program(model, examples[0], dynamic)
    lines = []
    for kind in formats:
        target = folder / (f"{name}.pt2" if kind == "torch" else f"{name}.onnx")
        with atomic_path(target) as path:
            run = _save_torch(program, path) if kind == "torch" else _save_onnx(program, examples[0], output, path)
            worst = _worst_difference(model, run, examples)
            if not worst <= tolerance:
                raise ExportError(
                    f"{target}: the program differs from the model by {worst:.2e}, expected at most {tolerance:g}; "
                    f"not written."
                )
        lines.append(f"{target} written; largest difference from the model {worst:.1e} on {len(examples)} batches.")
    return lines


def _worst_difference(model: nn.Module, run: Any, examples: Sequence[Mapping[str, Tensor]]) -> float:
    worst = 0.0
    for example in examples:
        with torch.no_grad():
            expected = outputs_of(model(**example))
        for mine, theirs in zip(expected, run(example), strict=True):
            if mine.shape != theirs.shape:
                return float("inf")
            if mine.numel():
                worst = max(worst, (mine.double() - theirs.double()).abs().max().item())  # masks, too
    return worst


def _save_torch(program: torch.export.ExportedProgram, path: Path) -> Any:
    saved = io.BytesIO()  # PyTorch's own writer of files aborts the process if the disk is full
    with _quiet():
        torch.export.save(program, saved)
        path.write_bytes(saved.getbuffer())
        loaded = torch.export.load(path).module()

    def run(example: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(loaded(**example))

    return run


def output_names(output: Any, inputs: Collection[str]) -> list[str] | None:
    """Names of a program's outputs, those of the named tuple's fields; "next_" marks those that inputs have, too.

    None: the output is no named tuple of tensors.

    >>> from collections import namedtuple
    >>> output_names(namedtuple("Output", "logits keys")(torch.ones(1), torch.ones(1)), inputs=["ids", "keys"])
    ['logits', 'next_keys']
    """
    fields = getattr(output, "_fields", ())
    if not fields or len(fields) != len(outputs_of(output)):
        return None
    return [f"next_{name}" if name in inputs else name for name in fields]


def _save_onnx(program: torch.export.ExportedProgram, example: Mapping[str, Tensor], output: Any, path: Path) -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError(f"ONNX export needs the package {error.name}: pip install 'mmattn[export]'.") from None
    with _quiet():
        options: dict[str, Any] = {"output_names": output_names(output, example), "dynamo": True, "verbose": False}
        exported: Any = torch.onnx.export(program, (), kwargs=dict(example), **options)
        exported.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(example: Mapping[str, Tensor]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in example.items() if name in names}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run
