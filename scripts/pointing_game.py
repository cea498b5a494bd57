"""The pointing game: how often the peak of an explanation lies on what the answer rests on.

    python scripts/pointing_game.py [vqa] [--checkpoint DIR]

Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.2: the map's maximum is a hit when it
lies in one of the true regions, give or take a tolerance (there 15 pixels; here half a cell of the model's grid, the
resolution that its attention has). Both figures are printed. The truth is that of the built-in test part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def vqa(checkpoint: str | None, limit: int | None) -> dict[str, tuple[int, int, int]]:
    """Per family of questions: (questions, hits, hits within the tolerance)."""
    from data.demo.vqa import make
    from tasks.vqa.losses import peaks_in_regions
    from tasks.vqa.predict import load

    predictor = load(checkpoint)
    samples = [sample for sample in make("test") if sample.regions][:limit]
    counts: dict[str, list[int]] = {}
    for start in range(0, len(samples), 360):
        part = samples[start : start + 360]
        for sample, found in zip(part, predictor.explain_batch(part), strict=True):
            row = counts.setdefault(sample.question_type, [0, 0, 0])
            half = (0.5 / found.attention.shape[1], 0.5 / found.attention.shape[0])
            row[0] += 1
            row[1] += peaks_in_regions(found.attention, sample.regions, (0.0, 0.0))
            row[2] += peaks_in_regions(found.attention, sample.regions, half)
    return {family: (row[0], row[1], row[2]) for family, row in sorted(counts.items())}


GAMES = {"vqa": vqa}


def main() -> None:
    """Print a row a family and the whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(GAMES), help=f"of {', '.join(GAMES)} (default: all)")
    parser.add_argument("--checkpoint", help="a shipped folder (default: the one in the package)")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    options = parser.parse_args()
    for task in options.tasks:
        rows = GAMES[task](options.checkpoint, options.limit)
        rows["all"] = tuple(sum(row[n] for row in rows.values()) for n in range(3))  # type: ignore[assignment]
        print(f"{task:<18} {'items':>6} {'on it':>8} {'within half a cell':>20}")
        for name, (items, strict, near) in rows.items():
            print(f"{name:<18} {items:>6} {strict / items:>8.4f} {near / items:>20.4f}")


if __name__ == "__main__":
    main()
