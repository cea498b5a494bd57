"""Train a task's full model and its failing baselines for the same time, and print a table.

    python scripts/ablations.py vqa [--write]

A baseline whose epoch is cheaper is given as many more epochs as fit in the full model's time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# For each task: the config, and what each variant changes in training and in testing.
VARIANTS = {
    "vqa": {
        "full": ("", ""),
        "without guidance": ("--model.guidance 0 --model.object_supervision 0", ""),
        "question hidden": ("--data.hide question", "--data.hide question"),
        "image hidden": ("--data.hide image", "--data.hide image"),
        "mean pooling for attention": ("--model.fusion mean --model.guidance 0", ""),
    }
}


def run(task: str, arguments: str) -> None:
    """One command of a task, its output hidden unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", f"tasks.{task}", *arguments.split()], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])


def train(task: str, folder: Path, options: str, test_options: str) -> tuple[dict[str, float], float]:
    """Fit and test; the test figures and the seconds of training."""
    run(task, f"fit --config configs/{task}.yaml --trainer.default_root_dir {folder} {options}")
    run(task, f"test --checkpoint {folder}/model --trainer.default_root_dir {folder} {test_options}")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in metrics["test"].items() if isinstance(v, float)}, metrics["fit"]["seconds"]


def main() -> None:
    """Train all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(VARIANTS))
    parser.add_argument("--only", nargs="*", help="some of the variants by name (the full one is always trained)")
    parser.add_argument("--write", action="store_true", help="record the figures in the task's results.json")
    options = parser.parse_args()
    from tasks.common.results import record_result

    budget, epochs, config = 0.0, 0, f"configs/{options.task}.yaml"
    table: list[tuple[str, dict[str, float], float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (changes, test_changes) in VARIANTS[options.task].items():
            if options.only and name not in options.only and name != "full":
                continue
            folder = Path(scratch, name.replace(" ", "_"))
            if name == "full":
                figures, budget = train(options.task, folder, changes, test_changes)
                epochs = json.loads((folder / "metrics.json").read_text())["fit"]["epochs"]
            else:
                probe = Path(scratch, "probe")
                _, one = train(options.task, probe, f"{changes} --trainer.max_epochs 2 --overwrite true", test_changes)
                more = max(epochs, round(2 * budget / one))
                changes = f"{changes} --trainer.max_epochs {more}"
                figures, _ = train(options.task, folder, changes, test_changes)
            seconds = json.loads((folder / "metrics.json").read_text())["fit"]["seconds"]
            table.append((name, figures, seconds))
            main_metric = next(iter(figures))
            print(
                f"{name:<28} {main_metric} {figures[main_metric]:.4f}  {seconds:.0f} s  [{time.strftime('%H:%M')}]",
                flush=True,
            )
            if options.write:
                record_result(
                    options.task,
                    f"built-in: {name}",
                    command=f"python -m tasks.{options.task} fit --config {config} {changes}".strip(),
                    config=config,
                    metrics=figures,
                    seconds=seconds,
                )
    names = list(table[0][1])
    print("\n| variant | " + " | ".join(names) + " | seconds |\n|---|" + "---|" * (len(names) + 1))
    for name, figures, seconds in table:
        print(f"| {name} | " + " | ".join(f"{figures.get(k, float('nan')):.3f}" for k in names) + f" | {seconds:.0f} |")


if __name__ == "__main__":
    main()
