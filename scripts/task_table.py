"""The README's table of tasks, from what each task says of itself and from its results.json.

python scripts/task_table.py [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmattn.tasks.common.task import Task, tasks  # noqa: E402
from scripts.results import read_results  # noqa: E402

BEGIN, END = "<!-- task_table.py -->\n", "<!-- /task_table.py -->"
HEAD = ("task", "built-in data, test part", "failing baselines", "real data, validation part", "command")


def row(task: Task) -> list[str]:
    """A task's cells; empty where nothing was measured."""
    results = read_results(task.name)
    command = f"{task.name} fit --config configs/{task.name}.yaml"
    full = next((entry for entry in results.values() if entry["command"].endswith(command)), None)
    baselines = {name: results.get(f"built-in: {name}") for name in task.baselines}
    real: dict[str, str] = {}  # by configuration, the first entry of each
    for name, entry in results.items():
        if Path(entry["config"]).stem != task.name:
            real.setdefault(entry["config"], f"{name} {figure(task, entry)}")
    return [
        f"[{task.title.split(':')[0].lower()}](tasks/{task.name}/README.md)",
        f"{task.metric} {figure(task, full)}" if full else "",
        ", ".join(f"{name} {figure(task, entry)}" for name, entry in baselines.items() if entry),
        "; ".join(real.values()),
        f"`mmattn {command}`",
    ]


def figure(task: Task, entry: Mapping[str, Any]) -> str:
    """The main metric, in three digits."""
    value = entry["metrics"][task.metric]
    return f"{value:.1f}" if value > 1 else f"{value:.3f}"


def table() -> str:
    """The table as Markdown."""
    rows = [HEAD, ["---"] * len(HEAD), *(row(task) for task in tasks().values() if read_results(task.name))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def main() -> None:
    """Print the table, or put it in its place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    (ROOT / "README.md").write_text(before + BEGIN + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
