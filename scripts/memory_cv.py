"""What a memory of examples knows, in cross-validation over the training pictures: with the pictures, and without.

    python scripts/memory_cv.py [--config configs/vqa_daquar.yaml] [--folds 5]

Each fold's questions are answered by `ExampleMemory` alone, filled with the other folds. Questions of one picture stay
together, and the standard error of the difference is over pictures. A validation part of some hundred questions
tells less than a point of accuracy apart; this uses all training questions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402

from tasks.vqa.memory import ExampleMemory  # noqa: E402
from tasks.vqa.module import VQADataModule  # noqa: E402


def right(config: dict[str, Any], hide: str | None, folds: int) -> tuple[Tensor, Tensor, int]:
    """The soft score of each answer (M,), its picture (M,), and how many training questions there are in all."""
    data = VQADataModule(**{**config["data"], "hide": hide})
    total = len(data.dataset("train"))
    data.processor = data.make_processor(data.dataset("train"))
    sizes = data.model_sizes()
    data._datasets["train"] = data.prepare_dataset(data.dataset("train"), "train")
    pictures, index, ids, mask, targets = data.examples()
    options = {name: config["model"][f"memory_{name}"] for name in ("picture", "ridge")}
    fold = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[index] % folds
    scores = torch.zeros(len(targets))
    for held in range(folds):
        keep, out = fold != held, fold == held
        size = (int(keep.sum()), *sizes["memory_size"][1:])
        memory = ExampleMemory(sizes["vocab_size"], sizes["num_answers"], ids.shape[1], size, **options)
        memory.fit(pictures, index[keep], ids[keep], mask[keep], targets[keep])
        best = (memory.kernel(pictures, ids[out], mask[out], index[out]) @ memory.values.double()).argmax(1)
        scores[out] = targets[out].gather(1, best[:, None])[:, 0]
    return scores, index, total


def main() -> None:
    """Print both accuracies, their difference and its standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "vqa_daquar.yaml"))
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    (full, picture, total), (words, _, _) = (right(config, hide, options.folds) for hide in (None, "image"))
    gain = full - words
    by_picture = torch.zeros(int(picture.max()) + 1).index_add_(0, picture, gain)
    error = (by_picture.var() * len(by_picture)).sqrt()
    print(f"with pictures {full.sum() / total:.4f}, without {words.sum() / total:.4f} of {total:,} questions")
    print(f"difference {gain.sum():+.0f} questions, standard error by picture {error:.1f}")


if __name__ == "__main__":
    main()
