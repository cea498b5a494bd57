"""Training and measuring VQA: soft scores over an answer vocabulary (VQA v2), and guidance where regions are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.image import ImageAugment
from data.text import SPECIAL_TOKENS, UNK
from data.vqa import VQABatch, VQADataset, VQAProcessor, collate, drop_uncovered
from data.vqa_eval import vqa_accuracy
from mmattn.explain import capture
from tasks.common.datamodule import Split, TaskDataModule
from tasks.common.losses import soft_cross_entropy
from tasks.common.metrics import GroupedMean
from tasks.common.module import TaskModule
from tasks.vqa.losses import guidance_loss, object_loss
from tasks.vqa.memory import DESCRIPTORS, describe
from tasks.vqa.model import VQAModel, judged

UNK_ID = SPECIAL_TOKENS.index(UNK)  # the same in every kind of tokenizer


class VQADataModule(TaskDataModule):
    """Questions about pictures.

    Args:
        image_root: folder of the pictures, where it is not beside the questions.
        image_size: side of the square that the model sees, in pixels.
        resize: how a picture gets that shape: squash, crop or pad.
        tokenizer: of questions: word, bpe or unigram.
        vocab_size: most token ids.
        min_count: least occurrences of a word in the training questions.
        max_len: most tokens of a question.
        max_answers: most answers in the vocabulary.
        min_answer_count: least number of questions with an answer.
        augment: ImageAugment's keywords, for training pictures; none: no augmentation.
        preload: decode each picture once into memory, as long as that takes at most 2 GB.
        scenes: training scenes of the built-in data.
        hide: train and measure without one of the inputs, the question or the image: a baseline to be beaten.
    """

    processor_class = VQAProcessor
    sizes = ("vocab_size", "num_answers", "image_size", "num_object_labels", "memory_size")

    def __init__(
        self,
        image_root: str | None = None,
        image_size: int = 64,
        resize: Literal["squash", "crop", "pad"] = "squash",
        tokenizer: Literal["word", "bpe", "unigram"] = "word",
        vocab_size: int = 10_000,
        min_count: int = 1,
        max_len: int = 32,
        max_answers: int = 3129,
        min_answer_count: int = 1,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        scenes: int | None = None,
        hide: Literal["question", "image"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.image_root, self.preload, self.scenes, self.hide = image_root, preload, scenes, hide
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

    def open_split(self, split: Split, path: str | None) -> VQADataset:
        if path is None:
            from data.demo.vqa import make

            return VQADataset(make(split, num_scenes=self.scenes if split == "train" else None))
        return VQADataset(path, self.image_root, on_error=self.on_error)

    def make_processor(self, train: Any) -> VQAProcessor:
        return VQAProcessor.fit(train, **self.processor_options)

    def prepare_dataset(self, dataset: Any, split: Split) -> VQADataset:
        if split == "train":
            dataset = drop_uncovered(dataset, self.processor)
        if self.preload:
            dataset.preload(self.processor.image)
        return dataset

    def model_sizes(self) -> dict[str, Any]:
        return self.processor.sizes() | {
            "image_size": self.processor.image.size[0],
            "num_object_labels": len(self.processor.object_labels),
            "memory_size": self._memory_size(),
        }

    def _memory_size(self) -> tuple[int, int, int]:
        """Examples, distinct questions and pictures that training may remember; a shipped model says its own."""
        if self._processor_is_shipped:
            return (0, 0, 0)
        kept = [sample for sample in self.dataset("train").samples if self.processor.covers(sample)]  # type: ignore[attr-defined]
        return len(kept), len({s.question for s in kept}), len({s.image_key() for s in kept})

    def examples(self) -> tuple[Tensor, ...]:
        """The training part as `ExampleMemory.fit` takes it: pictures not augmented, what is hidden hidden."""
        dataset, make = self.dataset("train"), self.collate_fn("val")
        groups = torch.tensor(dataset.groups)  # type: ignore[attr-defined]
        pictures = torch.zeros(int(groups.max()) + 1, sum(DESCRIPTORS.values()), dtype=torch.float64)
        ids, masks, targets = [], [], []
        for rows in torch.arange(len(groups)).split(256):
            batch = make([dataset[i] for i in rows.tolist()])
            pictures[groups[rows]] = describe(batch.pixel_values)[batch.image_index]
            room = (0, self.processor.tokenizer.max_len - batch.input_ids.shape[1])
            ids.append(nn.functional.pad(batch.input_ids, room))
            masks.append(nn.functional.pad(batch.key_mask, room))
            targets.append(batch.targets)
        return pictures, groups, torch.cat(ids), torch.cat(masks), torch.cat(targets)

    def collate_fn(self, split: Split) -> Callable[..., VQABatch]:
        make = partial(collate, processor=self.processor, augment=self.augment if split == "train" else None)
        return partial(_without, self.hide, make) if self.hide else make


def _without(hidden: str, make: Callable[..., VQABatch], samples: Any, **options: Any) -> VQABatch:
    """A batch without one of its inputs: a grey picture, or a question of one unknown word."""
    batch = make(samples, **options)
    if hidden == "image":
        batch.pixel_values.zero_()
        return batch
    batch.input_ids = torch.full_like(batch.input_ids[:, :1], UNK_ID)
    batch.key_mask = torch.ones_like(batch.key_mask[:, :1])
    return batch


class VQAModule(TaskModule):
    """VQA's losses and accuracy.

    Args:
        guidance: weight of the loss that pulls attention to the regions an answer rests on, where the data name them.
        object_supervision: weight of the loss that names the objects in each cell of the picture's grid, where the
            data have them.
        word_dropout: share of question words hidden in training.
        training: what TaskModule takes.
    """

    task = "vqa"
    model_class = VQAModel
    monitor = "val/accuracy"
    model: Any

    def __init__(
        self,
        model: dict[str, Any],
        *,
        guidance: float = 0.0,
        object_supervision: float = 0.0,
        word_dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(model, **training)
        self.guidance, self.object_supervision, self.word_dropout = guidance, object_supervision, word_dropout

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        keywords = super().complete_keywords(sizes)
        # Without its loss the head that names objects would be dead weight.
        unused = {} if self.object_supervision else {"num_object_labels": 0}
        return keywords | unused | ({} if keywords.get("memory") else {"memory_size": (0, 0, 0)})

    def on_fit_start(self) -> None:
        memory = self.model.memory
        if memory is not None and not memory.is_filled:  # a resumed run has it from its checkpoint
            memory.fit(*self.trainer.datamodule.examples())  # type: ignore[attr-defined]

    def _forward(self, batch: VQABatch) -> Any:
        return self.model(batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index)

    def training_loss(self, batch: VQABatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.word_dropout:
            hidden = torch.rand(batch.input_ids.shape, device=self.device) < self.word_dropout
            batch.input_ids = batch.input_ids.masked_fill(hidden & batch.key_mask, UNK_ID)
        if self.guidance and batch.region_mask.any():
            fusion = self.model.head.fusion
            with capture(fusion) as maps:  # the encoders stay fused
                output = self._forward(batch)
            layers = fusion.grid_maps(maps, batch.image_index, batch.key_mask)
            where = (batch.regions, batch.region_mask, batch.region_phrases)
            parts = {"guidance": guidance_loss(judged(layers), *where, self.model.grid_size)}
        else:
            output, parts = self._forward(batch), {}
        loss = answer = soft_cross_entropy(output.logits, batch.targets, self.label_smoothing)
        if parts:
            loss = loss + self.guidance * parts["guidance"]
        if self.object_supervision and batch.object_mask.any():
            objects = (batch.object_boxes, batch.object_mask, batch.object_labels)
            parts["objects"] = object_loss(output.object_logits, *objects, self.model.grid_size)
            loss = loss + self.object_supervision * parts["objects"]
        return loss, parts | {"answer": answer} if parts else {}

    def make_metric(self) -> nn.Module:
        samples = self.trainer.datamodule.samples()  # type: ignore[attr-defined]
        return GroupedMean("accuracy", sorted({s.question_type for s in samples if s.question_type}))

    def update_metric(self, metric: Any, batch: VQABatch) -> None:
        best = self._forward(batch).logits.argmax(-1).tolist()
        answers = self.trainer.datamodule.processor.answers  # type: ignore[attr-defined]
        scores = [vqa_accuracy(answers[k], given) for k, given in zip(best, batch.answers, strict=True)]
        metric.update(torch.tensor(scores, dtype=torch.float64, device=self.device), batch.question_types)


LIGHTNING = (VQAModule, VQADataModule)
