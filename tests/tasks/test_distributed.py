"""Two gloo processes on an odd number of ragged batches measure what one process measures."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tasks.runs import TINY, read

ROOT = Path(__file__).resolve().parents[2]
# 12 scenes with 18 questions in batches of 50: five batches, the last one short; the convolutional stem has BatchNorm.
DATA = "--data.batch_size 50 --trainer.limit_test_batches 5 --trainer.limit_val_batches 5"


def call(command: str, folder: Path, options: str, processes: int) -> dict:
    words = [*TINY.split(), *DATA.split()]
    if command != "fit":
        words = [w for n in range(0, len(words), 2) if not words[n].startswith("--model") for w in words[n : n + 2]]
    if processes > 1:
        words += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"]
    kept = {words[n]: words[n + 1] for n in range(0, len(words), 2)}
    kept |= {"--trainer.default_root_dir": str(folder)}
    arguments = [word for pair in kept.items() for word in pair] + options.split()
    if processes > 1:  # limits count batches a process
        arguments = [*arguments, "--trainer.limit_test_batches", "3", "--trainer.limit_val_batches", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "tasks.vqa", command, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read(folder / "metrics.json")


def figures(part: dict) -> dict[str, float]:
    return {name: value for name, value in part.items() if name.startswith("accuracy")}


def test_two_processes_report_the_metrics_of_one(tmp_path: Path) -> None:
    fitted = call("fit", tmp_path / "two", "", processes=2)
    model = f"--checkpoint {tmp_path / 'two' / 'model'}"
    one = call("validate", tmp_path / "one", model, processes=1)
    assert figures(fitted["validation"]) == figures(one["validation"]), "the validation within fit"
    one, two = (call("test", tmp_path / str(n), model, processes=n) for n in (1, 2))
    assert figures(one["test"]) == figures(two["test"])
    import torch
    from tasks import load

    norms = [m for m in load(tmp_path / "two" / "model", device="cpu").model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms, "the test is about a model with running statistics"
