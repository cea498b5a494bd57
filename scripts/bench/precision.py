"""The loss of BLEU by each precision: a trained translation model with its linear maps packed in each of them.

python scripts/bench/precision.py CHECKPOINT DATA [--batch_size N] [--alone N] [--num_beams N] [--threads N]
                                  [--json FILE]

CHECKPOINT is the `model/` folder of a run, DATA a path as of `--data.val`, such as the prefix of val.en and val.de.
Reported are sacreBLEU, its difference from that of the plain model, and how many of the first --alone sentences have
the same translation alone and in their batch. Required: a loss of at most 0.3 BLEU in each precision. Exit 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, write_rows

from mmattn.linears import PRECISIONS
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.translation.metrics import score, signatures
from mmattn.tasks.translation.predict import load

MUST = 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--alone", type=int, default=100, help="number of sentences that are also translated one by one"
    )
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = load(given.checkpoint, "cpu").processor.options
    samples = TranslationDataset(given.data, **options).samples
    print(f"{len(samples)} sentences, {given.num_beams} beams, batches of {given.batch_size}; {machine()}")
    rows: list[dict[str, Any]] = []
    for precision in (None, *PRECISIONS):
        translator = load(given.checkpoint, "cpu", precision=precision)
        start = time.perf_counter()
        found = [t.translation for t in translator.predict(samples, given.batch_size, num_beams=given.num_beams)]
        seconds = time.perf_counter() - start
        few = samples[: given.alone]
        alone = [t.translation for t in translator.predict(few, 1, num_beams=given.num_beams)]
        same = sum(a == b for a, b in zip(alone, found, strict=False))
        bleu = score(found, [s.right_targets() for s in samples])["bleu"]
        lost = rows[0]["bleu"] - bleu if rows else 0.0
        rows.append({"precision": precision or "plain", "bleu": bleu, "lost": lost, "seconds": seconds})
        rows[-1] |= {"alone as in its batch": same, "alone": len(few), "holds": lost <= MUST}
        print(
            f"{rows[-1]['precision']:<9} BLEU {bleu:.2f}, lost {lost:+.2f}: {'holds' if lost <= MUST else 'FAILS'}; "
            f"{same} of {len(few)} alone as in their batch; {len(samples) / seconds:.0f} sentences/s",
            flush=True,
        )
    print(signatures()["bleu_signature"])
    write_rows(given.json, rows)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
