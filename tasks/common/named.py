"""The command `mmattn models`: the models that ship with the tasks. Standard library only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmattn.data.errors import nearest
from mmattn.tasks.common.cards import about_of
from mmattn.tasks.common.checkpoint import read_config
from mmattn.tasks.common.sources import named_models
from mmattn.tasks.common.task import tasks

HEAD = ("model", "figure", "size", "licence", "data")


def described(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is known of each model that ships with the given tasks.

    Args:
        names: Names of tasks.
    """
    for task in names:
        for name, folder in named_models(task).items():
            config, metric = read_config(folder), tasks()[task].metric
            about = about_of(config)
            split, value = next(
                ((split, values[metric]) for split, values in config.get("metrics", {}).items() if metric in values),
                ("", None),
            )
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield {
                "model": f"{task}/{name}",
                "task": task,
                "data": about.get("data", "own data"),
                "licence": about.get("licence", ""),
                "metric": metric,
                "value": value,
                "split": split,
                "bytes": size,
                "base": (config.get("base") or {}).get("name"),
            }


def row_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a model in the table."""
    figure = "" if entry["value"] is None else f"{entry['metric']} {entry['value']:.3f} ({entry['split']})"
    size = f"{entry['bytes'] / 1e6:.1f} MB" + (f" + {entry['base']}" if entry["base"] else "")
    return entry["model"], figure, size, entry["licence"], entry["data"]


def main(argv: Sequence[str]) -> None:
    """List the models.

    Args:
        argv: Names of tasks; none: all. `--json` prints one JSON array.
    """
    parser = argparse.ArgumentParser(prog="mmattn models", description="list the models that ship with the tasks")
    parser.add_argument("task", nargs="*", help=f"only those of {', '.join(tasks())}")
    parser.add_argument("--json", action="store_true", help="as a JSON array")
    options = parser.parse_args(argv)
    wrong = next((name for name in options.task if name not in tasks()), None)
    if wrong is not None:
        parser.error(f"expected a task of {', '.join(tasks())}, found {wrong!r}{nearest(wrong, tasks())}.")
    found = list(described(options.task or tasks()))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    rows = [HEAD, *map(row_of, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nload(NAME) in Python; `mmattn TASK predict --checkpoint NAME` and `mmattn serve NAME` on the command line."
    )
