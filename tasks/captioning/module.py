"""Training and evaluation of captioning: cross-entropy, supervised or evenly spread attention, COCO's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from mmattn.data.image.processor import ImageAugment
from mmattn.explain import capture
from mmattn.tasks.captioning.data import CaptionBatch, CaptionDataset
from mmattn.tasks.captioning.facts import check_facts
from mmattn.tasks.captioning.metrics import Frequencies, cider_d, score, signature, splitter
from mmattn.tasks.captioning.processor import CaptionProcessor
from mmattn.tasks.captioning.self_critical import draw, self_critical_loss
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.grid import cells_inside, object_loss, pointing_loss
from mmattn.tasks.common.options import check_range
from mmattn.tasks.common.seq2seq.model import CorpusMetric, token_loss
from mmattn.tasks.common.seq2seq.module import PairLossOptions, WritingModule


class CaptioningDataModule(TaskDataModule[CaptionDataset, CaptionProcessor]):
    """Images with their captions.

    Args:
        root: Folder of the images, if they are not near the captions.
        image_size: Side of the square input image, in pixels; none: 64, or that of `init_from`.
        resize: Method of resizing to a square: squash, crop or pad; none: squash, or that of `init_from`.
        tokenizer: Tokenizer of the captions: word, bpe or unigram; none: word, or that of `init_from`.
        vocab_size: Maximum size of the vocabulary; none: 10,000.
        min_count: Minimum number of occurrences of a word in the training captions; none: 1.
        lowercase: Lower-case all captions; none: true.
        max_target_len: Maximum number of tokens of a caption; longer ones are truncated in training.
        captions_per_image: Number of captions of each image that an epoch trains on, drawn at random; none: all.
        augment: Keywords of ImageAugment, for training images; none: no augmentation.
        preload: Decode each image once into memory, if that takes at most 2 GB.
        ablate: Train and evaluate without the image: a baseline.
    """

    task = "captioning"
    sizes = ("vocab_size", "image_size", "num_object_labels")
    least_steps = 1000

    def __init__(
        self,
        root: str | None = None,
        image_size: int | None = None,
        resize: Literal["squash", "crop", "pad"] | None = None,
        tokenizer: Literal["word", "bpe", "unigram"] | None = None,
        vocab_size: int | None = None,
        min_count: int | None = None,
        lowercase: bool | None = None,
        max_target_len: int = 40,
        captions_per_image: int | None = None,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        ablate: Literal["image"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_range("data.captions_per_image", captions_per_image, 1)
        self.root, self.preload, self.ablate = expand(root, "data.root"), preload, ablate
        self.captions_per_image = captions_per_image
        self.processor_options = {
            "image_size": image_size,
            "resize": resize,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "min_count": min_count,
            "lowercase": lowercase,
            "max_target_len": max_target_len,
        }
        self.augment = ImageAugment(**augment) if augment else None

    def make_dataset(self, source: Any, split: Split) -> CaptionDataset:
        return CaptionDataset(source, split, self.root, on_error=self.on_error)

    def prepare_dataset(self, dataset: CaptionDataset, split: Split) -> CaptionDataset:
        if self.preload:
            dataset.preload(self.processor.image)
        return dataset

    def model_sizes(self) -> dict[str, Any]:
        return super().model_sizes() | {"num_object_labels": len(self.processor.object_labels)}

    def collate_options(self, split: Split) -> dict[str, Any]:
        return {"captions": self.captions_per_image} if split == "train" else {}


@dataclass
class CaptioningLossOptions(PairLossOptions):
    """The loss of captioning.

    Args:
        objective: cross_entropy; or self_critical, a second stage for a model of `--init_from`, which rewards captions
            that the model draws by their CIDEr-D (Rennie et al. 2017).
        draws: Number of captions that self-critical training draws for each image. The baseline of each is the mean of
            the others (Luo 2020); of a single one, the greedy caption (Rennie et al. 2017).
        label_smoothing: Label smoothing, as in `torch.nn.CrossEntropyLoss`.
        word_dropout: Probability that training replaces a word of the decoder's input by the unknown token.
        attention_supervision: Weight of the loss of attention outside the boxes of what a word names, for data with
            groundings.
        object_supervision: Weight of the loss of predicting the object labels in each cell of the image's grid, for
            data with objects.
        doubly_stochastic: Weight of the loss that lets each cell be attended to about once in a caption (Xu et al.
            2015, section 4.2.1).
    """

    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    draws: int = 5
    attention_supervision: float = 0.0
    object_supervision: float = 0.0
    doubly_stochastic: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        others = [f.name for f in fields(self) if f.name not in ("objective", "draws") and getattr(self, f.name)]
        if self.objective == "self_critical" and others:
            given = ", ".join(f"loss.{name}" for name in others)
            raise ConfigError(f"{given}: expected 0 with loss.objective self_critical, whose loss has no such term.")
        if self.objective != "self_critical" and self.draws != type(self).draws:
            raise ConfigError(
                f"loss.draws: expected loss.objective self_critical, which draws; found {self.objective}."
            )
        check_range("loss.draws", self.draws, 1)
        for name in ("attention_supervision", "object_supervision", "doubly_stochastic"):
            check_range(f"loss.{name}", getattr(self, name), 0)


def grounding_loss(attention: Tensor, batch: CaptionBatch, grid_size: tuple[int, int]) -> Tensor:
    """Negative logarithm of the share of attention on the boxes of what a word names; a scalar.

    Args:
        attention: (B, L, P), rows summing to one.
        batch: Its regions.
        grid_size: (gh, gw), P = gh * gw.
    """
    inside = cells_inside(batch.regions, batch.region_mask, grid_size).to(attention.dtype)  # (B, R, P)
    named = F.one_hot(batch.region_tokens, attention.shape[1]).to(attention.dtype)  # (B, R, L)
    target = (named.mT @ inside).clamp_max(1.0)  # (B, L, P)
    return pointing_loss((attention * target).sum(-1), target.any(-1))


def doubly_stochastic_loss(attention: Tensor, label_mask: Tensor) -> Tensor:
    """``sum_i (1 - sum_t alpha_ti)^2`` over the cells, per word (Xu et al. 2015, equation 14); a scalar.

    Args:
        attention: alpha (B, L, P), rows summing to one.
        label_mask: (B, L) bool, True = counts.
    """
    seen = (attention * label_mask[:, :, None]).sum(1)  # (B, P)
    return (1 - seen).square().sum() / label_mask.sum()


class CaptioningModule(WritingModule[CaptioningDataModule]):
    """Cross-entropy and losses of the attention; BLEU, ROUGE-L, CIDEr-D, and the facts of the built-in data."""

    task = "captioning"
    Loss = CaptioningLossOptions

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        # Without its loss the object head would remain untrained.
        return super().complete_keywords(sizes) | ({} if self.loss.object_supervision else {"num_object_labels": 0})

    def check_processor(self, processor: CaptionProcessor) -> None:
        if self.loss.object_supervision and self.network is not None and self.start is not None:
            expected = f"expected 0, since {self.start.where} predicts no object labels"
            raise ConfigError(f"loss.object_supervision: {expected}; found {self.loss.object_supervision}.")
        if self.loss.objective == "self_critical" and (self.start is None or self.start.headless):
            found = "random weights" if self.start is None else f"{self.start.where}, an image encoder"
            raise ConfigError(
                "loss.objective self_critical: expected --init_from a model that writes captions, which this second "
                f"stage improves; found {found}."
            )

    def training_loss(self, batch: CaptionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.loss.objective == "self_critical":
            return self._self_critical(batch)
        options, parts = self.loss, dict[str, Tensor]()
        self.apply_word_dropout(batch)
        supervised = bool(options.attention_supervision) and bool(batch.region_mask.any())
        if supervised or options.doubly_stochastic:
            with capture(self.model, only=self.model.attention_paths) as maps:  # all others keep their fused kernels
                output = self.run_model(batch)
            attention = self.model.alignment(maps)  # (B, L, P)
            if supervised:
                parts["attention_supervision"] = grounding_loss(attention, batch, self.model.grid_size)
            if options.doubly_stochastic:
                parts["doubly_stochastic"] = doubly_stochastic_loss(attention, batch.label_mask)
        else:
            output = self.run_model(batch)
        if options.object_supervision and batch.object_mask.any():
            objects = (batch.object_boxes, batch.object_mask, batch.object_labels)
            parts["object_supervision"] = object_loss(output.object_logits, *objects, self.model.grid_size)
        words = token_loss(output.logits, batch.labels, batch.label_mask, options.label_smoothing)
        loss = words + sum(getattr(options, name) * value for name, value in parts.items())
        return loss, parts | {"words": words} if parts else {}

    def _self_critical(self, batch: CaptionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        processor = self.data.processor
        self.eval()
        ids, mask, advantage = draw(self.model, batch, processor, self._reward, self.loss.draws)
        self.train()
        loss = self_critical_loss(self.model, batch, processor, ids, mask, advantage)
        return loss, {"advantage": advantage.mean()}

    def _reward(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        split, frequencies = self._words
        return cider_d(list(map(split, texts)), [list(map(split, given)) for given in references], frequencies)

    @cached_property
    def _words(self) -> tuple[Callable[[str], list[str]], Frequencies]:
        """How captions are split into words, and the words' frequencies in the training data."""
        captions = [sample.captions for sample in self.data.dataset("train").samples]
        split = splitter(captions)
        return split, Frequencies.of([split(text) for text in given] for given in captions)

    def measure(self, metric: CorpusMetric, batch: CaptionBatch, texts: list[str]) -> None:
        for text, objects in zip(texts, batch.objects, strict=True):
            if objects:
                metric.add("facts", *check_facts(text, objects))

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        return score(hypotheses, references)

    def notes(self) -> dict[str, str]:
        return signature()
