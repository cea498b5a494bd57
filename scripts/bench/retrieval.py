"""Index a corpus of synthetic passages, and ask it questions: seconds, peak memory and recall.

    python scripts/bench/retrieval.py [--passages 100000] [--questions 1000] [--embedded 0] [--folder DIR] [--json FILE]

Words are drawn from a Zipf distribution over 200,000 words; passages have 30 to 200 of them. A question has eight words
of a passage, whatever their frequency; that passage is the right one. Each stage runs in a process of its own, so that
its peak memory (ru_maxrss, with the mapped parts of files) is its own: writing the corpus, indexing, and asking.
`--embedded N` does the same with N passages and MiniLM's embeddings. Required of BM25: recall@5 of at least 0.90, and
less than 1 GB in every stage.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmattn.tasks.common.retrieval.corpus import ENCODER, open_corpus, recall_at_k
from mmattn.tasks.common.weights import named_folder

VOCABULARY, EXPONENT = 200_000, 1.07
SHORTEST, LONGEST, ASKED = 30, 200, 8  # words
LIMIT, RECALL = 1e9, 0.90
CORPUS, QUESTIONS = "corpus.jsonl", "questions.json"
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def spell(number: int) -> str:
    """A word: frequent ones are short."""
    found = ""
    while number >= 0:
        number, letter = divmod(number, len(LETTERS))
        found, number = found + LETTERS[letter], number - 1
    return found


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Passages of words whose frequencies follow Zipf's law."""
    draw = np.random.default_rng(seed)
    words = np.array([spell(number) for number in range(VOCABULARY)])
    shares = (np.arange(VOCABULARY) + 2.7) ** -EXPONENT  # Mandelbrot's offset
    bounds = np.cumsum(shares / shares.sum())
    for _ in range(count):
        drawn = np.searchsorted(bounds, draw.random(draw.integers(SHORTEST, LONGEST + 1)))
        yield " ".join(words[np.minimum(drawn, VOCABULARY - 1)]) + "."


def write(folder: Path, passages: int, questions: int) -> None:
    """Write the corpus, and questions about passages that are evenly spread over it."""
    draw, asked, every = np.random.default_rng(1), [], max(1, passages // questions)
    with (folder / CORPUS).open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts(passages)):
            file.write(json.dumps({"text": text, "id": number}) + "\n")
            if number % every == 0 and len(asked) < questions:
                words = text.rstrip(".").split()
                picked = draw.choice(len(words), ASKED, replace=False)
                asked.append((" ".join(words[place] for place in picked), text))
    (folder / QUESTIONS).write_text(json.dumps(asked), encoding="utf-8")


def run(stage: str, kind: str, folder: Path, passages: int, questions: int) -> dict[str, Any]:
    """Run a stage in this process and return its figures."""
    start = time.perf_counter()
    found: dict[str, Any] = {"stage": stage, "kind": kind, "passages": passages}
    if stage == "write":
        write(folder, passages, questions)
    else:
        corpus = open_corpus(folder / CORPUS, kind, progress=False)
        assert len(corpus) == passages
        if stage == "index":
            found["disk"] = sum(file.stat().st_size for file in corpus.folder.rglob("*") if file.is_file())
        else:
            found["opening"], start = time.perf_counter() - start, time.perf_counter()
            pairs = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
            recall = recall_at_k(corpus, [question for question, _ in pairs], [text for _, text in pairs])
            found |= {"questions": len(pairs), **{f"recall@{k}": value for k, value in recall.items()}}
    found["seconds"] = time.perf_counter() - start
    return found | {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def measure(stage: str, kind: str, folder: Path, passages: int, questions: int) -> dict[str, Any]:
    """Run a stage in a new process, and print its figures."""
    words = ["--stage", stage, "--kind", kind, "--folder", str(folder)]
    words += ["--passages", str(passages), "--questions", str(questions)]
    environment = os.environ | {"MMATTN_CACHE": str(folder)}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, check=True, stdout=subprocess.PIPE)
    row: dict[str, Any] = json.loads(done.stdout)
    about = [f"{row['seconds']:>8.1f} s {row['bytes'] / 1e6:>8,.0f} MB"]
    about += [f"{row['disk'] / 1e6:,.0f} MB on disk"] if "disk" in row else []
    about += [f"opened in {row['opening']:.2f} s, {row['questions']:,} questions"] if "opening" in row else []
    about += [f"{key} {value:.3f}" for key, value in row.items() if key.startswith("recall@")]
    print(f"{stage:<6} {kind:<11} {row['passages']:>8,} passages {', '.join(about)}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--embedded", type=int, default=0, help="passages that are also embedded (MiniLM)")
    parser.add_argument("--folder", type=Path, help="where the corpus is written (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--stage", choices=("write", "index", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="bm25", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(run(given.stage, given.kind, given.folder, given.passages, given.questions)))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        for kind, passages in (("bm25", given.passages), ("embeddings", given.embedded)):
            if passages:
                folder = Path(scratch, kind)
                folder.mkdir()  # it is also the cache
                if kind == "embeddings":
                    (folder / ENCODER).symlink_to(named_folder(ENCODER).resolve())
                questions = min(given.questions, passages)
                rows += [measure(stage, kind, folder, passages, questions) for stage in ("write", "index", "ask")]
    if given.json is not None:
        given.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    failed = [
        f"{row['stage']} {row['kind']}"
        for row in rows
        if row["kind"] == "bm25" and (row["bytes"] > LIMIT or row.get("recall@5", 1.0) < RECALL)
    ]
    print(f"failed: {', '.join(failed)}" if failed else "recall and memory are as required")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
