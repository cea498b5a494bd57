"""predict, explain and export: raw input to answers, with a shipped model. No Lightning."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from tasks.common.checkpoint import PROCESSOR, load_weights
from tasks.common.errors import CheckpointError, UserError
from tasks.common.files import atomic_path, atomic_write
from tasks.common.pretrained import build_model, read_parts

if TYPE_CHECKING:
    import torch

NO_PICTURE = (".jpg", ".jpeg", ".svg", ".pdf", ".gif", ".webp")  # of `explain`, which writes PNG


class Predictor:
    """What `load()` returns in every task: a model with its processor, ready to answer.

    Where a task's also has `line(answer)`, that is what `predict` writes of an answer instead of JSON; `lookahead`
    batches are handed to it at a time (1), so that it can put like with like; or it has `answers(items, batch_size,
    on_error)`, which gives answers as they are known, and the errors of bad items in their places, where one item can
    be much work; and `remark()` is said on stderr at the end.

    Args:
        model: on its device; it is put in evaluation mode.
        processor: the one it was trained with.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def items(self, options: argparse.Namespace) -> Sequence[Any]:
        """What the command line names: one item, a folder's, or a file's; samples, or mappings with an id."""
        raise NotImplementedError

    def predict(self, items: Sequence[Any], batch_size: int = 32) -> Sequence[Any]:
        """An answer (a dataclass) for each item, in order."""
        raise NotImplementedError

    def explain(self, item: Any) -> Any:
        """An explanation with `save(path)`."""
        raise NotImplementedError

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as programs, check them against it, say what was written."""
        raise NotImplementedError

    def export(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as torch.export and ONNX programs, checked against it, and the processor."""
        lines = self.programs(folder, formats)
        self.processor.save(folder / PROCESSOR)
        return [*lines, f"{folder / PROCESSOR} written: the preprocessing that the programs need."]


def listed(items: Any) -> Sequence[Any]:
    """The items that `predict` is given.

    Raises:
        DataError: one item stands for a list.
    """
    if isinstance(items, (str, Mapping)):
        raise DataError("predict", "a list of items", "one item: write predict([item])")
    found: Sequence[Any] = items
    return found


def picture_sample(item: Any, number: int, sample_class: Callable[..., Any]) -> Any:
    """A sample of a picture task from what a user gives: one, or a mapping with `image` and, if wanted, `id`.

    Raises:
        DataError: the picture is missing; names the item.
    """
    if not isinstance(item, Mapping):
        return item
    name = str(item.get("id", number))
    if item.get("image") is None:
        raise DataError(f"item {name}", "the key image", ", ".join(sorted(item)) or "none")
    return sample_class(name, item["image"])


def device_of(name: str) -> Any:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"--device {name}: expected auto, cpu or a CUDA device of this machine.")
    return torch.device(name)


