"""Predictions, embeddings and explanations of text classification."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, nearest
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.items import mapping_of, name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.shading import WIDTH, Words, shaded_html, shaded_picture
from mmattn.tasks.text_classification.data import TextBatch, TextDataset, TextSample
from mmattn.tasks.text_classification.embedding import Embedding
from mmattn.tasks.text_classification.entities import entities, is_scheme
from mmattn.tasks.text_classification.explain import word_relevance
from mmattn.tasks.text_classification.formats import MULTI, REGRESSION, TAGGING, TEXT
from mmattn.tasks.text_classification.labels import Labels

BETWEEN = " | "  # the texts of a pair, as explanations show them
Item = Any  # a text, or a mapping with text (and text_pair), or with words


def split_words(text: str) -> list[str]:
    """The words of a text, split at white space, without the punctuation around them, whose marks are words, too.

    >>> split_words('"I saw @ada\'s duck (twice)!", it says.')
    ['"', 'I', 'saw', "@ada's", 'duck', '(', 'twice', ')', '!', '"', ',', 'it', 'says', '.']
    """
    return re.findall(r"[@#$]?\w\S*\w|[@#$]?\w|\S", text)


@dataclass
class TextPrediction:
    """The prediction of one text."""

    id: str
    label: str = ""  # the most probable label; of regression the score in words; of words their tags
    score: float = 0.0  # its probability, 0..1; of regression the score; of words the mean probability of the tags
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next most probable, with probabilities
    labels: list[str] | None = None  # several labels: those from their thresholds on; of words: the tag of each
    words: list[str] | None = None  # of labels of words
    entities: list[tuple[str, str]] | None = None  # of BIO tags: type and text of each entity


@dataclass
class TextExplanation:
    """The signed relevance of a text's words for a label."""

    prediction: TextPrediction
    words: Words
    label: str  # that is explained
    truth: str | None = None  # the true label, if it is known

    def _answer(self) -> str:
        shown = self.prediction.label if len(self.prediction.label) < 60 else f"{self.prediction.label[:57]}..."
        of = "" if self.label == self.prediction.label else f"; relevance for {self.label}"
        return f"{shown} ({self.prediction.score:.2f}){of}"

    def save(self, path: str | Path) -> None:
        """Write a PNG of the text with its words shaded by relevance: blue for the label, red against it."""
        from mmattn.plot import caption

        shaded_picture(self.words, path, caption(self.prediction.id, self._answer(), self.truth, WIDTH))

    def html(self) -> str:
        """The same as a part of an HTML page."""
        from html import escape

        true = "" if self.truth is None else f"; true: {self.truth}"
        return f"<section><h3>{escape(self._answer() + true)}</h3>{shaded_html(self.words)}</section>"


