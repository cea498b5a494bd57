"""The processor of VQA: questions and images to tensors, logits to answers; shipped with the model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.objects import object_names, object_tensors, pad_boxes
from mmattn.data.image.processor import FULL, Box, ImageAugment, ImageProcessor, compose
from mmattn.data.image.public import FittedImages, make_image_processor
from mmattn.data.processor import Processor
from mmattn.data.text.pretrained import load_tokenizer
from mmattn.data.text.tokenizer import TextProcessor, TokenIds
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.images import resized
from mmattn.tasks.common.seq2seq.processor import check_kept, encode_targets
from mmattn.tasks.vqa.data import VQABatch, VQADataset, VQASample, move_regions, other_image
from mmattn.tasks.vqa.metrics import soft_scores

MOST_TOKENS = 32  # of an answer that a model writes
scores_of = lru_cache(maxsize=200_000)(soft_scores)  # cached by tuple of answers, which repeat in every epoch


@dataclass
class AnswerCoverage:
    """Coverage of a data set by an answer vocabulary."""

    total: int  # questions
    covered: int  # questions with at least one answer in the vocabulary
    ceiling: float  # upper bound of the accuracy: the mean accuracy of the vocabulary's best answer

    @property
    def share(self) -> float:
        """Share of the questions that are covered."""
        return self.covered / self.total if self.total else 1.0

    def __str__(self) -> str:
        missing = self.total - self.covered
        return (
            f"{missing:,} of {self.total:,} questions ({1 - self.share:.1%}) have no answer in the vocabulary; "
            f"the best possible accuracy is {self.ceiling:.4f}"
        )


class VQAProcessor(Processor[VQASample, VQABatch]):
    """Converts questions and images to tensors and logits to answers; shipped with the model.

    Args:
        image: Image processor.
        tokenizer: Tokenizer of the questions.
        answers: The answer vocabulary, normalized; the model's output i is the logit of ``answers[i]``.
        object_labels: The vocabulary of ``VQASample.objects``; empty if they are not used.
        writer: Tokenizer of the answers of a model that writes them, which has no vocabulary of answers.
        options: Additional JSON values: the generation config of such a model.
    """

    KEYS = frozenset({"image", "text", "answers", "object_labels", "writer", "options"})
    LATER: ClassVar[Mapping[str, Any]] = {"writer": None, "options": {}}

    def __init__(
        self,
        image: ImageProcessor,
        tokenizer: TokenIds,
        answers: Sequence[str],
        object_labels: Sequence[str] = (),
        writer: TokenIds | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.image, self.writer, self.options = image, writer, dict(options or {})
        self.tokenizer = tokenizer
        self.answers = list(answers)
        self.object_labels = list(object_labels)
        self._answer_id = {answer: index for index, answer in enumerate(self.answers)}
        self._label_id = {label: index for index, label in enumerate(self.object_labels)}
        if (not self.answers and writer is None) or len(self._answer_id) != len(self.answers):
            raise DataError("answer vocabulary", "different answers, at least one", f"{len(self.answers)} answers")

    @classmethod
    def fit(
        cls,
        dataset: VQADataset,
        image_size: int | Sequence[int] = 64,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        resize: str = "squash",
        tokenizer: str = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        max_len: int = 64,
        max_answers: int = 3129,
        min_answer_count: int = 1,
    ) -> VQAProcessor:
        """Fit a processor to the training data.

        Args:
            dataset: The training data.
            image_size: Input size of images, see ``ImageProcessor``.
            mean: Mean of pixel values per channel.
            std: Standard deviation of pixel values per channel.
            resize: Resizing mode, see ``ImageProcessor``.
            tokenizer: ``word``, ``bpe`` or ``unigram``.
            vocab_size: Maximum size of the token vocabulary.
            min_count: Minimum number of occurrences of a word.
            max_len: Maximum number of tokens of a question.
            max_answers: Maximum size of the answer vocabulary (usually 3,129 for VQA v2).
            min_answer_count: Minimum number of questions whose most frequent answer it is (9 for VQA v2).

        Raises:
            DataError: The answer vocabulary is empty.
        """
        counts: Counter[str] = Counter()
        for sample in dataset.samples:
            scores = scores_of(tuple(sample.answers))
            if scores:
                counts[max(scores, key=lambda answer: scores[answer])] += 1
        ranked = sorted((a for a in counts if a and counts[a] >= min_answer_count), key=lambda a: (-counts[a], a))
        if not ranked:
            found = f"none among {sum(counts.values())} labeled questions"
            raise DataError(dataset.name, f"an answer given to {min_answer_count} or more questions", found)
        return cls(
            ImageProcessor(image_size, mean, std, resize),
            TextProcessor.fit((s.question for s in dataset.samples), tokenizer, vocab_size, min_count, max_len=max_len),
            ranked[:max_answers],
            object_names(dataset.samples),
        )

    @property
    def labels(self) -> list[str] | None:
        """The answer vocabulary; None if answers are written."""
        return self.answers if self.writer is None else None

    def sizes(self) -> dict[str, Any]:
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "num_answers": len(self.answers),
            "image_size": self.image.size[0],
        }

    def collate(
        self,
        samples: Sequence[VQASample],
        *,
        augment: ImageAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
    ) -> VQABatch:
        """Collate a batch; each distinct image is loaded once, and augmented with its first question's seed."""
        if augment is not None and seeds is None:
            raise ValueError("collate: augment needs seeds")
        slots: dict[str, int] = {}
        image_index = [slots.setdefault(sample.image_key(), len(slots)) for sample in samples]
        firsts = [image_index.index(slot) for slot in range(len(slots))]  # the first question about each image
        for sample, slot in zip(samples, image_index, strict=True):
            if problem := other_image(samples[firsts[slot]].image, sample):
                raise DataError(f"question {sample.id}", *problem)
        pixels: list[np.ndarray] = []
        windows: list[Box] = []
        for first in firsts:
            array, window = self.image.pixels(samples[first].image, name=f"question {samples[first].id}")
            inner = FULL
            if augment is not None and seeds is not None:
                array, inner = augment(array, seeds[first])
            pixels.append(array)
            windows.append(compose(window, inner))
        input_ids, key_mask = self.encode([sample.question for sample in samples])
        moved = [move_regions(sample, windows[slot]) for sample, slot in zip(samples, image_index, strict=True)]
        regions, region_mask = pad_boxes([boxes for boxes, _ in moved])
        region_phrases = torch.zeros(region_mask.shape, dtype=torch.long)
        region_phrases[region_mask] = torch.tensor([n for _, phrases in moved for n in phrases], dtype=torch.long)
        objects = [samples[first].objects for first in firsts]  # of the first question about each image
        object_boxes, object_mask, object_labels = object_tensors(objects, windows, self._label_id)
        return VQABatch(
            pixel_values=self.image.normalize(pixels),
            image_index=torch.tensor(image_index, dtype=torch.long),
            input_ids=input_ids,
            key_mask=key_mask,
            targets=self.targets(samples),
            regions=regions,
            region_mask=region_mask,
            region_phrases=region_phrases,
            object_boxes=object_boxes,
            object_mask=object_mask,
            object_labels=object_labels,
            ids=[sample.id for sample in samples],
            answers=[list(sample.answers) for sample in samples],
            question_types=[sample.question_type for sample in samples],
            answer_types=[sample.answer_type for sample in samples],
            is_repeat=is_repeat,
            pixel_mask=self.image.pixel_mask(pixels) if isinstance(self.image, FittedImages) else None,
            **self._written(samples),
        )

    def _written(self, samples: Sequence[VQASample]) -> dict[str, Tensor]:
        """The fields of a batch for a model that writes its answers; none without such answers."""
        rows = [
            (n, answer, score / sum(scores.values()))
            for n, scores in enumerate(scores_of(tuple(sample.answers)) for sample in samples)
            for answer, score in scores.items()
        ]
        if self.writer is None or not rows:
            return {}
        index, texts, weights = zip(*rows, strict=True)
        more = {"answer_index": torch.tensor(index), "answer_weights": torch.tensor(weights)}
        return encode_targets(self.writer, texts, MOST_TOKENS) | more

    def encode(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode questions as ids (B, L) and mask (B, L), True = a real token.

        Public tokenizers whose model expects a first token, such as [CLS], add it and the end token.
        """
        return self.tokenizer.encode_batch(questions, eos=bool(self.tokenizer.prefix_ids))

    def tokens(self, question: str) -> list[str]:
        """The tokens of a question that `encode` gives, as shown to users."""
        tokens = self.tokenizer.tokens(question)
        if self.tokenizer.prefix_ids:
            tokens = ["", *tokens[: self.tokenizer.max_len - len(self.tokenizer.prefix_ids) - 1], ""]
        return tokens

    def ablate(self, batch: VQABatch, what: str, seeds: Sequence[int] | None = None) -> VQABatch:
        """Replace the "image" by a grey image, or the "question" by one unknown word."""
        if what == "image":
            batch.pixel_values.zero_()
            return batch
        batch.input_ids = torch.full_like(batch.input_ids[:, :1], self.tokenizer.unk_id)
        batch.key_mask = torch.ones_like(batch.key_mask[:, :1])
        return batch

    def targets(self, samples: Sequence[VQASample]) -> Tensor:
        """Soft scores (B, V); zeros for samples without an answer in the vocabulary."""
        targets = np.zeros((len(samples), len(self.answers)), np.float32)  # whose single elements are set fast
        for b, sample in enumerate(samples):
            for answer, score in scores_of(tuple(sample.answers)).items():
                if answer in self._answer_id:
                    targets[b, self._answer_id[answer]] = score
        return torch.from_numpy(targets)

    def covers(self, sample: VQASample) -> bool:
        """Whether one of the sample's answers is in the vocabulary."""
        return any(map(self._knows, scores_of(tuple(sample.answers))))

    def _knows(self, answer: str) -> bool:
        return self.writer is not None or answer in self._answer_id

    def coverage(self, dataset: VQADataset) -> AnswerCoverage:
        """Coverage of the labeled questions by the vocabulary; evaluation counts the others as wrong."""
        labeled = [sample for sample in dataset.samples if sample.answers]
        best = 0.0
        for sample in labeled:
            scores = scores_of(tuple(sample.answers))
            best += max((score for answer, score in scores.items() if self._knows(answer)), default=0.0)
        covered = sum(self.covers(sample) for sample in labeled)
        return AnswerCoverage(len(labeled), covered, best / len(labeled) if labeled else 1.0)

    def retarget(self, train: VQADataset, given: Mapping[str, Any]) -> Self:
        """The same processor with the given size and resizing of images; tokenizer and answers are the model's.

        Raises:
            ConfigError: An option would change the tokenizer.
        """
        given = {key: value for key, value in given.items() if value is not None}
        check_kept({"tokenizer": self.tokenizer.kind, "vocab_size": self.tokenizer.vocab_size}, given)
        other = copy.copy(self)
        other.image = resized(self.image, given)
        return other

    def settings(self) -> dict[str, Any]:
        return {
            "image": self.image.config(),
            "text": self.tokenizer.config(),
            "answers": self.answers,
            "object_labels": self.object_labels,
            "writer": None if self.writer is None else self.writer.config(),
            "options": self.options,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        image = make_image_processor(config["image"])
        tokenizer = load_tokenizer(folder, config["text"])
        # The tokenizers of a public model differ in what is around a text, not in their files.
        writer = None if config["writer"] is None else load_tokenizer(folder, config["writer"])
        GenerationConfig(**config["options"].get("generation") or {})  # raises a ValueError for what it cannot use
        return cls(image, tokenizer, config["answers"], config["object_labels"], writer, config["options"])

    def save_parts(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    def parts_text(self) -> str:
        return self.tokenizer.to_json()


@dataclass(frozen=True)
class PublicInputs:
    """What public encoders expect: the image's preprocessing, the question's tokenizer, or both; no answers yet.

    Args:
        image: Image processor of a public image encoder; None: fitted to the data.
        tokenizer: Tokenizer of a public text encoder; None: fitted to the data.
    """

    image: ImageProcessor | None = None
    tokenizer: TokenIds | None = None

    def retarget(self, train: VQADataset, given: Mapping[str, Any]) -> VQAProcessor:
        """The processor of the data with these inputs; see `Processor.retarget`.

        Raises:
            ConfigError: An option would change the tokenizer, or how images are resized.
        """
        given = {key: value for key, value in given.items() if value is not None}
        if self.tokenizer is not None:
            check_kept({"tokenizer": self.tokenizer.kind, "vocab_size": self.tokenizer.vocab_size}, given)
        fitted = VQAProcessor.fit(train, **given)
        if self.image is not None:
            fitted.image = resized(self.image, given)
        if self.tokenizer is not None:
            tokenizer = copy.copy(self.tokenizer)
            tokenizer.max_len = min(tokenizer.max_len, given.get("max_len", tokenizer.max_len))
            fitted.tokenizer = tokenizer
        return fitted


class NetworkProcessor(VQAProcessor):
    """The processor of a public network, whose answers are those of the data that it is fine-tuned on."""

    def retarget(self, train: VQADataset, given: Mapping[str, Any]) -> Self:
        """The same inputs, with the answers of the data unless the network knows all of these.

        Raises:
            ConfigError: An option would change the tokenizer, or how images are resized; or restricts the answers of a
                model that writes them.
        """
        other = super().retarget(train, given)
        other.tokenizer = copy.copy(self.tokenizer)
        other.tokenizer.max_len = min(self.tokenizer.max_len, given.get("max_len") or self.tokenizer.max_len)
        counted = {name: given[name] for name in ("max_answers", "min_answer_count") if given.get(name) is not None}
        if self.writer is not None:
            for name, value in counted.items():
                raise ConfigError(
                    f"data.{name}: expected none, since the model to fine-tune writes its answers; found {value}."
                )
            return other
        answers = VQAProcessor.fit(train, **counted).answers
        if not set(answers) <= set(self.answers):
            other.answers = answers
            other._answer_id = {answer: index for index, answer in enumerate(answers)}
        return other
