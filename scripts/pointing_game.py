"""The pointing game: how often the peak of an explanation lies on what the answer rests on.

    python scripts/pointing_game.py [vqa] [translation] [summarization] ... [--checkpoint DIR]
    python scripts/pointing_game.py asr --checkpoint DIR --input MANIFEST  # recordings with true borders

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
    from mmattn.tasks.vqa.demo import make
    from mmattn.tasks.vqa.losses import peaks_in_regions
    from mmattn.tasks.vqa.predict import load

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


def translation(checkpoint: str | None, limit: int | None) -> dict[str, tuple[int, int, int]]:
    """Per kind of word: (words whose source is known, peaks on it, peaks on it or on a word beside it).

    The drawn map of the true translation: one pass under teacher forcing, words of several tokens joined.
    """
    from mmattn.tasks.translation.demo import make, word_kind
    from mmattn.tasks.translation.predict import Translation, load

    predictor = load(checkpoint)
    samples = make("test", limit)
    counts: dict[str, list[int]] = {}
    for start in range(0, len(samples), 100):
        part = samples[start : start + 100]
        forced = [Translation(sample.id, sample.source, sample.target, 0.0) for sample in part]
        for sample, found in zip(part, predictor.explain_written(part, forced), strict=True):
            peaks, words = found.weights.argmax(1).tolist(), sample.source.split()
            for target, source in sample.alignment:
                row = counts.setdefault(word_kind(words[source]), [0, 0, 0])
                row[0] += 1
                row[1] += peaks[target] == source
                row[2] += abs(peaks[target] - source) <= 1
    return {kind: (row[0], row[1], row[2]) for kind, row in sorted(counts.items())}


def summarization(checkpoint: str | None, limit: int | None) -> dict[str, tuple[int, int, int]]:
    """Per kind of word: (words whose source is known, peaks on it, peaks on it or within eight signs of it).

    The drawn map of the true summary: one pass under teacher forcing, tokens of a word joined.
    """
    from mmattn.tasks.summarization.demo import make
    from mmattn.tasks.summarization.predict import Summary, load

    predictor = load(checkpoint)
    samples = make("test")[:limit]
    counts: dict[str, list[int]] = {}
    for start in range(0, len(samples), 50):
        part = samples[start : start + 50]
        forced = [Summary(sample.id, sample.target, 0.0) for sample in part]
        for sample, found in zip(part, predictor.explain_written(part, forced), strict=True):
            for word, places in sample.origins:
                peak, text = found.peak(word)[0], sample.target[slice(*word)]
                kind = "number" if text.isdigit() else "name" if text[0].isupper() else "thing"
                row = counts.setdefault(kind, [0, 0, 0])
                row[0] += 1
                row[1] += any(a <= peak < b for a, b in places)
                row[2] += any(a - 8 <= peak < b + 8 for a, b in places)
    return {kind: (row[0], row[1], row[2]) for kind, row in sorted(counts.items())}


def classification(checkpoint: str | None, limit: int | None) -> dict[str, tuple[int, int, int]]:
    """Per class: (pictures, peaks on the circle or the square, peaks within the tolerance)."""
    from mmattn.tasks.classification.demo import make
    from mmattn.tasks.classification.predict import load
    from mmattn.tasks.vqa.losses import peaks_in_regions

    predictor = load(checkpoint)
    samples = make("test", limit)
    counts: dict[str, list[int]] = {}
    for start in range(0, len(samples), 120):
        part = samples[start : start + 120]
        for sample, found in zip(part, predictor.explain_batch(part), strict=True):
            row = counts.setdefault(sample.labels[0], [0, 0, 0])
            half = (0.5 / found.relevance.shape[1], 0.5 / found.relevance.shape[0])
            row[0] += 1
            row[1] += peaks_in_regions(found.relevance, sample.regions, (0.0, 0.0))
            row[2] += peaks_in_regions(found.relevance, sample.regions, half)
    return {label: (row[0], row[1], row[2]) for label, row in sorted(counts.items())}


def segmentation(checkpoint: str | None, limit: int | None) -> dict[str, tuple[int, int, int]]:
    """Per class of things: (scenes with it, peaks of what spoke for it on it, peaks within one pixel of it)."""
    import torch
    from torch.nn.functional import max_pool2d

    from mmattn.tasks.segmentation.data import collate
    from mmattn.tasks.segmentation.demo import NAMES, THINGS, make
    from mmattn.tasks.segmentation.predict import load

    predictor = load(checkpoint)
    samples = make("test", limit)
    counts = {name: [0, 0, 0] for name in THINGS}
    for start in range(0, len(samples), 50):
        batch = collate(samples[start : start + 50], predictor.processor)
        for name in THINGS:
            true = batch.labels == NAMES.index(name)  # (B, H, W)
            there = true.flatten(1).any(1)
            pixels, true = batch.pixel_values[there].to(predictor.device), true[there].float()
            _, relevance = predictor.relevance(pixels, [NAMES.index(name)] * len(pixels))
            peaks = relevance.flatten(1).argmax(1).cpu()
            near = max_pool2d(true[:, None], 3, 1, 1)[:, 0]
            hits = [int(m.flatten(1)[torch.arange(len(m)), peaks].sum()) for m in (true, near)]
            counts[name] = [a + b for a, b in zip(counts[name], (len(pixels), *hits), strict=True)]
    return {name: (row[0], row[1], row[2]) for name, row in counts.items()}


def asr(checkpoint: str | None, limit: int | None, path: str | None = None) -> dict[str, tuple[int, int, int]]:
    """Per voice: (words, middles of their drawn times within the true word, words whose borders are both near).

    The true text's words, by forced alignment. The median error of all starts and ends is printed, too.
    """
    from statistics import median

    from mmattn.tasks.asr.demo import make
    from mmattn.tasks.asr.predict import load
    from mmattn.tasks.asr.processor import ASRDataset

    predictor = load(checkpoint)
    samples = make("test", limit) if path is None else ASRDataset(path).samples[:limit]
    counts: dict[str, list[int]] = {}
    errors: list[float] = []
    for sample, words in zip(samples, predictor.aligned(samples), strict=True):
        row = counts.setdefault(sample.speaker, [0, 0, 0])
        for word, (_, start, end) in zip(words, sample.words, strict=True):
            off = (abs(word.start - start), abs(word.end - end))
            errors += off
            row[0] += 1
            row[1] += start <= (word.start + word.end) / 2 < end
            row[2] += max(off) <= 0.08
    print(f"asr: median error of starts and ends {1000 * median(errors):.0f} ms")
    return {voice: (row[0], row[1], row[2]) for voice, row in sorted(counts.items())}


GAMES = {
    "asr": asr,
    "vqa": vqa,
    "translation": translation,
    "summarization": summarization,
    "classification": classification,
    "segmentation": segmentation,
}


def main() -> None:
    """Print a row a family and the whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(GAMES), help=f"of {', '.join(GAMES)} (default: all)")
    parser.add_argument("--checkpoint", help="a shipped folder (default: the one in the package)")
    parser.add_argument("--limit", type=int, help="only the first so many questions or sentences")
    parser.add_argument("--input", help="asr: a manifest with `words`, in place of the built-in test part")
    options = parser.parse_args()
    for task in options.tasks:
        given = (options.checkpoint, options.limit)
        rows = asr(*given, options.input) if task == "asr" else GAMES[task](*given)
        rows["all"] = tuple(sum(row[n] for row in rows.values()) for n in range(3))  # type: ignore[assignment]
        near_it = {
            "asr": "borders within 80 ms",
            "classification": "within half a cell",
            "segmentation": "or a pixel beside it",
            "vqa": "within half a cell",
            "translation": "or a word beside it",
            "summarization": "or eight signs off",
        }[task]
        print(f"{task:<18} {'items':>6} {'on it':>8} {near_it:>20}")
        for name, (items, strict, near) in rows.items():
            print(f"{name:<18} {items:>6} {strict / items:>8.4f} {near / items:>20.4f}")


if __name__ == "__main__":
    main()