class TextClassificationPredictor(Embedding, Predictor[Item, TextPrediction]):
    """Predictor of text classification.

    Items are texts, or mappings with `text`, optionally `text_pair` and `id`; or, for labels of words, with `words`.
    """

    task = "text_classification"
    lookahead = 8

    def __init__(self, model: Any, processor: Any, parts: Any = None) -> None:
        super().__init__(model, processor.read_for(model), parts)

    def to_sample(self, item: Item, number: int) -> TextSample:
        if isinstance(item, TextSample):
            return item
        if isinstance(item, Mapping) and "text" not in item:  # by the names of the columns of training
            names = {column: name for name, column in self.processor.columns.items()}
            item = {names.get(key, key): value for key, value in item.items()}
        given = mapping_of(item, "text") if isinstance(item, (str, Mapping)) else None
        if given is None:
            raise DataError(f"item {number}", "a text, or a mapping with text or words", type(item).__name__)
        words = given.get("words")
        name = str(number) if isinstance(item, str) else name_of(given, number, ("text",) if words is None else ())
        labels = self._labels(given.get("task"))
        if words is not None and (
            not isinstance(words, list) or not all(isinstance(w, str) and w.strip() for w in words)
        ):
            raise DataError(f"item {name}", "words, a list of texts that are not empty", repr(words)[:60])
        text, pair = (" ".join(words) if words else given.get("text")), given.get("text_pair")
        for key, one in {"text": text, "text_pair": pair}.items():
            if (key in given or key == "text") and (not isinstance(one, str) or not one.strip()):
                raise DataError(f"item {name}", f"a {key} that is not empty", repr(one)[:60])
        if labels is not None and labels.kind == TAGGING:
            if pair is not None:
                raise DataError(f"item {name}", "one text of words with tags", "a pair of texts")
            words = words or split_words(str(text))
            return TextSample(name, " ".join(words), words=list(words), task=self._task(given.get("task")))
        return TextSample(name, str(text), pair, task=self._task(given.get("task")))

    def _task(self, name: str | None) -> str:
        """The name of the task of an item, by default of the model's first.

        Raises:
            ConfigError: The model has no such task.
        """
        known = list(self.processor.tasks)
        if name is None:
            return known[0] if known else ""
        if name not in known:
            names = ", ".join(filter(None, known))
            expected = f"one of {names}" if names else "no name, since the model has one task"
            raise ConfigError(f"task: expected {expected}, found {name!r}.")
        return name

    def _labels(self, name: str | None = None) -> Labels | None:
        found = self.processor.tasks.get(self._task(name))
        return found if isinstance(found, Labels) else None

    def length(self, sample: TextSample) -> int:
        return int(self.processor.length(sample))

    # What reports and explanations show -------------------------------------------------------------------------------

    def truth(self, item: Item) -> str | None:
        if not isinstance(item, TextSample):
            return None
        if item.score is not None:
            return f"{item.score:g}"
        if item.words is not None:
            return " ".join(item.labels) or None
        return ", ".join(item.labels) or None

    def grade(self, item: Item, truth: str, prediction: TextPrediction) -> float:
        labels = self.processor.tasks[self._known_task(item)]
        if labels.kind == REGRESSION:
            return max(0.0, 1.0 - abs(float(truth) - prediction.score) / (4 * labels.std))
        if labels.kind == TAGGING:
            return sum(a == b for a, b in zip(item.labels, prediction.labels or [], strict=True)) / len(item.labels)
        if labels.kind == MULTI:
            true, found = set(item.labels), set(prediction.labels or [])
            return len(true & found) / max(len(true | found), 1)
        return super().grade(item, truth, prediction)

    def answer_of(self, prediction: TextPrediction) -> str:
        several = prediction.labels is not None and prediction.words is None
        return ", ".join(prediction.labels or []) if several else prediction.label

    def text(self, item: Item) -> str:
        if isinstance(item, TextSample):
            return item.text if item.text_pair is None else f"{item.text}{BETWEEN}{item.text_pair}"
        return item if isinstance(item, str) else str(item.get("text", ""))

    def kind(self, item: Item) -> str:
        return item.task if isinstance(item, TextSample) else ""

    def _known_task(self, sample: TextSample) -> str:
        return sample.task if sample.task in self.processor.tasks else self._task(None)

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[TextSample]:
        """Read the texts of a file in any of the training formats; labels are optional, and kept as the truth."""
        if not Path(path).exists():
            raise DataError(path, "a CSV, TSV, JSONL, CoNLL, CoNLL-U or text file", "no such file")
        name = self._task(None)
        known = [labels.kind for labels in self.processor.tasks.values()]
        # Of several tasks any one may answer: the file is read by what its labels are.
        kind = None if len(known) > 1 else known[0] if known else TEXT
        dataset = TextDataset(path, kind, self.processor.columns, on_error=on_error, require_labels=False)
        for sample in dataset.samples:
            sample.task = name
        return dataset.samples

    def demo_samples(self) -> list[TextSample]:
        """Texts of the built-in test split, with both verdicts."""
        from mmattn.tasks.text_classification.demo import make, make_tagged

        labels = None if self is None else self._labels()  # the class may be asked, too
        samples = (make_tagged if labels is not None and labels.kind == TAGGING else make)("test", 8)
        for sample in samples:
            sample.task = "" if self is None else self._task(None)
        return samples

    # Prediction -------------------------------------------------------------------------------------------------------

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("top_k") is not None and options["top_k"] < 1:
            raise ConfigError(f"--top_k: expected 1 or more, found {options['top_k']}.")
        self._task(options.get("task"))
        return dict(options)

    def predict_batch(
        self, samples: Sequence[TextSample], batch: TextBatch, *, top_k: int = 1, task: str | None = None
    ) -> list[TextPrediction]:
        """Predict the labels of each text.

        Args:
            samples: The texts.
            batch: Their batch.
            top_k: Number of labels, with probabilities, where a text has one label.
            task: Of a model of several tasks, which one answers; None: that of the sample, or the first.

        Raises:
            DataError: The model is a masked language model, without labels.
        """
        if not self.processor.tasks:
            raise DataError(
                "predict", "a model with labels", "a masked language model: see fill_mask, or fit --init_from"
            )
        samples, batch = self._as_asked(samples, batch, task)
        output = self.model(**self._given(batch))
        found = []
        for number, sample in enumerate(samples):
            name = self._known_task(sample) if task is None else task
            labels: Labels = self.processor.tasks[name]
            own = self.model.slices[name]
            if labels.kind == TAGGING:
                found.append(self._tags(number, sample, batch, output.tag_logits[..., own], labels))
            else:
                row = next(row for row, span in enumerate(batch.spans) if span.sample == number)
                found.append(_named(sample.id, labels, output.logits[row, own], top_k))
        return found

    def _as_asked(
        self, samples: Sequence[TextSample], batch: TextBatch, task: str | None
    ) -> tuple[Sequence[TextSample], TextBatch]:
        """The samples as the task that answers reads them, words or whole texts, and their batch."""
        wanted = [self._of_task(sample, self._known_task(sample) if task is None else task) for sample in samples]
        if all(a is b for a, b in zip(samples, wanted, strict=True)):
            return samples, batch
        return wanted, self.processor.collate(wanted).to(self.device)

    def _of_task(self, sample: TextSample, task: str) -> TextSample:
        words = sample.words
        if self.processor.tasks[task].kind == TAGGING and words is None:
            if sample.text_pair is not None:
                raise DataError(f"item {sample.id}", "one text of words with tags", "a pair of texts")
            words = split_words(sample.text)
        elif sample.task == task:
            return sample
        text = sample.text if words is None else " ".join(words)
        return replace(sample, text=text, words=words, task=task, labels=[], score=None)

    def _given(self, batch: TextBatch) -> dict[str, Any]:
        return {name: getattr(batch, name) for name in self.model.inputs}

    def _tags(
        self, number: int, sample: TextSample, batch: TextBatch, logits: Tensor, labels: Labels
    ) -> TextPrediction:
        tags: list[str] = []
        scores: list[float] = []
        for row, span in enumerate(batch.spans):
            if span.sample == number:
                best, index = labels.probabilities(logits[row, : len(span.words)]).max(-1)
                tags += [labels.names[k] for k in index.tolist()]
                scores += best.tolist()
        words = sample.words or []
        named = None
        if is_scheme(labels.names):
            named = [(kind, " ".join(words[start:end])) for kind, start, end in entities(tags)]
        mean = round(sum(scores) / max(len(scores), 1), 4)
        return TextPrediction(sample.id, " ".join(tags), mean, labels=tags, words=words, entities=named)

    # Explanation and export -------------------------------------------------------------------------------------------

    def explain_batch(
        self, samples: Sequence[TextSample], batch: TextBatch, *, task: str | None = None, label: str | None = None
    ) -> list[TextExplanation]:
        """Compute the signed relevance of each text's words for a label.

        Args:
            samples: The texts.
            batch: Their batch.
            task: See `predict_batch`.
            label: The label; None: the predicted one. Of labels of words, the label of the first word that has it.

        Raises:
            ConfigError: There is no such label, or the weights are packed.
        """
        if self.packed:
            raise ConfigError("precision: expected weights that are not packed, as gradients need; found packed ones.")
        samples, batch = self._as_asked(samples, batch, task)
        with torch.no_grad():
            predictions = self.predict_batch(samples, batch, task=task)
        targets, shown = [], []
        for sample, prediction in zip(samples, predictions, strict=True):
            name = self._known_task(sample) if task is None else task
            labels: Labels = self.processor.tasks[name]
            if label is not None and label not in labels.names:
                known = ", ".join(labels.names) or "none"
                raise ConfigError(f"--label: expected one of {known}, found {label!r}{nearest(label, labels.names)}.")
            word = -1
            chosen = label or prediction.label
            if labels.kind == TAGGING:
                tags = prediction.labels or []
                word = next((n for n, tag in enumerate(tags) if tag == label or (label is None and tag != "O")), 0)
                chosen = label or tags[word]
            targets.append((name, 0 if labels.kind == REGRESSION else labels.names.index(chosen), word))
            shown.append((chosen, word, "a higher score" if labels.kind == REGRESSION else chosen))
        relevance = word_relevance(self.model, batch, targets, self.processor.mask_id)
        explanations = []
        for number, (sample, prediction, (chosen, word, toward)) in enumerate(
            zip(samples, predictions, shown, strict=True)
        ):
            words = self._shaded(number, sample, batch, relevance[number], word)._replace(toward=toward)
            explanations.append(TextExplanation(prediction, words, chosen))
        return explanations

    def _shaded(self, number: int, sample: TextSample, batch: TextBatch, values: Tensor, word: int) -> Words:
        """The words of a sample's texts, and what is outlined: the word of a tag, or the evidence."""
        own = [span for span in batch.spans if span.sample == number]
        span = next((one for one in own if 0 <= word - one.first < len(one.words)), own[0])
        text, spans = sample.text, list(span.words)
        marked = [spans[word - span.first]] if word >= 0 else list(sample.evidence)
        if sample.text_pair is not None:
            ahead = len(text) + len(BETWEEN)
            text += BETWEEN + sample.text_pair
            spans += [(start + ahead, end + ahead) for start, end in span.pair_words]
        return Words(text, spans, values, marked)

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic numbers of texts and tokens, compared with the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        batch, length = Dim("batch", max=4096), Dim("length", max=self.model.max_len)
        shape = {0: batch, 1: length}
        if self.model.by_sentence:
            shape = {0: batch, 1: Dim("sentences", max=1024), 2: Dim("words", max=1024)}
        dynamic: dict[str, Any] = dict.fromkeys(("input_ids", "key_mask", "token_types", "characters"), shape)
        dynamic["word_starts"] = {0: batch, 1: Dim("words", max=self.model.max_len)}
        dynamic = {name: dynamic[name] for name in self.model.inputs}
        longest = 24 if self.model.by_sentence else self.model.max_len
        examples = [self._example(batch, min(size, longest)) for batch, size in ((2, 19), (1, 13), (5, 24))]
        return export_model(self.model, examples, dynamic, folder, "text_classification", formats)

    def _example(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, 3, length) if self.model.by_sentence else (batch, length)
        ids = torch.randint(4, self.processor.tokenizer.vocab_size, shape, generator=generator)
        mask = torch.ones(shape, dtype=torch.bool)
        for n in range(batch):
            mask[n, ..., max(5, length - n) :] = False
        found = {"input_ids": ids.masked_fill(~mask, self.processor.tokenizer.pad_id), "key_mask": mask}
        found |= {"token_types": torch.zeros_like(ids)}
        if "word_starts" in self.model.inputs:
            found["word_starts"] = torch.arange(1, max(3, length // 2)).expand(batch, -1).clone()
        if "characters" in self.model.inputs:
            size = len(self.processor.alphabet) + 2
            found["characters"] = torch.randint(1, size, (*shape, 7), generator=generator)
        return found


def _named(name: str, labels: Labels, logits: Tensor, top_k: int) -> TextPrediction:
    """The prediction of one text from the scores (K,) of a task."""
    values = labels.probabilities(logits)
    if labels.kind == REGRESSION:
        score = round(float(values[0]), 4)
        return TextPrediction(name, f"{score:g}", score)
    best, order = values.topk(min(top_k, len(values)))
    pairs = [(labels.names[k], round(score, 4)) for k, score in zip(order.tolist(), best.tolist(), strict=True)]
    several = None
    if labels.kind == MULTI:
        several = [one for one, p, t in zip(labels.names, values.tolist(), labels.thresholds, strict=True) if p >= t]
    return TextPrediction(name, *pairs[0], pairs[1:], several)


load = TextClassificationPredictor.load