def shipped_folder(task: str) -> Path:
    """The folder of the checkpoint that ships with a task.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(__file__).resolve().parents[1] / task / "checkpoint"
    if not folder.exists():
        raise CheckpointError(f"no model ships with {task}: train one, and give --checkpoint runs/{task}/model.")
    return folder


def load_parts(
    task: str,
    directory: str | Path | None,
    device: str,
    model_class: Any,
    processor_class: Any,
    precision: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """The model, on its device, and the processor of a shipped folder or a public one.

    Args:
        task: that the model must be of, or fit.
        directory: a folder, or hf:owner/name (`tasks.common.pretrained`); none: the folder in the package.
        device: see `device_of`.
        model_class: built from the folder's keywords.
        processor_class: has `load`.
        precision: "float32", "bfloat16" or "int8": weights are packed for speed on a CPU (`mmattn.linears.prepare`),
            after which the model can neither be trained nor exported; None: they stay as they are.
        options: what `read_parts` takes.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
        UserError: no such device or precision.
    """
    source = directory if directory is not None else shipped_folder(task)
    parts = read_parts(task, source, processor_class, **options).finished()
    try:
        model = build_model(model_class, parts.keywords)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{parts.where}: the model's keywords do not fit this version: {error}.") from None
    load_weights(model, parts.state, parts.where)
    model = model.to(device_of(device)).eval()
    if precision is not None:
        from mmattn.linears import PRECISIONS, prepare

        if precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}.")
        prepare(model, precision)
    return model, parts.processor


def run(task: str, command: str, options: argparse.Namespace) -> None:
    """Run one of the three commands."""
    module = importlib.import_module(f"tasks.{task}.predict")
    wanted = inspect.signature(module.load).parameters
    given = {name: value for name, value in vars(options).items() if name in wanted or (name == "precision" and value)}
    predictor: Predictor = module.load(options.checkpoint, **given)
    if command == "export":
        formats = ("onnx", "torch") if options.format == "all" else (options.format,)
        for line in predictor.export(Path(options.output), formats):
            print(line)
        return
    items = predictor.items(options)
    if command == "predict":
        _predict(predictor, items, options)
    else:
        _explain(predictor, items, options)


def _answers(predictor: Predictor, items: Sequence[Any], options: argparse.Namespace) -> Iterator[Any]:
    """Answers in order, some batches at a time; a bad item ends the run or becomes an `error` line, as asked."""
    if hasattr(predictor, "answers"):
        found = predictor.answers(items, batch_size=options.batch_size, on_error=options.on_error)
        yield from (_error_line(i, a) if isinstance(a, Exception) else a for i, a in zip(items, found, strict=True))
        return
    size = options.batch_size * getattr(predictor, "lookahead", 1)
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        try:
            yield from predictor.predict(batch, batch_size=options.batch_size)
        except Exception as error:
            if options.on_error != "skip" or not _is_bad_item(error):
                raise
            for item in batch:  # once more, one by one: only the bad ones are left out
                try:
                    yield from predictor.predict([item])
                except Exception as single:
                    if not _is_bad_item(single):
                        raise
                    yield _error_line(item, single)


def _error_line(item: Any, error: Exception) -> dict[str, str]:
    item_id = item.get("id", "") if isinstance(item, Mapping) else item.id
    return {"id": str(item_id), "error": str(error)}


def _is_bad_item(error: Exception) -> bool:
    return isinstance(error, OSError) or getattr(error, "user_error", False)


def _predict(predictor: Predictor, items: Sequence[Any], options: argparse.Namespace) -> None:
    skipped: list[str] = []
    options.batch_size = min(options.batch_size, max(len(items), 1))
    write_line = getattr(predictor, "line", None)
    shown = options.output is not None or not sys.stdout.isatty()

    def lines() -> Iterator[str]:
        for answer in progress(_answers(predictor, items, options), len(items), "predicting", shown):
            record = answer if isinstance(answer, dict) else dataclasses.asdict(answer)
            if "error" in record:
                skipped.append(record["error"])
            text = write_line(record) if write_line is not None else json.dumps(record, ensure_ascii=False)
            yield text + "\n"

    if options.output is None:
        for line in lines():
            sys.stdout.write(line)
        sys.stdout.flush()
    else:
        with atomic_write(options.output, "w") as file:
            for line in lines():
                file.write(line)
        written = len(items) - len(skipped)
        print(f"{written} answer{'' if written == 1 else 's'} written to {options.output}.")
    report_skipped(skipped, len(items))
    remark = predictor.remark() if hasattr(predictor, "remark") else ""
    if remark:
        sys.stderr.write(f"{remark}\n")


def _explain(predictor: Predictor, items: Sequence[Any], options: argparse.Namespace) -> None:
    if not items:
        raise UserError("explain: expected something to explain, found no items.")
    target = Path(options.output or "explanation.png")
    many = len(items) > 1 or target.suffix.lower() != ".png"
    if many and target.suffix.lower() == ".png":
        raise UserError(f"--output {target}: expected a folder for {len(items)} pictures, found the name of one PNG.")
    if target.suffix.lower() in NO_PICTURE and not target.is_dir():
        raise UserError(f"--output {target}: expected a name that ends in .png, or a folder, found {target.suffix!r}.")
    skipped: list[str] = []
    for number, item in enumerate(progress(items, len(items), "explaining")):
        path = target / f"{number:05d}.png" if many else target
        try:
            found = predictor.explain(item)  # before there is a folder for it
            with atomic_path(path) as temporary:
                found.save(temporary)
        except Exception as error:
            if options.on_error != "skip" or not _is_bad_item(error):
                raise
            skipped.append(str(error))
    written = len(items) - len(skipped)
    plural = "" if written == 1 else "s"
    print(f"{written} explanation{plural} written to {target}." if many else f"{path} written.")
    report_skipped(skipped, len(items))


def check_source(options: argparse.Namespace, *names: str) -> None:
    """Refuse a command that says what it is about neither by its own arguments nor by `--input`, or by both.

    Args:
        options: of the command line.
        names: the task's arguments for one item, such as "image" and "question"; with `--input` the first has no sense.

    Raises:
        DataError: as said.
    """
    wanted = f"{' and '.join(f'--{name}' for name in names)}, or --input PATH"
    if options.input is None and any(getattr(options, name) is None for name in names):
        raise DataError("arguments", wanted, "neither")
    if options.input is not None and getattr(options, names[0]) is not None:
        raise DataError("arguments", wanted, "both")


def report_skipped(skipped: Sequence[str], total: int) -> None:
    """Say on stderr how many items were left out, and why the first ones."""
    if skipped:
        shown = "".join(f"\n  {reason}" for reason in skipped[:5])
        sys.stderr.write(f"{len(skipped)} of {total} items left out:{shown}\n")


def progress(items: Any, total: int, title: str, shown: bool = True) -> Iterator[Any]:
    """Rich's bar on stderr for long work on a terminal; nothing where nobody watches or there is little to do.

    Args:
        items: what is worked through.
        total: how many.
        title: stands before the bar.
        shown: off where answers are written to the same terminal, and are progress enough.
    """
    if total < 64 or not shown or not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:  # it comes with what training needs
        yield from items
        return
    # By itself rich takes over stdout too, and what is written to a file would land on the terminal.
    with Progress(console=Console(stderr=True), redirect_stdout=False) as bar:
        yield from bar.track(items, total=total, description=title)
