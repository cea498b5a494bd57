"""The processor of text classification: texts to tensors, and labels to targets; shipped with the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmattn.data.errors import DataError, located
from mmattn.data.names import nfc
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.processor import TokenProcessor
from mmattn.data.text.tokenizer import TextProcessor as Tokenizer, TokenIds, pad_rows, words_of
from mmattn.tasks.common.seq2seq.processor import check_kept, known_options
from mmattn.tasks.text_classification.data import Span, TextBatch, TextDataset, TextSample
from mmattn.tasks.text_classification.formats import MULTI, TAGGING, TEXT
from mmattn.tasks.text_classification.labels import IGNORED, Labels, labels_from
from mmattn.tasks.text_classification.masking import hide
from mmattn.tasks.text_classification.sentences import by_sentence

LONGEST_WORD = 20  # characters that are read of one
MASKS = ("[MASK]", "<mask>")
Row = tuple[list[int], list[int], Span, list[str]]  # ids, token types, places of words, each token's text


class TextClassificationProcessor(TokenProcessor[TextSample, TextBatch]):
    """Converts texts and their labels to tensors.

    Args:
        tokenizer: Tokenizer of all texts.
        labels: The labels of each task, by its name; a single task has an empty name.
        max_len: Maximum number of tokens of a text or a pair, with special tokens. Longer texts are truncated, of pairs
            the longer one first; words with tags are divided into several rows instead.
        alphabet: Characters that are known, for models that read them.
        columns: Names of the columns of the training data by those that are expected; predicted files may have either.

    Raises:
        ValueError: max_len leaves no room for a word.
    """

    KEYS = frozenset({"text", "labels", "max_len", "alphabet", "columns"})
    LATER: ClassVar[Mapping[str, Any]] = {"columns": {}}

    def __init__(
        self,
        tokenizer: TokenIds,
        labels: Mapping[str, Labels],
        max_len: int = 128,
        alphabet: str = "",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.columns = dict(columns or {})
        self.tasks, self.max_len, self.alphabet = dict(labels), int(max_len), alphabet
        if self.max_len < self.template.num_special + 2:
            least = self.template.num_special + 2
            raise ValueError(f"max_len: expected at least {least} tokens, found {max_len}")
        self._index = {character: number + 2 for number, character in enumerate(alphabet)}  # 0: padding, 1: unknown
        self.cut = 0  # texts that were truncated, in this process
        # What the model reads, set by `read_for`.
        self.with_characters = self.by_sentence = False
        self.objective = "labels"

    def read_for(self, model: Any, objective: str = "labels") -> Self:
        """Prepare batches for a model, and for a masked language model with the objective mlm or mlm+nsp."""
        self.with_characters, self.by_sentence = bool(model.characters), model.by_sentence
        self.objective = objective
        return self

    @classmethod
    def fit(
        cls,
        dataset: TextDataset,
        tokenizer: str = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        lowercase: bool = True,
        max_len: int = 128,
    ) -> TextClassificationProcessor:
        """Fit a tokenizer and the labels to the training texts.

        Args:
            dataset: The training data.
            tokenizer: word, bpe or unigram.
            vocab_size: Maximum size of the vocabulary.
            min_count: Minimum number of occurrences of a word.
            lowercase: Whether texts are lower-cased.
            max_len: See the class.
        """
        texts = [text for sample in dataset.samples for text in (sample.text, sample.text_pair) if text is not None]
        known = Tokenizer.fit(texts, tokenizer, vocab_size, min_count, lowercase=lowercase, max_len=max_len)
        alphabet = "".join(sorted({character for text in texts for character in text} - {" "}))[:500]
        return cls(known, fit_labels(dataset), max_len, alphabet, dataset.names)

    def retarget(self, train: TextDataset, given: Mapping[str, Any]) -> TextClassificationProcessor:
        check_kept(known_options(self.tokenizer), given)
        max_len = self.max_len if given.get("max_len") is None else given["max_len"]
        return TextClassificationProcessor(self.tokenizer, fit_labels(train), max_len, self.alphabet, train.names)

    @property
    def labels(self) -> list[str] | None:
        """The labels of the first task; None for regression and masked language models."""
        first = next(iter(self.tasks.values()), None)
        return first.names if first is not None and first.names else None

    def sizes(self) -> dict[str, Any]:
        heads = {name: [labels.kind, labels.size] for name, labels in self.tasks.items()}
        sizes = {"vocab_size": self.tokenizer.vocab_size, "max_len": self.max_len, "heads": heads}
        return sizes | {"num_characters": len(self.alphabet) + 2}

    def settings(self) -> dict[str, Any]:
        labels = {name: labels.settings() for name, labels in self.tasks.items()}
        about = {"text": self.tokenizer.config(), "labels": labels, "columns": self.columns}
        return about | {"max_len": self.max_len, "alphabet": self.alphabet}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        tokenizer = load_tokenizer(folder, config["text"])
        labels = labels_from(config["labels"])
        return cls(tokenizer, labels, config["max_len"], config["alphabet"], config["columns"])

    def check(self, dataset: TextDataset) -> None:
        """Raise a ``DataError``, or skip the sample, if a label is not one of the training data."""
        check_labels(dataset, self.tasks)

    # Tokens -----------------------------------------------------------------------------------------------------------

    @property
    def mask_id(self) -> int:
        """The token in place of a hidden one: that of a public tokenizer, or the unknown token."""
        pieces: Any = getattr(self.tokenizer, "_pieces", None)
        known = [] if pieces is None else [pieces.token_to_id(token) for token in MASKS]
        return next((index for index in known if index is not None), self.tokenizer.unk_id)

    def length(self, sample: TextSample) -> int:
        """Number of tokens of a sample, at most `max_len`."""
        texts = [sample.text] + ([sample.text_pair] if sample.text_pair is not None else [])
        return min(sum(len(self.encode(text)[0]) for text in texts) + self.template.num_special, self.max_len)

    def _words(self, sample: TextSample) -> list[tuple[int, int]]:
        """The characters of the words of a sample's first text."""
        if sample.words is None:
            return words_of(sample.text, [])[0]
        spans, start = [], 0
        for word in sample.words:
            spans.append((start, start + len(word)))
            start += len(word) + 1
        return spans

    def _tagged_rows(self, number: int, sample: TextSample) -> list[Row]:
        """The rows of words with tags: as many words as fit, each with a token at least."""
        ids, spans = self.encode(sample.text)
        words = self._words(sample)
        pieces: list[list[int]] = [[] for _ in words]
        place = 0
        for index, (start, _) in zip(ids, spans, strict=True):
            while place + 1 < len(words) and start >= words[place + 1][0]:
                place += 1
            pieces[place].append(index)
        room = self.max_len - len(self.template.before) - len(self.template.after)
        pieces = [(own or [self.tokenizer.unk_id])[:room] for own in pieces]  # a word without tokens is unknown
        rows, first = [], 0
        while first < len(words):
            last, used = first, 0
            while last < len(words) and used + len(pieces[last]) <= room:
                used += len(pieces[last])
                last += 1
            joined, texts, places = list(self.template.before), [""] * len(self.template.before), []
            for word in range(first, last):
                places.append(list(range(len(joined), len(joined) + len(pieces[word]))))
                joined += pieces[word]
                texts += [sample.text[slice(*words[word])]] * len(pieces[word])
            joined += self.template.after
            texts += [""] * len(self.template.after)
            types = [self.template.types[1]] * len(joined)
            rows.append((joined, types, Span(number, words[first:last], places, first), texts))
            first = last
        return rows

    def _text_row(self, number: int, sample: TextSample) -> Row:
        """The row of a text or a pair, truncated."""
        parts = [self.encode(text) for text in (sample.text, sample.text_pair) if text is not None]
        sizes = self._truncated([len(ids) for ids, _ in parts])
        ids = [part[0][:size] for part, size in zip(parts, sizes, strict=True)]
        if len(ids) == 2:
            joined, types, _ = self.template.join(ids[0], ids[1])
        else:
            joined = [*self.template.before, *ids[0], *self.template.after]
            types = [self.template.types[1]] * len(joined)
        first = len(self.template.before)
        texts = [""] * len(joined)
        for n, (given, text) in enumerate(zip(parts, (sample.text, sample.text_pair), strict=False)):
            start = first if n == 0 else first + sizes[0] + len(self.template.between)
            for k, (a, b) in enumerate(given[1][: sizes[n]]):
                texts[start + k] = (text or "")[a:b]
        words, places = _placed(sample.text, parts[0][1][: sizes[0]], first)
        if len(parts) == 1:
            return joined, types, Span(number, words, places, 0), texts
        second = first + sizes[0] + len(self.template.between)
        pair = _placed(sample.text_pair or "", parts[1][1][: sizes[1]], second)
        return joined, types, Span(number, words, places, 0, *pair), texts

    def _truncated(self, sizes: list[int]) -> list[int]:
        """Numbers of tokens that are kept of one or two texts, of two the longer one truncated first."""
        pair = len(sizes) == 2
        special = self.template.num_special if pair else len(self.template.before) + len(self.template.after)
        room = self.max_len - special
        if sum(sizes) <= room:
            return sizes
        self.cut += 1
        if not pair:
            return [room]
        shorter = min(*sizes, room // 2)
        return [room - shorter, shorter] if sizes[1] <= sizes[0] else [shorter, room - shorter]

    # Batches ----------------------------------------------------------------------------------------------------------

    def collate(
        self,
        samples: Sequence[TextSample],
        *,
        augment: Any = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> TextBatch:
        """Makes a batch; `augment` changes the words of the texts. See `Processor.collate`."""
        if augment is not None:
            if seeds is None:
                raise ValueError("collate: augment needs seeds")
            samples = [augment(sample, seed) for sample, seed in zip(samples, seeds, strict=True)]
        rows: list[Row] = []
        for number, sample in enumerate([] if self.by_sentence else samples):
            tagged = sample.words is not None and self._is_tagged(sample)
            rows += self._tagged_rows(number, sample) if tagged else [self._text_row(number, sample)]
        if self.by_sentence:
            batch, texts, cut = by_sentence(
                samples, self.encode, self.tokenizer.pad_id, self.tokenizer.unk_id, self.max_len
            )
            self.cut += cut
            if self.with_characters:
                count, width = batch.input_ids.shape[1:]
                batch.characters = self._characters(texts).unflatten(1, (count, width))
        else:
            ids, key_mask = pad_rows([row[0] for row in rows], self.tokenizer.pad_id)  # (N, L)
            types = pad_rows([row[1] for row in rows], 0)[0]
            batch = TextBatch(ids, key_mask, types, ids[:, :0], {}, [row[2] for row in rows], [], [])
            if self.with_characters:
                batch.characters = self._characters([row[3] for row in rows])
        batch.ids, batch.samples, batch.is_repeat = [sample.id for sample in samples], list(samples), is_repeat
        if any(labels.kind == TAGGING for labels in self.tasks.values()):
            starts = [[places[0] for places in row[2].places if places] for row in rows]
            batch.word_starts = pad_rows(starts, -1)[0]
        batch.targets = self._targets(samples, batch)
        if self.objective != "labels":
            if seeds is None:
                raise ValueError("collate: a masked language model needs seeds")
            hide(batch, seeds, self.mask_id, self.tokenizer.vocab_size)
        return batch

    def _is_tagged(self, sample: TextSample) -> bool:
        labels = self.tasks.get(sample.task)
        return labels is not None and labels.kind == TAGGING

    def _targets(self, samples: Sequence[TextSample], batch: TextBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """By task the rows (n,) of its samples, and their targets; of tagging (n, W), padded with -100."""
        found = {}
        for name, labels in self.tasks.items():
            # Labels that are not known are those of items that are predicted: `check` has refused others.
            own = [number for number, sample in enumerate(samples) if sample.task == name]
            numbers = [number for number in own if labels.strange(samples[number]) is None]
            if not numbers:
                continue
            if labels.kind != TAGGING:
                some = [samples[number] for number in numbers]
                if labels.kind != MULTI and not any(s.labels or s.score is not None for s in some):
                    continue
                found[name] = (torch.tensor(numbers), labels.targets(some))
                continue
            rows = [row for row, span in enumerate(batch.spans) if span.sample in set(numbers)]
            targets = torch.full((len(rows), batch.word_starts.shape[1]), IGNORED)
            for place, row in enumerate(rows):
                span = batch.spans[row]
                tags = samples[span.sample].labels[span.first : span.first + len(span.words)]
                for word, tag in enumerate(tags):
                    targets[place, word] = labels.index[nfc(tag)]
            found[name] = (torch.tensor(rows), targets)
        return found

    def _characters(self, rows: Sequence[Sequence[str]]) -> Tensor:
        """The characters of each token (N, L, C) long."""
        longest = max(1, min(LONGEST_WORD, max((len(text) for row in rows for text in row), default=1)))
        found = torch.zeros(len(rows), max(map(len, rows)), longest, dtype=torch.long)
        for n, row in enumerate(rows):
            for k, text in enumerate(row):
                ids = [self._index.get(character, 1) for character in _ends(text, longest)]
                if ids:
                    found[n, k, : len(ids)] = torch.tensor(ids)
        return found

    def ablate(self, batch: TextBatch, what: str, seeds: Sequence[int] | None = None) -> TextBatch:
        """Ablate the "order": the tokens of each text are sorted, which leaves a bag of words."""
        if what != "order":
            return super().ablate(batch, what, seeds)  # type: ignore[return-value]
        special = {*self.template.before, *self.template.between, *self.template.after}
        inside = batch.key_mask & ~torch.isin(batch.input_ids, torch.tensor(sorted(special)))
        keys = torch.where(inside, batch.input_ids, torch.iinfo(torch.long).max)
        for row in range(len(keys)):
            place = inside[row].nonzero().squeeze(1)
            batch.input_ids[row, place] = keys[row, place].sort().values
        return batch


def _placed(text: str, spans: Sequence[tuple[int, int]], first: int) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The characters of a text's words, and the positions of each word's tokens, the first of which is at `first`."""
    words, owners = words_of(text, spans)
    places: list[list[int]] = [[] for _ in words]
    for k, owner in enumerate(owners):
        places[owner].append(first + k)
    return words, places


def _ends(text: str, size: int) -> str:
    """A word, or the beginning and the end of one that is longer."""
    return text if len(text) <= size else text[: size // 2] + text[-(size - size // 2) :]


def report_kinds(dataset: TextDataset) -> None:
    """Report on stderr, once, what was read off the labels of each task."""
    for name, kind in dataset.kinds.items():
        if reason := dataset.reasons.pop(name, ""):
            of = f" of {name}" if name else ""
            more = "" if kind == TEXT else "; --data.kind gives another"
            sys.stderr.write(f"data.kind{of}: {kind}, since {reason}{more}.\n")


def check_labels(dataset: TextDataset, tasks: Mapping[str, Labels]) -> None:
    """Raise a ``DataError``, or skip the sample, if a label is not one of its task's."""
    kept = []
    for where, sample in zip(dataset.places, dataset.samples, strict=True):
        known = tasks.get(sample.task)
        label = None if known is None else known.strange(sample)
        if label is None or known is None:
            kept.append((where, sample))
        else:
            dataset.problems.add(where, *known.wanted(label))
    if len(kept) < len(dataset):
        dataset.keep(kept)


def fit_labels(dataset: TextDataset) -> dict[str, Labels]:
    """The labels of each task of training data; what was read off them is reported on stderr."""
    found = {}
    for name, kind in dataset.kinds.items():
        with located(f"{dataset.name}, task {name}" if name else dataset.name):
            labels = Labels.fit(kind, [sample for sample in dataset.samples if sample.task == name])
        if labels is not None:
            found[name] = labels
    report_kinds(dataset)
    plain = [name for name, kind in dataset.kinds.items() if kind == TEXT]
    if found and plain:
        raise DataError(f"{dataset.name}, task {plain[0]}", "labels", "plain text")
    if not found and not plain:
        raise DataError(dataset.name, "labels", "none")
    return found
