"""Predictions and explanations of question answering, over one text or a corpus of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, Problems
from mmattn.data.readers import has_rows, read_rows
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.items import name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.shading import WIDTH, Words, shaded_html, shaded_picture
from mmattn.tasks.qa.data import QABatch, QADataset, QASample
from mmattn.tasks.qa.explain import word_relevance
from mmattn.tasks.qa.metrics import exact_match, f1
from mmattn.tasks.qa.spans import Candidates, candidates, log_normalizers, score_windows

Item = Mapping[str, Any] | QASample
PASSAGES = 5  # that are read of a corpus


@dataclass
class QAAnswer:
    """A possible answer and its place in the context."""

    answer: str  # "" if the context has none
    score: float  # probability of its first times that of its last token, 0..1
    start: int  # its first character in the context, and the one behind its last; -1 if there is none
    end: int
    source: str = ""  # where the context is from, if it was found in a corpus


@dataclass
class QAPrediction(QAAnswer):
    """The predicted answer to a question."""

    id: str = ""
    question: str = ""
    alternatives: list[QAAnswer] = field(default_factory=list)  # the next most probable answers
    passage: str = ""  # the context, if it was found in a corpus


@dataclass
class QAExplanation:
    """The relevance of the context's words for a predicted answer."""

    prediction: QAPrediction
    words: Words
    truth: str | None = None  # the answers, if they are known

    def _answer(self) -> str:
        return f"{self.prediction.answer or 'no answer'} ({self.prediction.score:.2f})"

    def save(self, path: str | Path) -> None:
        """Write a PNG of the context with its words shaded by relevance and the answer outlined."""
        from mmattn.plot import caption

        name = ": ".join(filter(None, (self.prediction.id, self.prediction.question)))
        title = caption(name, self._answer(), self.truth, WIDTH)
        shaded_picture(self.words, path, title)

    def html(self) -> str:
        """The same as a part of an HTML page."""
        from html import escape

        true = "" if self.truth is None else f"; true: {self.truth}"
        head = f"<h3>{escape(self.prediction.question)}</h3><p>predicted: {escape(self._answer() + true)}</p>"
        return f"<section>{head}{shaded_html(self.words)}</section>"


