"""The pointing game: how often the peak of an explanation lies in the region that determines the prediction.

    python scripts/pointing_game.py [vqa] [translation] [summarization] ... [--checkpoint DIR]
    python scripts/pointing_game.py asr --checkpoint DIR --input MANIFEST  # recordings with true word boundaries

Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.2: the maximum of the map is a hit if
it lies in one of the true regions, up to a tolerance (15 pixels in the paper; here half a cell of the model's grid, the
resolution of its attention). Both figures are printed. The regions are those of the built-in test split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmattn.tasks.common.task import tasks


def main() -> None:
    """Print a row for each kind of item and for all."""
    games = {name: task for name, task in tasks().items() if task.localisation is not None}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(games), help=f"tasks, of {', '.join(games)} (default: all)")
    parser.add_argument("--checkpoint", help="a shipped folder (default: the one in the package)")
    parser.add_argument("--limit", type=int, help="maximum number of items")
    parser.add_argument("--input", help="asr: a manifest with `words`, instead of the built-in test split")
    options = parser.parse_args()
    unknown = [name for name in options.tasks if name not in games]
    if unknown or (options.input is not None and options.tasks != ["asr"]):
        parser.error(f"expected tasks of {', '.join(games)}, and --input with asr alone")
    for name in options.tasks:
        predictor = games[name].resolve("predictor").load(options.checkpoint or f"{name}/demo")
        given = {} if options.input is None else {"path": options.input}
        game = games[name].resolve("localisation")(predictor, options.limit, **given)
        for note in game.notes:
            print(f"{name}: {note}")
        rows = {kind: game.rows[kind] for kind in sorted(game.rows)}
        rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
        print(f"{name:<18} {'items':>6} {'on it':>8} {game.tolerance:>20}")
        for kind, (items, strict, near) in rows.items():
            print(f"{kind:<18} {items:>6} {strict / items:>8.4f} {near / items:>20.4f}")


if __name__ == "__main__":
    main()
