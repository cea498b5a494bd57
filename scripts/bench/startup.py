"""The startup time of commands: fresh processes of this checkout and of another one, interleaved.

    python scripts/bench/startup.py [--against CHECKOUT] [--rounds 15]

Without --against the checkout is compared with itself, which shows the size of insignificant differences.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import Run, arguments, interleave, machine, ratio, write_rows

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "python alone": ["-c", ""],
    "import mmattn": ["-c", "import mmattn"],
    "import the core": ["-c", "from mmattn import MultiHeadAttention, Encoder, capture"],
    "usage of a task": ["-m", "tasks.vqa"],
    "help of fit": ["-m", "tasks.vqa", "fit", "--help"],
    "help of predict": ["-m", "tasks.vqa", "predict", "--help"],
    "head of a task": ["-c", "from tasks.vqa import VQAHead"],
    "answers of VQA": ["-m", "tasks.vqa", "predict", "--input", "demo"],
    "answers of translation": ["-m", "tasks.translation", "predict", "--text", "a dog"],
}


def command(words: list[str], checkout: Path) -> Run:
    """A fresh Python process of a checkout with the given command-line words."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

    def run() -> None:
        subprocess.run([sys.executable, *words], cwd=checkout, env=environment, check=True, capture_output=True)

    return run


def main() -> None:
    """Print a row for each case: seconds here, and the ratio to the other checkout."""
    options = arguments(__doc__, against="")
    other = Path(options.against).resolve() if options.against else ROOT
    print(f"{machine()}; seconds of the whole process, and the ratio to {'the other' if options.against else 'itself'}")
    rows = []
    for name, words in CASES.items():
        seconds = interleave({"here": command(words, ROOT), "there": command(words, other)}, options.rounds, warmup=1)
        found = ratio(seconds, "here", "there")
        best = sorted(seconds["here"])[options.rounds // 2]
        print(f"{name:<24} {best:7.3f} s  {found}", flush=True)
        rows.append({"case": name, "seconds": best, "ratio": found})
    write_rows(options.json, rows)


if __name__ == "__main__":
    main()