class QAPredictor(Predictor[Item, QAPrediction]):
    """Predictor of question answering.

    Items are mappings with `question`, `context` and, optionally, `id`. With the option `corpus`, a file or folder of
    texts (`mmattn.tasks.common.retrieval`), they have no context: the best passages are read, and the answers of all
    compared.
    """

    task = "qa"
    answer, graded_by = "answer", "F1"
    lookahead = 8
    corpus: Any = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Of questions over a corpus whose answers are known: f1, exact match, whether a passage contains the context.
        self.measured: list[tuple[float, float, bool]] = []

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        *given: Any,
        corpus: Any = None,
        retriever: str | None = None,
        **named: Any,
    ) -> Any:
        """Load a model; see `Predictor.load`.

        Args:
            source: See `mmattn.load`.
            given: See `Predictor.load`.
            corpus: File or folder of texts in which answers are searched, or a `Corpus`; None: items have a context.
            retriever: "bm25" or "embeddings"; None: "bm25".
            named: See `Predictor.load`.

        Raises:
            DataError: The corpus cannot be read.
        """
        if retriever is not None and corpus is None:
            raise ConfigError("retriever: expected a corpus, in which it searches; found none.")
        predictor = super().load(source, *given, **named)
        if corpus is not None:
            from mmattn.tasks.common.retrieval.corpus import Corpus, open_corpus

            kind = retriever or "bm25"
            predictor.corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus, kind)
        return predictor

    # Items ------------------------------------------------------------------------------------------------------------

    def to_sample(self, item: Item, number: int) -> QASample:
        if isinstance(item, QASample):
            return item
        wanted = ("question",) if self.corpus is not None else ("question", "context")
        if not isinstance(item, Mapping):
            raise DataError(f"item {number}", f"a mapping with {' and '.join(wanted)}", type(item).__name__)
        name = name_of(item, number, wanted)
        sample = QASample(name, str(item["question"]), str(item.get("context") or ""))
        given = {"question": sample.question} | ({} if self.corpus is not None else {"context": sample.context})
        for key, text in given.items():
            if not text.strip():
                raise DataError(f"item {name}", f"a {key} that is not empty", repr(text))
        return sample

    def length(self, sample: QASample) -> int:
        return self.processor.length(sample) if self.corpus is None else 0

    def truth(self, item: Item) -> str | None:
        if not isinstance(item, QASample) or item.answers is None:
            return None
        return ", ".join(dict.fromkeys(item.texts)) or "no answer"

    def grade(self, item: Item, truth: str, prediction: QAPrediction) -> float:
        return f1(prediction.answer, item.texts) if isinstance(item, QASample) else 0.0

    def answer_of(self, prediction: QAPrediction) -> str:
        return prediction.answer or "no answer"

    def text(self, item: Item) -> str:
        return item.question if isinstance(item, QASample) else str(item["question"])

    def kind(self, item: Item) -> str:
        return item.kind if isinstance(item, QASample) else ""

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """Read the questions of a file in any of the training formats; over a corpus, contexts may be absent."""
        if not Path(path).exists():
            raise DataError(path, "a JSON, JSONL or CSV file of questions", "no such file")
        rows: Sequence[Item] = _questions_alone(path, on_error) if self.corpus is not None else []
        return rows or QADataset(path, on_error=on_error, require_labels=False).samples

    def demo_samples(self) -> list[QASample]:
        """Questions of each kind of the built-in test split, with and without an answer."""
        from mmattn.tasks.qa.demo import make

        samples = make("test", 120)
        kinds = dict.fromkeys((sample.kind, bool(sample.answers)) for sample in samples)
        return [next(s for s in samples if (s.kind, bool(s.answers)) == kind) for kind in kinds][:9]

    # Prediction -------------------------------------------------------------------------------------------------------

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        for name, least in (("top_k", 1), ("max_answer_len", 1), ("passages", 1)):
            if options.get(name) is not None and options[name] < least:
                raise ConfigError(f"--{name}: expected {least} or more, found {options[name]}.")
        if options.get("passages") is not None and self.corpus is None:
            raise ConfigError("--passages: expected --corpus, of which so many passages are read; found none.")
        return dict(options)

    def predict_batch(
        self,
        samples: Sequence[QASample],
        batch: QABatch,
        *,
        top_k: int = 1,
        max_answer_len: int | None = None,
        threshold: float | None = None,
        passages: int | None = None,
    ) -> list[QAPrediction]:
        """Predict the answer to each question, with `top_k - 1` alternatives.

        Args:
            samples: The questions.
            batch: Their batch.
            top_k: Number of answers.
            max_answer_len: Maximum number of tokens of an answer; None: that of the model.
            threshold: The context has no answer if the score of none exceeds that of the best span by more than this;
                None: that of the model, which validation chose, or no such answers if it was trained without them.
            passages: Number of passages of the corpus that are read.
        """
        longest = self.processor.max_answer_len if max_answer_len is None else max_answer_len
        threshold = self.processor.threshold if threshold is None else threshold
        scores = score_windows(self.model, batch)
        return [
            self._prediction(sample, [sample], [candidates(sample.context, *own, top_k + 1, longest)], top_k, threshold)
            for sample, own in zip(samples, scores, strict=True)
        ]

    def _prediction(
        self,
        sample: QASample,
        contexts: Sequence[QASample],
        found: Sequence[Candidates],
        top_k: int,
        threshold: float | None,
    ) -> QAPrediction:
        """The answers of one question over one or several contexts, the most probable first."""
        ranked = [
            (
                span.score,
                QAAnswer(one.context[span.start : span.end], round(span.score, 4), span.start, span.end, one.title),
                one,
            )
            for one, some in zip(contexts, found, strict=True)
            for span in some.spans
        ]
        ranked.sort(key=lambda row: -row[0])
        null = min(some.null_score for some in found)
        difference = min(some.null_logit for some in found) - max(
            (span.logit for some in found for span in some.spans), default=-torch.inf
        )
        none = QAAnswer("", round(null, 4), -1, -1)
        answers = [row[1] for row in ranked]
        if threshold is not None:
            first = difference > threshold
            answers = (
                [none, *answers] if first else [*answers[:1], *sorted([*answers[1:], none], key=lambda a: -a.score)]
            )
        elif not answers:
            answers = [none]
        best, others = answers[0], answers[1:top_k]
        passage = next((row[2].context for row in ranked if row[1] is best), "") if self.corpus is not None else ""
        fields = (best.answer, best.score, best.start, best.end, best.source)
        return QAPrediction(*fields, sample.id, sample.question, others, passage)

    # Many documents ---------------------------------------------------------------------------------------------------

    def _group(self, samples: Mapping[int, Any], on_error: str, options: Mapping[str, Any]) -> dict[int, Any]:
        if self.corpus is None:
            return super()._group(samples, on_error, options)
        questions = list(samples.values())
        with torch.inference_mode():
            found = list(self._over_corpus(questions, **options))
        return dict(zip(samples, found, strict=True))

    def remark(self) -> str:
        if not self.measured:
            return ""
        f1_mean, em, recall = (sum(values) / len(self.measured) for values in zip(*self.measured, strict=True))
        return (
            f"{len(self.measured):,} questions whose answers are known, over the corpus: F1 {f1_mean:.4f}, exact match "
            f"{em:.4f}; a passage with the context was among those that were read for {recall:.4f} of them."
        )

    def _measure(self, sample: QASample, contexts: Sequence[QASample], found: QAPrediction) -> None:
        """Add a question to `measured`, if its answers are known."""
        if sample.answers is not None and sample.context:
            wanted = " ".join(sample.context.split())
            recalled = any(wanted in " ".join(one.context.split()) for one in contexts)
            figures = (f1(found.answer, sample.texts), exact_match(found.answer, sample.texts))
            self.measured.append((*figures, recalled))

    def _over_corpus(
        self,
        samples: Sequence[QASample],
        top_k: int = 1,
        max_answer_len: int | None = None,
        threshold: float | None = None,
        passages: int | None = None,
    ) -> Iterator[QAPrediction]:
        """Predict answers from the best passages; probabilities are over all passages of a question.

        A passage's probability before it is read is that of its retrieval (Lewis et al. 2020, section 2.2).
        """
        longest = self.processor.max_answer_len if max_answer_len is None else max_answer_len
        threshold = self.processor.threshold if threshold is None else threshold
        hits = self.corpus.search([sample.question for sample in samples], passages or PASSAGES)
        for sample, some in zip(samples, hits, strict=True):
            contexts = [
                QASample(f"{sample.id}/{n}", sample.question, one.passage.text, title=one.passage.source)
                for n, one in enumerate(some)
            ]
            if not contexts:
                yield QAPrediction("", 0.0, -1, -1, "", sample.id, sample.question)
                continue
            read = score_windows(self.model, self.processor.collate(contexts).to(self.device))
            prior = self.corpus.log_prior(some).tolist()
            scores = [(starts + p, ends, windows) for (starts, ends, windows), p in zip(read, prior, strict=True)]
            total = log_normalizers(scores)
            found = [
                candidates(one.context, *own, top_k + 1, longest, total)
                for one, own in zip(contexts, scores, strict=True)
            ]
            prediction = self._prediction(sample, contexts, found, top_k, threshold)
            self._measure(sample, contexts, prediction)
            yield prediction

    # Explanation and export -------------------------------------------------------------------------------------------

    def explain_batch(self, samples: Sequence[QASample], batch: QABatch) -> list[QAExplanation]:
        """Compute the relevance of the context's words for the predicted answers."""
        with torch.no_grad():
            predictions = self.predict_batch(samples, batch)
        weights = word_relevance(self.model, batch, predictions)
        explanations = []
        for sample, prediction, (spans, values) in zip(samples, predictions, weights, strict=True):
            marked = [(prediction.start, prediction.end)] if prediction.answer else []
            explanations.append(QAExplanation(prediction, Words(sample.context, spans, values, marked)))
        return explanations

    def explain_all(self, items: Sequence[Item], **options: Any) -> list[Any]:
        """Explain the predictions of several items; over a corpus those from the passages that were chosen."""
        if self.corpus is None:
            return super().explain_all(items, **options)
        samples = [self.to_sample(item, number) for number, item in enumerate(items)]
        with torch.inference_mode():
            found = list(self._over_corpus(samples))
        read = [
            QASample(sample.id, sample.question, one.passage or sample.question, sample.answers)
            for sample, one in zip(samples, found, strict=True)
        ]
        return self.with_truth(self.explain_batch(read, self.processor.collate(read).to(self.device)), items)

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic numbers of windows and tokens, checked by the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        batch, length = Dim("batch", max=4096), Dim("length", max=self.model.max_len)
        dynamic = {name: {0: batch, 1: length} for name in ("input_ids", "key_mask", "token_types")}
        sizes = ((2, 19), (1, 13), (5, 24))
        examples = [self._example(batch, min(size, self.model.max_len)) for batch, size in sizes]
        return export_model(self.model, examples, dynamic, folder, "qa", formats)

    def _example(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(4, self.processor.tokenizer.vocab_size, (batch, length), generator=generator)
        mask = torch.arange(length)[None] < torch.tensor([[max(9, length - n)] for n in range(batch)])
        types = (torch.arange(length) >= 5).long().expand(batch, length) * self.processor.template.types[3]
        pad = self.processor.tokenizer.pad_id
        return {"input_ids": ids.masked_fill(~mask, pad), "key_mask": mask, "token_types": types * mask}


def _questions_alone(path: str, on_error: str) -> list[dict[str, Any]]:
    """The rows of a table without contexts; none, if the file has contexts."""
    if path.lower().endswith(".json") and not has_rows(path, "data"):
        return []
    rows = [{"id": str(line), **row} for _, line, row in read_rows(path, Problems(on_error))]
    return [] if any("context" in row for row in rows) else rows


load = QAPredictor.load
