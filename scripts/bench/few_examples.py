"""Few examples of each class of a text set, from public weights: accuracy on its validation part, over several draws.

    python scripts/bench/few_examples.py trec6 [--examples 16] [--draws 5] [--words "--optim.probe_below 0"] [--write]

The examples are drawn from train.jsonl by the number of the draw. With --write mean and spread are recorded in the
task's results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def draw(path: Path, examples: int, number: int) -> list[str]:
    """Lines of the file, so many of each label, in random order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    stream = random.Random(number)
    order = sorted(range(len(lines)), key=lambda _: stream.random())
    kept: dict[str, list[str]] = {}
    for index in order:
        own = kept.setdefault(str(json.loads(lines[index])["label"]), [])
        if len(own) < examples:
            own.append(lines[index])
    return [line for label in sorted(kept) for line in kept[label]]


def accuracy(name: str, examples: int, number: int, words: str) -> tuple[float, float]:
    """Accuracy and seconds of a training on one draw."""
    data = Path(os.environ["MMATTN_DATA"]) / name
    with tempfile.TemporaryDirectory() as scratch:
        train = Path(scratch, "train.jsonl")
        train.write_text("\n".join(draw(data / "train.jsonl", examples, number)) + "\n", encoding="utf-8")
        given = f"--data.train {train} --data.val {data / 'val.jsonl'} --init_from minilm {words}"
        quiet = f"--trainer.default_root_dir {scratch}/run --trainer.report false --trainer.enable_progress_bar false"
        command = [sys.executable, "-m", "mmattn", "text_classification", "fit", *given.split(), *quiet.split()]
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        metrics = json.loads(Path(scratch, "run", "metrics.json").read_text())
    return metrics["validation"]["accuracy"], time.monotonic() - start


def main() -> None:
    """Print the accuracy of each draw, and mean and spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a folder of MMATTN_DATA with train.jsonl and val.jsonl")
    parser.add_argument("--examples", type=int, default=16, help="examples of each class (default: 16)")
    parser.add_argument("--draws", type=int, default=5, help="number of draws (default: 5)")
    parser.add_argument("--words", default="", help="more options of fit")
    parser.add_argument("--write", metavar="ENTRY", help="record mean and spread under this name")
    options = parser.parse_args()
    found = []
    for number in range(options.draws):
        found.append(accuracy(options.name, options.examples, number, options.words))
        print(f"draw {number}: accuracy {found[-1][0]:.4f}, {found[-1][1]:.0f} s", flush=True)
    values = [value for value, _ in found]
    mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    print(f"{options.name}, {options.examples} of each class: {mean:.4f}, standard deviation {spread:.4f}")
    if options.write:
        from scripts.results import record_result

        words = f' --words "{options.words}"' if options.words else ""
        command = f"python scripts/bench/few_examples.py {options.name} --examples {options.examples}{words}"
        metrics = {"accuracy": mean, "standard_deviation": spread, "least": min(values), "most": max(values)}
        record_result(
            "text_classification", options.write, command=command, metrics=metrics, seconds=sum(s for _, s in found)
        )


if __name__ == "__main__":
    main()
