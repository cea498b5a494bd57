"""Ship the model of a run with its task: in half precision, evaluated on the built-in test split.

python scripts/ship_checkpoint.py vqa runs/vqa/model [--name demo]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


PLACES = ("--trainer.default_root_dir", "--trainer.enable_progress_bar", "--overwrite")


def without_places(command: str) -> str:
    """A command without the options of output folders and progress, which do not affect the weights."""
    words = command.split()
    return " ".join(w for before, w in zip(["", *words], words, strict=False) if not {w, before} & set(PLACES))


def main() -> None:
    """Write the folder, evaluate the model, and write the folder again with its figures on the model card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("model", help="the model/ folder of a run")
    parser.add_argument("--name", default="demo", help="name of the model in TASK/NAME (default: demo)")
    options = parser.parse_args()
    from mmattn.tasks import load, tasks
    from mmattn.tasks.common.checkpoint import save_directory
    from mmattn.tasks.common.rundir import read_json
    from mmattn.tasks.common.sources import CHECKPOINTS

    predictor = load(options.model, device="cpu")
    target = tasks()[options.task].folder / CHECKPOINTS / options.name
    parts = {
        "task": options.task,
        "model": predictor.model,
        "keywords": predictor.parts.keywords,
        "network": predictor.parts.network,
        "processor": predictor.processor,
        "command": without_places(read_json(Path(options.model).parent / "run.json").get("command", "")),
        "half": True,
    }
    save_directory(target, **parts)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "mmattn", options.task, "test", "--checkpoint", str(target)]
        subprocess.run([*command, "--trainer.default_root_dir", scratch], cwd=ROOT, check=True)
        measured = json.loads(Path(scratch, "metrics.json").read_text())["test"]
    metrics = {"built-in test": {name: value for name, value in measured.items() if isinstance(value, float)}}
    save_directory(target, **parts, metrics=metrics)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target} written, {size:,} bytes.")


if __name__ == "__main__":
    main()
