"""The commands predict, explain and export, which load a trained model and do not import Lightning."""

from __future__ import annotations

import argparse
import dataclasses
import mimetypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, UserError, is_user_error
from mmattn.data.files import files_below
from mmattn.data.readers import TABLES, is_json_lines
from mmattn.tasks.common.cards import summary
from mmattn.tasks.common.errors import require
from mmattn.tasks.common.files import atomic_write, is_special
from mmattn.tasks.common.outputs import Outputs, save_png
from mmattn.tasks.common.page import page
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.progress import progress
from mmattn.tasks.common.sources import find_model, named_models
from mmattn.tasks.common.task import DEMO, Option, Task

ONNX = ("onnx", "onnxscript", "onnxruntime")  # modules that an export to ONNX needs
SUFFIXES = (".conll", ".conllu", ".txt", ".md")  # of files, besides those of `mimetypes`
NOT_PNG = (".jpg", ".jpeg", ".svg", ".pdf", ".gif", ".webp")  # refused by `explain`, which writes PNG


def run(task: Task, command: str, options: argparse.Namespace) -> None:
    """Run predict, explain or export."""
    given = {option.name: getattr(options, option.name, None) for option in task.options if option.kind == "load"}
    given = {name: value for name, value in given.items() if value is not None}
    precision = getattr(options, "precision", None)
    default = None if options.checkpoint else _default(task, options)
    predictor = task.resolve("predictor").load(options.checkpoint or default, options.device, precision, **given)
    if command == "export":
        formats = ("onnx", "torch") if options.format == "all" else (options.format,)
        require(*(ONNX if "onnx" in formats else ()))
        for line in predictor.export(options.output, formats):
            print(line)
        _name_default(default)
        return
    keywords = {
        option.name: getattr(options, option.name)
        for option in task.options
        if option.kind == "predict" and option.only in (None, command) and getattr(options, option.name) is not None
    }
    interactive = getattr(options, "interactive", False)  # of tasks whose predictors answer line by line
    keywords = predictor.check_options(keywords)
    if interactive:
        _converse(predictor, task, options, keywords)
        _name_default(default)
        return
    found = items_of(predictor, task, options)
    items = found[: options.limit]
    place = Path(str(predictor.parts.where)) if predictor.parts is not None else None
    model = [path for _, path in files_below(place, ("",))] if place is not None and place.is_dir() else []
    outputs = Outputs([*model, options.input, *options.paths, *found])
    try:
        (_predict if command == "predict" else _explain)(predictor, items, options, keywords, outputs)
    except DataError as error:
        error.can_skip = command == "predict" and len(items) > 1 and options.on_error == "raise"
        raise
    _name_default(default)


def _converse(predictor: Any, task: Task, options: argparse.Namespace, keywords: Mapping[str, Any]) -> None:
    """Answer each line of standard input as it comes, in parts; errors of a line are printed, and end nothing.

    Raises:
        UserError: Other items are given, or an output.
    """
    items = [getattr(options, option.name, None) for option in task.options if option.kind == "item"]
    given = [options.input, options.output, *items]
    if options.paths or any(value is not None for value in given):
        raise UserError("--interactive: expected no items and no --output, found some.")
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        sys.stdout.write(prompt)
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        try:
            _write_live(predictor, line.removesuffix("\n"), keywords)
        except UserError as error:
            sys.stderr.write(f"{error}\n")


def _write_live(predictor: Any, item: Any, keywords: Mapping[str, Any]) -> None:
    """Write the parts of an answer as they come."""
    for part in predictor.stream_text(item, **keywords):
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _default(task: Task, options: argparse.Namespace) -> str:
    """The model without --checkpoint: for built-in items the one that was trained on them."""
    given = (getattr(options, "input", None), *getattr(options, "paths", ()))
    return f"{task.name}/{DEMO if any(map(_is_built_in, given)) else task.default_checkpoint}"


def _is_built_in(path: str | None) -> bool:
    """Whether a path names the built-in items, and is none itself."""
    return path == DEMO and not os.path.exists(DEMO)


def _name_default(name: str | None) -> None:
    """Say on stderr which model is used without --checkpoint, what it knows, and which others ship with the task."""
    if name is not None:
        task = name.split("/")[0]
        others = [other for model in named_models(task) if (other := f"{task}/{model}") != name]
        also = f" Others: {', '.join(others)}." if others else ""
        sys.stderr.write(f"no --checkpoint: the model is {name}, which {summary(find_model(name).config)}.{also}\n")


def _fields(task: Task, options: argparse.Namespace) -> list[Option]:
    """The options that are fields of an item, without those that another option replaces."""
    fields = [option for option in task.options if option.kind == "item"]
    return [option for option in fields if option.unless is None or getattr(options, option.unless, None) is None]


