"""Train a task's full model, its baselines and variants, or other attention kernels, for the same time; print a table.

    python scripts/ablations.py vqa [--jobs 2] [--write]
    python scripts/ablations.py vqa --kernels --jobs 2 --epochs 4 --write

With --kernels the full model is trained with each kernel that supports bidirectional self-attention, by
`--model.attention.kind`, and compared with the first baseline that ablates a part of the data. The time of an epoch is
estimated from a few steps; cheaper variants are trained for as many more epochs as fit in the full model's time. With
--same-epochs or --kernels all are trained for the same number of epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmattn.tasks.common.task import Task, tasks  # noqa: E402

PROBE_STEPS = 60


def kernel_options(kind: str, length: int) -> dict[str, int]:
    """Options for the built-in data of kernels whose defaults are for long sequences.

    Args:
        kind: Name of the kernel.
        length: Sequence length.
    """
    return {
        "adaptive_span": {"max_span": min(length, 256), "ramp": 8},
        "low_rank": {"projected_length": min(length // 4, 32), "max_len": length},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    }.get(kind, {})


def kernel_variants(task: Task) -> dict[str, str]:
    """Command-line words of the full model with each kernel, and of the baseline that each has to beat."""
    from mmattn import kinds_supporting

    beaten = next(name for name, words in task.baselines.items() if words.startswith("--data."))
    variants = {beaten: task.baselines[beaten]}
    for kind in kinds_supporting({"self"}):
        given = {"kind": kind, **kernel_options(kind, task.kernel_length)}
        words = " ".join(f"--model.attention.{name} {value}" for name, value in given.items())
        variants[f"attention {kind}"] = f"{task.kernel_words} {words}".strip()
    return variants


def measuring(words: str) -> str:
    """The words of a training command that also apply to evaluation: those of the ablated data."""
    pairs = zip(words.split()[::2], words.split()[1::2], strict=True)
    return " ".join(f"{name} {value}" for name, value in pairs if name.startswith("--data."))


def run(task: str, arguments: str, threads: int) -> None:
    """Run one command of a task; its output is printed only if it fails."""
    command = [sys.executable, "-m", f"tasks.{task}", *arguments.split()]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])


def fit_command(task: str, changes: str) -> str:
    """The command that trains a variant."""
    return f"fit --config configs/{task}.yaml {changes}".strip()


def step_seconds(task: str, changes: str, scratch: Path, threads: int) -> float:
    """Seconds per training step of a variant."""
    probe = f"--trainer.max_steps {PROBE_STEPS} --trainer.limit_val_batches 1 --overwrite true"
    run(task, f"{fit_command(task, changes)} {probe} --trainer.default_root_dir {scratch}/probe", threads)
    return json.loads((scratch / "probe" / "metrics.json").read_text())["fit"]["seconds"] / PROBE_STEPS


def train(
    task: str, name: str, words: str, scratch: Path, epochs: int, budget: float | None, threads: int
) -> tuple[str, dict[str, Any]]:
    """Fit and test a variant; returns its command and metrics.json.

    A variant that is cheaper than the budget, in seconds per step of the full model, is trained for more epochs; None:
    all variants are trained for the same number of epochs.
    """
    folder = scratch / name.replace(" ", "_")
    folder.mkdir()
    ratio = 1.0 if budget is None else budget / step_seconds(task, words, folder, threads)
    changes = f"{words} --trainer.max_epochs {round(epochs * max(ratio, 1.0))}"
    run(task, f"{fit_command(task, changes)} --trainer.default_root_dir {folder}/run", threads)
    run(
        task,
        f"test --checkpoint {folder}/run/model --trainer.default_root_dir {folder}/run {measuring(words)}",
        threads,
    )
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    main_metric = next(iter(metrics["test"]))
    print(f"{name:<28} {main_metric} {metrics['test'][main_metric]:.4f}  {metrics['fit']['seconds']:.0f} s", flush=True)
    return f"python -m tasks.{task} {fit_command(task, changes)}", metrics


def main() -> None:
    """Train all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=tasks())
    parser.add_argument("--kernels", action="store_true", help="compare kernels instead of variants")
    parser.add_argument("--only", nargs="*", help="names of the variants to train")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, which share the cores")
    parser.add_argument("--same-epochs", action="store_true", help="same number of epochs instead of same time")
    parser.add_argument("--epochs", type=int, help="epochs of the full model (default: as configured)")
    parser.add_argument("--write", action="store_true", help="record the figures in the task's results.json")
    options = parser.parse_args()
    from scripts.results import record_result

    task, threads = options.task, max(1, (os.cpu_count() or 1) // options.jobs)
    config = f"configs/{task}.yaml"
    epochs = options.epochs or yaml.safe_load((ROOT / config).read_text())["trainer"]["max_epochs"]
    described = tasks()[task]
    variants = {"full": "", **described.baselines, **described.variants}
    variants = kernel_variants(described) if options.kernels else variants
    variants = {name: words for name, words in variants.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        scratch = Path(folder)
        budget = None if options.kernels or options.same_epochs else step_seconds(task, "", scratch, threads)
        done = {
            name: pool.submit(train, task, name, words, scratch, epochs, budget, threads)
            for name, words in variants.items()
        }
        results = {}
        for name, future in done.items():
            command, metrics = results[name] = future.result()
            if options.write:  # immediately, so that an interrupted table keeps its first rows
                record_result(
                    task,
                    f"{'kernels' if options.kernels else 'built-in'}: {name}",
                    command=command,
                    config=config,
                    metrics={key: value for key, value in metrics["test"].items() if isinstance(value, float)},
                    seconds=metrics["fit"]["seconds"],
                    note=f"{options.jobs} trainings at a time, {threads} thread(s) each",
                )
    columns = list(dict.fromkeys(k for _, m in results.values() for k, v in m["test"].items() if isinstance(v, float)))
    print("\n| variant | " + " | ".join(columns) + " | seconds |\n|---|" + "---|" * (len(columns) + 1))
    for name, (_, metrics) in results.items():
        cells = " | ".join(f"{metrics['test'].get(column, float('nan')):.3f}" for column in columns)
        print(f"| {name} | {cells} | {metrics['fit']['seconds']:.0f} |")


if __name__ == "__main__":
    main()
