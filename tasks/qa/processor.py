"""The processor of question answering: questions and contexts to windows of tokens; shipped with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from mmattn.data.errors import DataError, shorten
from mmattn.data.text.pair import windows
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.processor import TokenProcessor
from mmattn.data.text.tokenizer import TextProcessor, TokenIds, pad_rows
from mmattn.tasks.common.seq2seq.processor import check_kept, known_options
from mmattn.tasks.qa.data import Answer, QABatch, QADataset, QASample, Window

MIN_ROOM = 8  # tokens of a context, at least, in each window


class QAProcessor(TokenProcessor[QASample, QABatch]):
    """Converts questions and contexts to windows of tokens.

    A context that does not fit a window beside its question is divided into several, which overlap.

    Args:
        tokenizer: Tokenizer of both texts.
        max_len: Maximum number of tokens of a window, with the question and special tokens.
        stride: Number of the context's tokens that neighboring windows share.
        max_answer_len: Maximum number of tokens of a predicted answer.
        threshold: The context has no answer if the score of none exceeds that of the best span by more than this (see
            `mmattn.tasks.qa.spans`). None: there is always an answer.

    Raises:
        ValueError: The stride leaves no room in a window.
    """

    KEYS = frozenset({"text", "max_len", "stride", "max_answer_len", "threshold"})

    def __init__(
        self,
        tokenizer: TokenIds,
        max_len: int = 384,
        stride: int = 128,
        max_answer_len: int = 30,
        threshold: float | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.max_len, self.stride, self.max_answer_len = int(max_len), int(stride), int(max_answer_len)
        self.threshold = None if threshold is None else float(threshold)
        least = self.template.num_special + 1 + MIN_ROOM
        if self.stride < 0 or self.max_len - self.stride < least:
            raise ValueError(
                f"stride: expected 0 to {max(self.max_len - least, 0)} tokens, which a window of {self.max_len} "
                f"(max_len) can hold beside a question, found {stride}"
            )
        if self.max_answer_len < 1:
            raise ValueError(f"max_answer_len: expected at least 1, found {max_answer_len}")

    @classmethod
    def fit(
        cls,
        dataset: QADataset,
        tokenizer: str = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        lowercase: bool = True,
        **options: Any,
    ) -> QAProcessor:
        """Fit a tokenizer to the training questions and their contexts.

        Args:
            dataset: The training data.
            tokenizer: word, bpe or unigram.
            vocab_size: Maximum size of the vocabulary.
            min_count: Minimum number of occurrences of a word.
            lowercase: Whether texts are lower-cased.
            options: max_len, stride and max_answer_len of the processor.
        """
        texts = [sample.question for sample in dataset.samples]
        texts += dict.fromkeys(sample.context for sample in dataset.samples)
        max_len = options.get("max_len", 384)
        text = TextProcessor.fit(texts, tokenizer, vocab_size, min_count, lowercase=lowercase, max_len=max_len)
        has_null = any(sample.answers == [] for sample in dataset.samples)
        return cls(text, **options, threshold=0.0 if has_null else None)

    def retarget(self, train: QADataset, given: Mapping[str, Any]) -> QAProcessor:
        check_kept(known_options(self.tokenizer), given)
        has_null = any(sample.answers == [] for sample in train.samples)
        names = ("max_len", "stride", "max_answer_len")
        kept = {name: getattr(self, name) if given.get(name) is None else given[name] for name in names}
        return QAProcessor(self.tokenizer, **kept, threshold=0.0 if has_null else None)

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size, "max_len": self.max_len}

    def settings(self) -> dict[str, Any]:
        names = ("max_len", "stride", "max_answer_len", "threshold")
        return {"text": self.tokenizer.config()} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        options = {name: config[name] for name in cls.KEYS if name != "text"}
        return cls(load_tokenizer(folder, config["text"]), **options)

    # Windows ----------------------------------------------------------------------------------------------------------

    def length(self, sample: QASample) -> int:
        """Number of tokens of a sample's longest window."""
        both = sum(len(self.encode(text)[0]) for text in (sample.question, sample.context))
        return min(both + self.template.num_special, self.max_len)

    def windows(self, sample: QASample) -> list[tuple[int, int]]:
        """The first and last + 1 token of the context in each of a sample's windows.

        Raises:
            DataError: The question leaves no room for the context.
        """
        question, context = (self.encode(text)[0] for text in (sample.question, sample.context))
        room = self.max_len - len(question) - self.template.num_special
        if room < self.stride + MIN_ROOM:
            most = self.max_len - self.template.num_special - self.stride - MIN_ROOM
            expected = f"a question of at most {most} tokens (max_len {self.max_len}, stride {self.stride})"
            raise DataError(f"question {sample.id}", expected, f"{len(question)}: {shorten(sample.question)}")
        return list(windows(len(context), room, self.stride))

    def collate(
        self,
        samples: Sequence[QASample],
        *,
        augment: Any = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> QABatch:
        """Makes a batch of all windows of each sample; see `Processor.collate`.

        Raises:
            DataError: A question is too long for a window.
        """
        rows, kinds, targets = [], [], []
        places: list[Window] = []
        for number, sample in enumerate(samples):
            question, (context, spans) = self.encode(sample.question)[0], self.encode(sample.context)
            answer = sample.answers[0] if sample.answers else None
            for start, end in self.windows(sample):
                joined, types, first = self.template.join(question, context[start:end])
                rows.append(joined)
                kinds.append(types)
                places.append(Window(number, first, spans[start:end]))
                targets.append(target(places[-1], answer))
        ids, key_mask = pad_rows(rows, self.tokenizer.pad_id)  # (N, L)
        context_mask, evidence = torch.zeros_like(key_mask), torch.zeros_like(key_mask)
        for row, place in enumerate(places):
            context_mask[row, place.first : place.first + len(place.spans)] = True
            for a, b in samples[place.question].evidence:
                inside = [place.first + n for n, (start, end) in enumerate(place.spans) if start < b and end > a]
                evidence[row, inside] = True
        starts, ends = torch.tensor(targets).T
        return QABatch(
            input_ids=ids,
            key_mask=key_mask,
            token_types=pad_rows(kinds, 0)[0],
            context_mask=context_mask,
            starts=starts,
            ends=ends,
            evidence=evidence,
            has_evidence=torch.tensor([bool(samples[place.question].evidence) for place in places]),
            windows=places,
            ids=[sample.id for sample in samples],
            samples=list(samples),
            is_repeat=is_repeat,
        )

    def ablate(self, batch: QABatch, what: str, seeds: Sequence[int] | None = None) -> QABatch:
        if what != "question":
            return super().ablate(batch, what, seeds)  # type: ignore[return-value]
        first = torch.tensor([window.first for window in batch.windows])[:, None]
        inside = torch.arange(batch.input_ids.shape[1]) < first - len(self.template.between)
        question = inside & (torch.arange(batch.input_ids.shape[1]) >= len(self.template.before))
        batch.input_ids = batch.input_ids.masked_fill(question, self.tokenizer.unk_id)
        return batch


def target(window: Window, answer: Answer | None) -> tuple[int, int]:
    """Positions of the answer's first and last token in a window; (0, 0) if it is not wholly in the window."""
    if answer is None or not window.spans or answer.start < window.spans[0][0] or answer.end > window.spans[-1][1]:
        return 0, 0
    inside = [i for i, (start, end) in enumerate(window.spans) if start < answer.end and end > answer.start]
    return (window.first + inside[0], window.first + inside[-1]) if inside else (0, 0)
