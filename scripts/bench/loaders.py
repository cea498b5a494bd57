"""Measure the share of a training step that is spent waiting for data; required is at most a tenth.

    python scripts/bench/loaders.py [CONFIG ...] [--steps N] [--workers N] [--json FILE]

Each configuration (default: those of the two real image sets) is trained for some steps in a temporary folder, with
Lightning's profiler; the first steps are excluded. Waiting is the time of drawing a batch from the loader and moving it
to the device; with workers, only the part in the training process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CONFIGS = ("configs/classification_cifar10.yaml", "configs/segmentation_camvid.yaml")
WAITING = ("train_dataloader_next", "batch_to_device")
WARM_UP = 5
LIMIT = 0.10


def measure(config: Path, steps: int, workers: int) -> dict[str, float]:
    """Milliseconds of a step, and the share that is spent waiting.

    Args:
        config: Path of a configuration; its name begins with the task's.
        steps: Number of measured steps, after the warm-up.
        workers: Number of loader processes.
    """
    from mmattn.tasks import tasks
    from mmattn.tasks.common.refit import FitCLI

    with tempfile.TemporaryDirectory() as folder:
        words = f"--config {config} --trainer.default_root_dir {folder}/run --trainer.max_steps {steps + WARM_UP} "
        words += "--trainer.max_epochs -1 --trainer.limit_val_batches 1 --trainer.profiler simple "
        words += f"--trainer.enable_progress_bar false --data.num_workers {workers}"
        with contextlib.redirect_stdout(io.StringIO()):  # the profiler's own table
            task = max((name for name in tasks() if f"{config.stem}_".startswith(f"{name}_")), key=len)
            trainer: Any = FitCLI(tasks()[task], "fit", words.split(), "").trainer
    durations = trainer.profiler.recorded_durations
    waits = [sum(spent[WARM_UP : WARM_UP + steps]) for name, spent in durations.items() if name.endswith(WAITING)]
    trained = sum(durations["run_training_batch"][WARM_UP : WARM_UP + steps])
    return {"step_ms": 1000 * (trained + sum(waits)) / steps, "waiting": sum(waits) / (trained + sum(waits))}


def main() -> int:
    """Print a row for each configuration; returns 1 if one of them waits too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, help=f"default: {' '.join(CONFIGS)}")
    parser.add_argument("--steps", type=int, default=40, help="measured steps, after the warm-up (default: 40)")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = {}
    for config in options.configs or [ROOT / name for name in CONFIGS]:
        row = rows[config.name] = measure(config.resolve(), options.steps, options.workers)
        print(f"{config.name:<34} step {row['step_ms']:>8.1f} ms   waiting {row['waiting']:>7.2%}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["waiting"] > LIMIT for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
