"""Predictor for translation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, is_broken, shorten
from mmattn.data.readers import decode_lines, is_json_lines, read_lines
from mmattn.tasks.common.seq2seq.data import PairSample
from mmattn.tasks.common.seq2seq.predictor import Item, PairPredictor
from mmattn.tasks.translation.data import TranslationDataset, TranslationSample
from mmattn.tasks.translation.formats import fields_of
from mmattn.tasks.translation.metrics import score


@dataclass
class TranslationPrediction:
    """The translation of one sentence."""

    id: str
    source: str
    translation: str
    score: float  # log p / length^length_penalty
    tokens_cut: int = 0  # number of truncated source tokens


@dataclass
class TranslationExplanation:
    """Attention of each word of a translation to the source words."""

    prediction: TranslationPrediction
    words: list[str]  # of the translation
    source_words: list[str]
    weights: Tensor  # (words, source words), rows sum to one
    truth: str | None = None  # a reference translation, if there is one

    def save(self, path: str | Path) -> None:
        """Write a PNG heatmap: translation words by source words."""
        from mmattn.plot import caption, heat_map

        if not self.words:
            raise DataError(f"item {self.prediction.id}", "a non-empty translation to explain", "an empty string")
        shown = slice(0, 60)  # more would be illegible
        title = caption(self.prediction.id, self.prediction.translation, self.truth)
        axes = (self.words[shown], self.source_words[shown])
        heat_map(self.weights[shown, shown], *axes, path, row_name="translation", col_name="source", title=title)


class TranslationPredictor(PairPredictor[TranslationPrediction]):
    """Predictor of a translation model.

    Items are sentences, or mappings with `source` (or the language's name, or `text`) and optionally `id`. `load` also
    takes `prefix`: T5's prefix of each sentence, required unless its config.json defines exactly one
    for translation.
    """

    task = "translation"
    plain = answer = "translation"
    graded_by = "chrF"
    cut_remark = "{} of the texts are longer than {} tokens and were truncated."

    def to_sample(self, item: Item, number: int) -> PairSample:
        if isinstance(item, PairSample):
            return item
        given: Mapping[str, Any] = {"source": item} if isinstance(item, str) else item
        fields = fields_of(given, str(number), self.languages)
        if fields is None or not isinstance(fields["source"], str) or is_broken(fields["source"]):
            found = f"the keys {', '.join(given)}" if fields is None else shorten(fields["source"])
            raise DataError(f"item {number}", f"a source sentence ({self.languages[0]})", found)
        return TranslationSample(fields["id"], fields["source"])

    def grade(self, item: Any, truth: str, prediction: TranslationPrediction) -> float:
        return score([prediction.translation], [item.right_targets()])["chrf"] / 100

    @property
    def languages(self) -> tuple[str, str]:
        """Source and target language."""
        options = self.processor.options
        return options.get("source_lang", "source"), options.get("target_lang", "target")

    def written(self, sample: PairSample, text: str, score: float, cut: int) -> TranslationPrediction:
        return TranslationPrediction(sample.id, sample.source, " ".join(text.split()), score, cut)

    def explain_written(
        self, samples: Sequence[PairSample], written: Sequence[TranslationPrediction]
    ) -> list[TranslationExplanation]:
        """Align given translations with their sources in one forward pass with teacher forcing."""
        forced = [TranslationSample(s.id, s.source, w.translation) for s, w in zip(samples, written, strict=True)]
        found = []
        for sample, translation, weights in zip(forced, written, self.alignments(forced), strict=True):
            source_words, columns = self.processor.source.words(sample.source)
            words, rows = self.processor.target.words(sample.target)
            shown = weights[: len(rows), : len(columns)]
            columns, rows = columns[: shown.shape[1]], rows[: shown.shape[0]]
            joined = torch.zeros(len(rows), len(source_words)).index_add_(1, torch.tensor(columns).long(), shown)
            merged = torch.zeros(len(words), len(source_words)).index_add_(0, torch.tensor(rows).long(), joined)
            merged = merged / merged.sum(-1, keepdim=True).clamp_min(1e-9)
            found.append(TranslationExplanation(translation, words, source_words, merged))
        return found

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """Read the sentences of a JSONL file, or one sentence a line from any other file or standard input."""
        if is_json_lines(path):
            return TranslationDataset(path, *self.languages, on_error=on_error, require_labels=False).samples
        lines = decode_lines(sys.stdin.buffer.read(), "standard input") if path == "-" else read_lines(path)
        return [TranslationSample(str(n), line) for n, line in enumerate(lines, start=1)]

    def demo_samples(self) -> Sequence[PairSample]:
        """The first samples of the built-in test split."""
        from mmattn.tasks.translation.demo import make

        return make("test", 6)


load = TranslationPredictor.load
