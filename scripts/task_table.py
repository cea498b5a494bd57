"""The README's table of tasks and docs/results.md, from each task's description and its results.json.

python scripts/task_table.py [--write]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmattn.tasks.common.task import Task, tasks  # noqa: E402
from scripts.results import read_results  # noqa: E402

RESULTS = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- task_table.py -->\n", "<!-- /task_table.py -->"
HEAD = ("task", "built-in data, test split", "ablation baselines", "real data, validation split", "command")


def row(task: Task) -> list[str]:
    """The cells of a task's row; empty for figures that were not measured."""
    results = read_results(task.name)
    command = f"{task.name} fit --config configs/{task.name}.yaml"
    full = next((entry for entry in results.values() if entry["command"].endswith(command)), None)
    baselines = {name: results.get(f"built-in: {name}") for name in task.baselines}
    real: dict[str, str] = {}  # by configuration, the first entry of each
    for name, entry in results.items():
        if Path(entry["config"]).stem != task.name:
            title = re.sub(r"(, validation|: val\b).*", "", name)  # the column names the split
            named = f"{entry['metric']} " if "metric" in entry else ""
            real.setdefault(entry["config"], f"{title} {named}{figure(task, entry)}")
    return [
        f"[{task.title.split(':')[0].lower()}](tasks/{task.name}/README.md)",
        f"{task.metric} {figure(task, full)}" if full else "",
        ", ".join(f"{name} {figure(task, entry)}" for name, entry in baselines.items() if entry),
        "; ".join(real.values()),
        f"`mmattn {command}`",
    ]


def figure(task: Task, entry: Mapping[str, Any]) -> str:
    """The main metric of an entry, with three digits."""
    value = entry["metrics"][entry.get("metric", task.metric)]
    return f"{value:.1f}" if value > 10 else f"{value:.3f}"


def table() -> str:
    """The table as Markdown."""
    rows = [HEAD, ["---"] * len(HEAD), *(row(task) for task in tasks().values() if read_results(task.name))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def page() -> str:
    """docs/results.md: every entry of every task's results.json."""
    text = (
        "# Results\n\n"
        "This page lists every measured figure; `python scripts/task_table.py --write` makes it from each task's\n"
        "`results.json`, which also records the machine, the package versions and the other metrics.\n"
    )
    for task in tasks().values():
        results = read_results(task.name)
        if not results:
            continue
        text += f"\n## {task.title.split(':')[0]}\n\n| entry | {task.metric} | seconds | commit | command |\n"
        text += "| --- | --- | --- | --- | --- |\n"
        for name, entry in results.items():
            command = entry["command"].removeprefix(f"python -m tasks.{task.name} ")
            main = entry["metrics"][entry.get("metric", task.metric)]
            value = f"{main:.4g}" + (f" ({entry['metric']})" if "metric" in entry else "")
            cells = (name, value, f"{entry['seconds']:.0f}", entry["commit"])
            text += f"| {' | '.join(cells)} | `{command}` |\n"
    return text


def main() -> None:
    """Print the table, or write the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into README.md, and docs/results.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    (ROOT / "README.md").write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