def items_of(predictor: Predictor[Any, Any], task: Task, options: argparse.Namespace) -> Sequence[Any]:
    """The items of the command line: those of paths, the single item given by options, or those of `--input`.

    Raises:
        DataError: None of them is given, or two are; or the input cannot be read.
    """
    fields = _fields(task, options)
    names = [option.name for option in fields if not option.optional]
    given = {field.name: getattr(options, field.name) for field in fields if getattr(options, field.name) is not None}
    wanted = f"{' and '.join(f'--{name}' for name in names)}, or --input PATH"
    if options.paths:
        if names[0] in given or options.input is not None:
            raise DataError("arguments", f"{wanted}, or paths alone", "two of them")
        return _bare_items(predictor, task, options, given)
    if options.input is None:
        if any(name not in given for name in names):
            raise DataError(
                "arguments", wanted, f"only {', '.join(f'--{name}' for name in given)}" if given else "neither"
            )
        first = names[0]
        is_text = first in ("text", "prompt")  # and no path, whose name would be the id
        return [{"id": first if is_text else Path(given[first]).name, **given}]
    if names[0] in given:
        raise DataError("arguments", wanted, "both")
    return _opened(predictor, options.input, options.on_error, given)


def _opened(predictor: Predictor[Any, Any], path: str, on_error: str, given: Mapping[str, Any]) -> Sequence[Any]:
    if _is_built_in(path):
        return predictor.demo_samples()
    return predictor.open_input(path, on_error, **given)


def _bare_items(
    predictor: Predictor[Any, Any], task: Task, options: argparse.Namespace, given: Mapping[str, Any]
) -> Sequence[Any]:
    """The items of words without an option's name: texts, for tasks that have any, and paths.

    A text has spaces and is no path; of tasks whose items are texts, it is whatever neither exists nor looks like a
    path. If it belongs to a path, as a question to an image, each is asked of every path. With several paths the ids of
    their items begin with them.
    """
    first, *others = _fields(task, options)
    text = next((option.name for option in (first, *others) if option.bare), "")
    is_text = text == first.name
    texts = [
        word
        for word in options.paths
        if text and not os.path.exists(word) and (" " in word or (is_text and not _looks_like_path(word)))
    ]
    paths = [word for word in options.paths if word not in texts]
    missing = next((path for path in paths if path not in (DEMO, "-") and not os.path.exists(path)), None)
    if missing is not None:
        there = f"a file or folder; a text that looks like a path is given by --{text}" if text else "a file or folder"
        raise DataError(missing, there, "no such file")
    items: list[Any] = []
    shared = [dict(given)]
    if is_text:
        items = [{"id": str(number), **given, text: word} for number, word in enumerate(texts, start=1)]
    elif texts:
        if not paths:
            raise DataError("arguments", f"a path and a {text}", f"only a {text}")
        shared = [{**given, text: word} for word in texts]
    for path in paths:
        for fields in shared:
            found = _opened(predictor, path, options.on_error, fields)
            items += found if len(paths) == 1 else [_named(path, item) for item in found]
    return items


def _looks_like_path(word: str) -> bool:
    """Whether a word names a file: "demo", standard input, one with a separator or the suffix of a known format."""
    if word in (DEMO, "-") or "/" in word or os.sep in word:
        return True
    return Path(word).suffix.lower() in {*TABLES, *SUFFIXES} or mimetypes.guess_type(word)[0] is not None


def _named(path: str, item: Any) -> Any:
    """An item of one of several paths, with an id that begins with the path."""
    name = str(item["id"] if isinstance(item, Mapping) else item.id)
    name = path if name == Path(path).name else f"{path.rstrip('/')}/{name}"
    return {**item, "id": name} if isinstance(item, Mapping) else dataclasses.replace(item, id=name)


