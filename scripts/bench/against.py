"""Run a benchmark of this checkout and of another one alternately, to measure the cost of a refactoring.

    python scripts/bench/against.py CHECKOUT attention.py [--times 4] [--rounds 9 ...]

Each process measures the project against its yardstick. The ratios to the yardstick are compared, since they do not
depend on the machine's speed. For each row and ratio it prints the median here over the median there, and its smallest
and largest value over pairs of consecutive runs: below 1 is faster for times, above 1 for speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(checkout: Path, bench: str, words: list[str]) -> list[dict[str, Any]]:
    """Run a benchmark of a checkout and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        command = [sys.executable, f"scripts/bench/{bench}", *words, "--json", str(path)]
        subprocess.run(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True)
        return json.loads(path.read_text())["rows"]  # type: ignore[no-any-return]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The ratios by the row's words and the ratio's name."""
    found = {}
    for row in rows:
        name = " ".join(str(value) for value in row.values() if type(value) in (str, int))  # no verdicts
        found |= {f"{name}: {key}": value["median"] for key, value in row.items() if isinstance(value, dict)}
    return found


def main() -> None:
    """Print a row for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("bench")
    parser.add_argument("--times", type=int, default=4, help="runs of each checkout")
    options, words = parser.parse_known_args()
    here, there = [], []
    for turn in range(options.times):
        order = ((ROOT, here), (options.checkout.resolve(), there))
        for checkout, into in order if turn % 2 == 0 else order[::-1]:
            into.append(ratios(run(checkout, options.bench, words)))
    for name in here[0]:
        pairs = [a[name] / b[name] for a, b in zip(here, there, strict=True)]
        middle = statistics.median(a[name] for a in here) / statistics.median(b[name] for b in there)
        print(f"{name:<60} {middle:6.3f} [{min(pairs):.3f}, {max(pairs):.3f}]")


if __name__ == "__main__":
    main()
