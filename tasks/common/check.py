"""The command `check`: a table of a data set's contents, without training."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from mmattn.data.dataset import SampleDataset, content_of
from mmattn.tasks.common import auto
from mmattn.tasks.common.datamodule import TaskDataModule
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.parse_errors import readable
from mmattn.tasks.common.summary import by_frequency, summarize
from mmattn.tasks.common.task import DEMO, Task
from mmattn.tasks.common.trainer import ALLOWED_IMPORTS, Parser
from mmattn.tasks.common.yaml_limits import recorded_options

SPLITS = ("train", "val", "test")
NAMES, LINES = 12, 10  # names of a category, and problems of a kind, that are shown
Input = bytes  # digest of what a model gets of a sample


def run(task: Task, argv: Sequence[str]) -> bool:
    """Check the data sets of paths and of `--data.train|val|test`, and print a table with a column for each.

    Returns:
        Whether no item is bad.

    Raises:
        ConfigError: No path is given, or an option is invalid.
        DataError: A path as a whole cannot be read; or, after the table, no model can be trained on the first one.
    """
    data, paths = _options(task, argv)
    data.on_error = "skip"  # reads every item
    logger = logging.getLogger("mmattn.data.dataset")
    level = logger.level
    logger.setLevel(logging.ERROR)  # bad items are listed below
    try:
        found = {name: _open(data, split, path) for name, split, path in paths}
    finally:
        logger.setLevel(level)
    seen = {name: _inputs(dataset) for name, dataset in found.items()}
    _print_table(list(found), _rows(found, seen))
    first = next(iter(found.values()))
    if data.train_size == "batch_size":
        count = data.num_samples(first)
        samples = count if len(found) > 1 else count * 4 // 5  # the rest is held out
        data.batch_size = auto.batch_size(samples, data.largest_batch)
        steps = -(-samples // data.batch_size) or 1
        random, given = (
            auto.epochs(steps, least) for least in (data.least_steps, data.least_steps // auto.FINE_TUNING)
        )
        with_weights = f" ({given} with --init_from)" if given != random else ""
        print(f"auto: --data.batch_size {data.batch_size}, --trainer.max_epochs {random}{with_weights}")
    for name, dataset in found.items():
        _print_lines(f"bad items in {name}", [f"{where}: {reason}" for where, reason in dataset.skipped])
        _print_lines(f"repeated in {name}", _repeated(dataset, seen[name]))
    for number, one in enumerate(found):
        for other in list(found)[number + 1 :]:
            both = [digest for digest in seen[one] if digest in seen[other]]
            pairs = [tuple(found[name].places[seen[name][digest][0]] for name in (one, other)) for digest in both]
            _print_lines(f"leaks, both in {one} and {other}", [a if a == b else f"{a} is {b}" for a, b in pairs])
    if paths[0][1] == "train":
        data.check_train(first)
    return not any(dataset.skipped for dataset in found.values())


def _options(task: Task, argv: Sequence[str]) -> tuple[TaskDataModule[Any, Any], list[tuple[str, str, str]]]:
    """The data module, and name, split and path of each data set."""
    kind = task.resolve("datamodule")
    parser = Parser(add_help=False)
    parser.add_argument("paths", nargs="*", type=str)
    parser.add_argument("--config", type=str | None, default=None)
    parser.add_class_arguments(kind, "data", skip={"seed"}, instantiate=False, fail_untyped=False)
    try:
        config = parser.parse_args([*argv])
        if config.config is not None:
            given = recorded_options(Path(config.config))
            parser.set_defaults({key: value for key, value in given.items() if key.startswith("data.")})
            config = parser.parse_args([*argv])
    except (ArgumentError, ConfigError, KeyError) as error:
        known = sorted(action.dest for action in parser._actions if action.dest)
        raise ConfigError(readable(str(error), known, ALLOWED_IMPORTS)) from None
    options = config.data.as_dict()
    data = kind(**options)
    paths = [(split, split, data.paths[split] or DEMO) for split in SPLITS if options[split] is not None]
    paths += [(path, SPLITS[0], path) for path in config.paths]
    if not paths:
        raise ConfigError(
            "check: expected the path of a data set, or --data.train, val and test with theirs; found none."
        )
    return data, paths


def _open(data: TaskDataModule[Any, Any], split: Any, path: str) -> SampleDataset[Any]:
    found: SampleDataset[Any]
    found = data.open_split(split, None) if path == DEMO else data.make_dataset(path, split)
    return found


def _inputs(dataset: SampleDataset[Any]) -> dict[Input, list[int]]:
    """The indices of the samples with each input."""
    known: dict[Any, bytes] = {}
    found: dict[Input, list[int]] = {}
    for index, sample in enumerate(dataset.samples):
        values, media = dataset.inputs(sample)
        digest = hashlib.sha256(json.dumps(values).encode())
        for medium in media:
            key = medium if isinstance(medium, (str, Path)) else id(medium)
            if key not in known:
                known[key] = hashlib.sha256(_content(medium)).digest()
            digest.update(known[key])
        found.setdefault(digest.digest(), []).append(index)
    return found


def _content(medium: Any) -> bytes:
    """The bytes of a medium: those of the file, where `content_of` has its name and size."""
    if isinstance(medium, (str, Path)):
        return Path(medium).read_bytes()
    return medium.read() if hasattr(medium, "fingerprint") else content_of(medium)  # type: ignore[no-any-return]


def _repeated(dataset: SampleDataset[Any], seen: dict[Input, list[int]]) -> list[str]:
    lines = []
    for first, *others in seen.values():
        for index in others:
            labels = [dataset.label(dataset.samples[k]) for k in (first, index)]
            conflict = f", with the label {labels[1]!r} in place of {labels[0]!r}" if labels[0] != labels[1] else ""
            lines.append(f"{dataset.places[index]} is {dataset.places[first]}{conflict}")
    return sorted(lines, key=lambda line: ", with the label " not in line)  # conflicts first


def _rows(found: Mapping[str, SampleDataset[Any]], seen: Mapping[str, dict[Input, list[int]]]) -> dict[str, list[str]]:
    """The rows of the table: a title, and a cell for each data set."""
    sets = list(found.values())
    rows = {"items": [f"{len(dataset):,}" for dataset in sets]}
    rows["bad items"] = [f"{len(dataset.skipped):,}" for dataset in sets]
    rows["repeated items"] = [f"{len(dataset) - len(seen[name]):,}" for name, dataset in found.items()]
    summaries = [summarize(dataset.facts(sample) for sample in dataset.samples) for dataset in sets]
    for key in dict.fromkeys(key for summary in summaries for key in summary.names):
        rows |= _counts(key, [summary.names.get(key, Counter()) for summary in summaries])
    for key in dict.fromkeys(key for summary in summaries for key in summary.numbers):
        rows[f"{key}: min / median / max"] = [summary.spread(key) for summary in summaries]
    media = [{m for sample in dataset.samples for m in dataset.identity(sample)[1] if _is_path(m)} for dataset in sets]
    if any(media):
        sizes = [sum(os.path.getsize(path) for path in some if os.path.exists(path)) / 1e6 for some in media]
        rows["files"] = [f"{len(some):,}, {size:,.1f} MB" for some, size in zip(media, sizes, strict=True)]
    return rows


def _counts(key: str, counters: Sequence[Counter[str]]) -> dict[str, list[str]]:
    """The most frequent names with their numbers, and how many there are of the others."""
    names = by_frequency(counters)
    rows = {f"{key}: different": [f"{len(counter):,}" for counter in counters]}
    rows |= {f"{key} {name!r}": [f"{counter[name]:,}" for counter in counters] for name in names[:NAMES]}
    if rest := names[NAMES:]:
        numbers = [[counter[name] for name in rest] for counter in counters]
        rows[f"{key}: {len(rest):,} others"] = [f"{min(some):,} to {max(some):,} each" for some in numbers]
    return rows


def _is_path(medium: Any) -> bool:
    return isinstance(medium, (str, Path))


def _print_table(names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    for title, cells in rows.items():
        table.add_row(escape(title), *cells)
    Console().print(table)


def _print_lines(title: str, lines: list[str]) -> None:
    """Print the first lines under a title with their number; nothing without lines."""
    if lines:
        print("\n  ".join([f"{title}: {len(lines):,}", *lines[:LINES]]))
        if len(lines) > LINES:
            print(f"  ... and {len(lines) - LINES:,} more")
