"""Predictor for summarization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.files import some_below
from mmattn.data.readers import read_text
from mmattn.tasks.common.seq2seq.data import PairSample
from mmattn.tasks.common.seq2seq.predictor import Item, PairPredictor
from mmattn.tasks.summarization.data import SummaryDataset, SummarySample
from mmattn.tasks.summarization.formats import TABLES
from mmattn.tasks.summarization.metrics import score
from mmattn.tasks.summarization.model import SummarizationModel


@dataclass
class SummarizationPrediction:
    """The summary of one document."""

    id: str
    summary: str
    score: float  # log p / length^length_penalty
    tokens_cut: int = 0  # number of truncated document tokens


@dataclass
class SummarizationExplanation:
    """Source tokens of a summary."""

    prediction: SummarizationPrediction
    document: str
    spans: list[tuple[int, int]]  # character spans of the document's tokens, after truncation
    words: list[str]  # tokens of the summary, the end token last
    word_spans: list[tuple[int, int]]  # their character spans in the summary
    weights: Tensor  # (L, S), source weights of each; rows sum to one, without the document's end token
    truth: str | None = None  # a reference summary, if there is one

    def peak(self, span: tuple[int, int]) -> tuple[int, int]:
        """Document span of the token with the largest weight for a character span of the summary."""
        rows = [n for n, (start, end) in enumerate(self.word_spans) if start < span[1] and end > span[0]]
        return self.spans[int(self.weights[rows].sum(0).argmax())]

    def save(self, path: str | Path) -> None:
        """Write a PNG: the document with the sources shaded, and a heatmap of summary words by document words.

        A document word has the sum of its tokens' weights; a summary word the mean of its tokens' rows.
        """
        from mmattn.plot import caption
        from mmattn.tasks.summarization.plot import by_words, draw

        summary, last = self.prediction.summary, self.word_spans[-1]
        tokens = len(self.words) - (last[0] == last[1])  # without the end token
        rows, members = by_words(summary, self.word_spans[:tokens])
        columns, joins = by_words(self.document, self.spans)
        means = (members / members.sum(0)).T @ self.weights[:tokens]  # (words, S)
        weights = torch.cat([means, self.weights[tokens:]]) @ joins  # (words and the end, words)
        words = [*(summary[start:end] for start, end in rows), *self.words[tokens:]]
        title = caption(self.prediction.id, summary or "(nothing)", self.truth, 9.0)
        draw(self.document, columns, words, weights, title, path)


class SummarizationPredictor(PairPredictor[SummarizationPrediction]):
    """Predictor of a summarization model.

    Items are texts, or mappings with `document` (or `text`) and optionally `id`. `load` also takes `prefix`: T5's
    prefix of each document, which overrides the one in its config.json.
    """

    task = "summarization"
    answer, graded_by = "summary", "ROUGE-L"
    cut_remark = "{} of the documents are longer than {} tokens and were truncated."

    def to_sample(self, item: Item, number: int) -> PairSample:
        if not isinstance(item, PairSample):
            given: Mapping[str, Any] = {"document": item} if isinstance(item, str) else item
            name, document = str(given.get("id", number)), given.get("document", given.get("text"))
            if not isinstance(document, str):
                raise DataError(f"item {name}", "the key document, a text", ", ".join(sorted(given)) or "none")
            item = SummarySample(name, document)
        if not item.source.strip():
            raise DataError(f"item {item.id}", "a document", "an empty one")
        return item

    def grade(self, item: Any, truth: str, prediction: SummarizationPrediction) -> float:
        return score([prediction.summary], [item.right_targets()])["rougeL"]

    def written(self, sample: PairSample, text: str, score: float, cut: int) -> SummarizationPrediction:
        return SummarizationPrediction(sample.id, text, round(score, 4), cut)

    def explain_written(
        self, samples: Sequence[PairSample], written: Sequence[SummarizationPrediction]
    ) -> list[SummarizationExplanation]:
        """Explain given summaries by one pass under teacher forcing."""
        forced = [SummarySample(s.id, s.source, w.summary or " ") for s, w in zip(samples, written, strict=True)]
        found = []
        for sample, summary, weights in zip(forced, written, self.alignments(forced), strict=True):
            spans = self.processor.document_tokens(sample.source)
            rows = weights[:, : len(spans)]
            rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-9)
            placed, end = self.processor.target.spans(sample.target), len(sample.target)
            words = [*(sample.target[first:last] for first, last in placed), "(end)"][: len(rows)]
            word_spans = [*placed, (end, end)][: len(rows)]
            found.append(SummarizationExplanation(summary, sample.source, spans, words, word_spans, rows))
        return found

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the encoder and the decoder's step, with its cache as flat tensors."""
        from mmattn.tasks.summarization.export import export_summarization

        own = isinstance(self.model, SummarizationModel)  # or a public network
        return export_summarization(self.model, folder, formats) if own else super().export_graphs(folder, formats)

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """List documents: rows of a JSONL, CSV or TSV file, a folder's .txt files at any depth, or any other file."""
        place = Path(path)
        if place.is_file() and place.suffix.lower() in TABLES:
            return SummaryDataset(path, on_error=on_error, require_labels=False).samples
        files = some_below(place, (".txt",), ".txt files") if place.is_dir() else [(place.name, place)]
        return [SummarySample(name, read_text(file)) for name, file in files]

    def demo_samples(self) -> Sequence[PairSample]:
        """The first samples of the built-in test split."""
        from mmattn.tasks.summarization.demo import make

        return make("test", size=6)


load = SummarizationPredictor.load