def _predict(
    predictor: Predictor[Any, Any],
    items: Sequence[Any],
    options: argparse.Namespace,
    keywords: Mapping[str, Any],
    outputs: Outputs,
) -> None:
    skipped: list[str] = []
    batch_size = min(options.batch_size, max(len(items), 1))
    shown = options.output is not None or not sys.stdout.isatty()
    json_lines = any(path == DEMO or is_json_lines(path) for path in (options.input or "", *options.paths))
    plain = None if json_lines else predictor.plain
    single = len(items) == 1 and options.output is None and options.input is None
    if single and isinstance(items[0], Mapping) and predictor.live and predictor.can_stream(keywords):
        _write_live(predictor, items[0], keywords)
        if remark := predictor.remark():
            sys.stderr.write(f"{remark}\n")
        return

    def records() -> Iterator[dict[str, Any]]:
        found = predictor.stream(items, batch_size, options.on_error, **keywords)
        for item, one in zip(items, progress(found, len(items), "predicting", shown), strict=True):
            record = record_of(item, one)
            if "error" in record:
                skipped.append(record["error"])
            yield record

    def lines() -> Iterator[str]:
        if plain is None:
            return predictor.lines(records(), keywords)
        return (record.get(plain, "") + "\n" for record in records())

    if options.output is None:
        for line in lines():
            sys.stdout.write(line)
        sys.stdout.flush()
    else:
        predictor.reserved = (outputs.claim(options.output, replace=True),)
        with atomic_write(options.output, "w") as file:
            for line in lines():
                file.write(line)
        written = len(items) - len(skipped)
        message = f"{written} prediction{'' if written == 1 else 's'} written to {options.output}."
        print(message, file=sys.stderr if is_special(options.output) else sys.stdout)
    report_skipped(skipped, len(items))
    remark = predictor.remark()
    if remark:
        sys.stderr.write(f"{remark}\n")


def record_of(item: Any, found: Any) -> dict[str, Any]:
    """The JSON record of a prediction, without arrays and fields that have no value, or of an item's error."""
    if isinstance(found, Exception):
        name = item.get("id", "") if isinstance(item, Mapping) else getattr(item, "id", item)
        return {"id": str(name), "error": str(found)}
    fields = dataclasses.asdict(found).items()
    return {name: value for name, value in fields if value is not None and not hasattr(value, "shape")}


def _explain(
    predictor: Predictor[Any, Any],
    items: Sequence[Any],
    options: argparse.Namespace,
    keywords: Mapping[str, Any],
    outputs: Outputs,
) -> None:
    if not items:
        raise UserError("explain: expected at least one item, found none.")
    target = Path(options.output or ("explanation.png" if len(items) == 1 else "explanations"))
    if target.suffix.lower() == ".html":
        _explain_page(predictor, items, options, keywords, outputs)
        return
    one = is_special(target) or target.suffix.lower() == ".png"
    many = len(items) > 1 or not one
    if many and one:
        raise UserError(f"--output {target}: expected a folder for {len(items)} images, found the name of one PNG.")
    if target.suffix.lower() in NOT_PNG and not target.is_dir():
        raise UserError(f"--output {target}: expected a name that ends in .png, or a folder, found {target.suffix!r}.")
    skipped: list[str] = []
    paths = [target / f"{number:05d}.png" for number in range(len(items))] if many else [target]
    for path in paths:
        outputs.claim(path, replace=options.output is not None and not many)
    for number, found in _explained(predictor, items, options, keywords, skipped):
        save_png(paths[number], found.save)
    written = len(items) - len(skipped)
    plural = "" if written == 1 else "s"
    message = f"{written} explanation{plural} written to {target}." if many else f"{path} written."
    print(message, file=sys.stderr if is_special(target) else sys.stdout)
    report_skipped(skipped, len(items))


def _explained(
    predictor: Predictor[Any, Any],
    items: Sequence[Any],
    options: argparse.Namespace,
    keywords: Mapping[str, Any],
    skipped: list[str],
) -> Iterator[tuple[int, Any]]:
    """Yield each item's number and explanation; with --on_error skip, errors are added to `skipped`."""
    for number, item in enumerate(progress(items, len(items), "explaining")):
        try:
            found = predictor.explain(item, **keywords)
        except Exception as error:
            if options.on_error != "skip" or not is_user_error(error):
                raise
            skipped.append(str(error))
        else:
            yield number, found


def _explain_page(
    predictor: Predictor[Any, Any],
    items: Sequence[Any],
    options: argparse.Namespace,
    keywords: Mapping[str, Any],
    outputs: Outputs,
) -> None:
    """Write the explanations of all items as one HTML page.

    Raises:
        UserError: The task's explanations are pictures alone.
    """
    target, skipped, parts = Path(options.output), list[str](), list[str]()
    outputs.claim(target, replace=True)
    for _, found in _explained(predictor, items, options, keywords, skipped):
        if not hasattr(found, "html"):
            raise UserError(f"--output {target}: expected a PNG or a folder, since {predictor.task} draws pictures.")
        parts.append(found.html())
    with atomic_write(target, "w") as file:
        file.write(page(f"{predictor.task}: explanations", "\n".join(parts)))
    print(f"{len(parts)} explanation{'' if len(parts) == 1 else 's'} written to {target}.")
    report_skipped(skipped, len(items))


def report_skipped(skipped: Sequence[str], total: int) -> None:
    """Report on stderr how many items were skipped, with the reasons of the first five."""
    if skipped:
        shown = "".join(f"\n  {reason}" for reason in skipped[:5])
        sys.stderr.write(f"{len(skipped)} of {total} items skipped:{shown}\n")
