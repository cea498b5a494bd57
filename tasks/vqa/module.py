"""Training and evaluation of VQA: soft scores over an answer vocabulary (VQA v2), and attention supervision."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmattn.data.errors import DataError
from mmattn.data.image.processor import ImageAugment
from mmattn.explain import capture
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.grid import object_loss
from mmattn.tasks.common.losses import soft_cross_entropy
from mmattn.tasks.common.metrics import GroupedMean
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import LossOptions, check_range
from mmattn.tasks.vqa.data import VQABatch, VQADataset
from mmattn.tasks.vqa.losses import attention_supervision_loss
from mmattn.tasks.vqa.metrics import vqa_accuracy
from mmattn.tasks.vqa.model import mean_over_layers
from mmattn.tasks.vqa.processor import VQAProcessor
from mmattn.tasks.vqa.writing import write_answers, writing_loss

logger = logging.getLogger(__name__)


class VQADataModule(TaskDataModule[VQADataset, VQAProcessor]):
    """Data module of questions about images.

    Args:
        image_root: Folder of the images, if they are not near the questions.
        image_size: Side of the square input image, in pixels; none: 64, or that of `init_from`.
        resize: Method of resizing to a square: squash, crop or pad; none: squash, or that of `init_from`.
        tokenizer: Tokenizer of the questions: word, bpe or unigram; none: word, or that of `init_from`, which is kept.
        vocab_size: Maximum size of the token vocabulary; none: 10,000.
        min_count: Minimum number of occurrences of a word in the training questions; none: 1.
        max_len: Maximum number of tokens of a question.
        max_answers: Maximum size of the answer vocabulary; none: 3,129. A model of this toolkit keeps its answers.
        min_answer_count: Minimum number of training questions with an answer; none: 1.
        augment: Keywords of ImageAugment, for training images; none: no augmentation.
        preload: Decode each image once into memory, if that takes at most 2 GB.
        ablate: Input that is removed in training and evaluation, question or image: a baseline.
    """

    task = "vqa"
    sizes = ("vocab_size", "num_answers", "image_size", "num_object_labels")

    def __init__(
        self,
        image_root: str | None = None,
        image_size: int | None = None,
        resize: Literal["squash", "crop", "pad"] | None = None,
        tokenizer: Literal["word", "bpe", "unigram"] | None = None,
        vocab_size: int | None = None,
        min_count: int | None = None,
        max_len: int = 32,
        max_answers: int | None = None,
        min_answer_count: int | None = None,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        ablate: Literal["question", "image"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.image_root, self.preload, self.ablate = image_root, preload, ablate
        self.processor_options = {
            "image_size": image_size,
            "resize": resize,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "min_count": min_count,
            "max_len": max_len,
            "max_answers": max_answers,
            "min_answer_count": min_answer_count,
        }
        self.augment = ImageAugment(**augment) if augment else None

    def make_dataset(self, source: Any, split: Split) -> VQADataset:
        return VQADataset(source, self.image_root, on_error=self.on_error)

    def prepare_dataset(self, dataset: VQADataset, split: Split) -> VQADataset:
        if split == "train":
            dataset = drop_uncovered(dataset, self.processor)
        if self.preload:
            dataset.preload(self.processor.image)
        return dataset

    def model_sizes(self) -> dict[str, Any]:
        return super().model_sizes() | {"num_object_labels": len(self.processor.object_labels)}


def drop_uncovered(dataset: VQADataset, processor: VQAProcessor) -> VQADataset:
    """Exclude training questions without an answer in the vocabulary, which have no target; their number is logged.

    Evaluation keeps such questions, and counts them as wrong.
    """
    coverage = processor.coverage(dataset)
    if coverage.covered == coverage.total:
        return dataset
    logger.warning("%s: excluded from training: %s", dataset.name, coverage)
    kept = dataset.filter(processor.covers)
    if not kept.samples:
        raise DataError(dataset.name, "at least one question with an answer in the vocabulary", "none")
    return kept


@dataclass
class VQALossOptions(LossOptions):
    """The loss of VQA.

    Args:
        attention_supervision: Weight of the loss of attention outside the regions that determine an answer, for data
            with regions.
        object_supervision: Weight of the loss of predicting the object labels in each cell of the image's grid, for
            data with objects.
        word_dropout: Probability that a question word is replaced by the unknown token in training.
    """

    attention_supervision: float = 0.0
    object_supervision: float = 0.0
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.attention_supervision", self.attention_supervision, 0)
        check_range("loss.object_supervision", self.object_supervision, 0)
        check_range("loss.word_dropout", self.word_dropout, 0, 1)


class VQAModule(TaskModule[VQADataModule]):
    """LightningModule of VQA: losses and VQA accuracy."""

    task = "vqa"
    Loss = VQALossOptions
    model: Any

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        # Without its loss the object head would remain untrained.
        return super().complete_keywords(sizes) | ({} if self.loss.object_supervision else {"num_object_labels": 0})

    def _forward(self, batch: VQABatch) -> Any:
        return self.model(*batch.inputs)

    def check_processor(self, processor: VQAProcessor) -> None:
        for name in ("attention_supervision", "object_supervision"):
            if getattr(self.loss, name) and self.network is not None and self.start is not None:
                expected = f"expected 0, since {self.start.where} is trained by its answers alone"
                raise ConfigError(f"loss.{name}: {expected}; found {getattr(self.loss, name)}.")

    def training_loss(self, batch: VQABatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.loss.word_dropout:
            dropped = torch.rand(batch.input_ids.shape, device=self.device) < self.loss.word_dropout
            batch.input_ids = batch.input_ids.masked_fill(
                dropped & batch.key_mask, self.data.processor.tokenizer.unk_id
            )
        if self.data.processor.writer is not None:
            return writing_loss(self.model, batch, self.loss.label_smoothing), {}
        if self.loss.attention_supervision and batch.region_mask.any():
            fusion = self.model.head.fusion
            with capture(fusion, only=fusion.mapped) as maps:  # all others keep their fused kernels
                output = self._forward(batch)
            layers = fusion.grid_maps(maps, batch.image_index, batch.key_mask)
            where = (batch.regions, batch.region_mask, batch.region_phrases)
            parts = {"attention": attention_supervision_loss(mean_over_layers(layers), *where, self.model.grid_size)}
        else:
            output, parts = self._forward(batch), {}
        loss = answer = soft_cross_entropy(output.logits, batch.targets, self.loss.label_smoothing)
        if parts:
            loss = loss + self.loss.attention_supervision * parts["attention"]
        if self.loss.object_supervision and batch.object_mask.any():
            objects = (batch.object_boxes, batch.object_mask, batch.object_labels)
            parts["objects"] = object_loss(output.object_logits, *objects, self.model.grid_size)
            loss = loss + self.loss.object_supervision * parts["objects"]
        return loss, parts | {"answer": answer} if parts else {}

    def chance(self) -> Chance | None:
        train, val = self.data.dataset("train").samples, self.data.dataset("val").samples
        answers = (answer for sample in train for answer in sample.answers)
        return constant(answers, lambda answer: sum(vqa_accuracy(answer, s.answers) for s in val) / len(val))

    def make_metric(self) -> nn.Module:
        return GroupedMean("accuracy", sorted({s.question_type for s in self.data.samples() if s.question_type}))

    def update_metric(self, metric: Any, batch: VQABatch) -> None:
        processor = self.data.processor
        if processor.writer is not None:
            best = [first for (first, _), *_ in write_answers(self.model, batch, processor)]
        else:
            best = [processor.answers[k] for k in self._forward(batch).logits.argmax(-1).tolist()]
        scores = [vqa_accuracy(answer, given) for answer, given in zip(best, batch.answers, strict=True)]
        metric.update(torch.tensor(scores, dtype=torch.float64, device=self.device), batch.question_types)
