"""Predictor for summarization."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.files import some_below
from mmattn.data.readers import read_text
from mmattn.data.text.sentences import Span
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.seq2seq.data import PairSample
from mmattn.tasks.common.seq2seq.predictor import Item, PairPredictor
from mmattn.tasks.common.shading import WIDTH, Words, shaded_html, shaded_picture
from mmattn.tasks.summarization.data import SummaryBatch, SummaryDataset, SummarySample
from mmattn.tasks.summarization.extract import NUM_SENTENCES, Extract, check_extractive, extract
from mmattn.tasks.summarization.extractive import ExtractiveModel
from mmattn.tasks.summarization.formats import TABLES
from mmattn.tasks.summarization.metrics import score
from mmattn.tasks.summarization.model import SummarizationModel


@dataclass
class SummarizationPrediction:
    """The summary of one document."""

    id: str
    summary: str
    score: float  # log p / length^length_penalty; of an extractive model the mean log p of the sentences
    tokens_cut: int = 0  # number of truncated document tokens
    sentences: list[Span] = field(default_factory=list)  # characters of the chosen ones, by an extractive model


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


@dataclass
class ExtractionExplanation:
    """The probability of each sentence of a document to be the best summary."""

    prediction: SummarizationPrediction
    words: Words  # each has its sentence's probability
    truth: str | None = None  # a reference summary, if there is one

    def save(self, path: str | Path) -> None:
        """Write a PNG: the document with its sentences shaded by probability and the chosen ones outlined."""
        from mmattn.plot import caption

        title = caption(self.prediction.id, self.prediction.summary or "(nothing)", self.truth, WIDTH)
        shaded_picture(self.words, path, title)

    def html(self) -> str:
        """The same as a part of an HTML page."""
        from html import escape

        true = "" if self.truth is None else f"<p>reference: {escape(self.truth)}</p>"
        return f"<section><h3>{escape(self.prediction.id)}</h3>{true}{shaded_html(self.words)}</section>"


class SummarizationPredictor(PairPredictor[SummarizationPrediction]):
    """Predictor of a summarization model.

    Items are texts, or mappings with `document` (or `text`) and optionally `id`. `load` also takes `prefix`: T5's
    prefix of each document, which overrides the one in its config.json.
    """

    task = "summarization"
    answer, graded_by = "summary", "ROUGE-L"
    cut_remark = "{} of the documents are longer than {} tokens and were truncated."

    @property
    def is_extractive(self) -> bool:
        """Whether the model chooses sentences of the document."""
        return isinstance(self.model, ExtractiveModel)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_extractive:
            check_extractive(options, "--{}")
            return dict(options)
        if "num_sentences" in options:
            reason = "which generates words; leave it out"
            raise ConfigError(f"--num_sentences: expected none with this model, {reason}.")
        return super().check_options(options)

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        return not self.is_extractive and super().can_stream(options)

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

    def predict_batch(self, samples: Sequence[PairSample], batch: Any, **options: Any) -> list[SummarizationPrediction]:
        """Summarize each document.

        Args:
            samples: The samples of the batch.
            batch: Their batch.
            options: Of an extractive model num_sentences, the maximum number of sentences; of others see
                `PairPredictor.predict_batch`.
        """
        if not self.is_extractive:
            return super().predict_batch(samples, batch, **options)
        self.cut += int((batch.cut > 0).sum())
        found = zip(samples, self._extract(batch, **options), batch.cut.tolist(), strict=True)
        return [self._extracted(sample, one, cut) for sample, one, cut in found]

    def _extract(self, batch: SummaryBatch, num_sentences: int | None = None) -> list[Extract]:
        saved = self.processor.options.get("search", {}).get("num_sentences", NUM_SENTENCES)
        with torch.no_grad():
            logits = self.model(batch.source_ids, batch.source_mask, batch.sentence_starts).logits
        return extract(logits, batch, num_sentences or saved)

    def _extracted(self, sample: PairSample, found: Extract, cut: int) -> SummarizationPrediction:
        return SummarizationPrediction(sample.id, found.summary, round(found.score, 4), cut, found.spans)

    def explain_batch(self, samples: Sequence[PairSample], batch: Any, **options: Any) -> list[Any]:
        """Explain the summary of each document; options as for `predict_batch`."""
        if not self.is_extractive:
            return super().explain_batch(samples, batch, **options)
        explanations = []
        rows = zip(samples, self._extract(batch, **options), batch.sentences, batch.cut.tolist(), strict=True)
        for sample, found, sentences, cut in rows:
            words = [match.span() for match in re.finditer(r"\S+", sample.source)]
            ends = [end for _, end in sentences]
            places = [bisect_left(ends, end) for _, end in words]  # behind the input's end: none
            weights = torch.tensor([*found.probabilities, 0.0])[places]
            shown = Words(sample.source, words, weights, found.spans)
            explanations.append(ExtractionExplanation(self._extracted(sample, found, cut), shown))
        return explanations

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
        """Export the encoder and the decoder's step, with its cache as flat tensors; or an extractive model whole."""
        from mmattn.tasks.summarization.export import export_extractive, export_summarization

        if isinstance(self.model, ExtractiveModel):
            return export_extractive(self.model, folder, formats)
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
