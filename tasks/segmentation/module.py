"""Training and evaluation of segmentation: a sum of losses, deep supervision, one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.data.options import from_options
from mmattn.tasks.common.chance import SOME, Chance
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import DecodeOptions, LossOptions, check_range
from mmattn.tasks.segmentation.augment import SegmentationAugment
from mmattn.tasks.segmentation.data import Prepared, SegmentationBatch, SegmentationDataset
from mmattn.tasks.segmentation.demo import CLASSES
from mmattn.tasks.segmentation.losses import LOSSES, class_weights, segmentation_loss
from mmattn.tasks.segmentation.metrics import SegmentationMetric, scores
from mmattn.tasks.segmentation.model import best_classes
from mmattn.tasks.segmentation.processor import SegmentationProcessor
from mmattn.tasks.segmentation.tiles import segment


class SegmentationDataModule(TaskDataModule[SegmentationDataset, SegmentationProcessor]):
    """Data module of images with masks.

    Args:
        classes: Path of the class list, if it is not `classes.txt` in the data's folder or its parent.
        image_size: Shorter side to which input images are resized, in pixels; none: not resized, or as in `init_from`.
            Metrics are always computed at the masks' own size.
        augment: Keywords of SegmentationAugment, for training images; none: no augmentation.
        preload: Decode images and masks once into memory, if that takes at most 2 GB.
        ablate: Train and evaluate without context: images are cut into patches, with their labels, and the patches
            are shuffled. A baseline.
    """

    task = "segmentation"
    sizes = ("num_classes",)
    largest_batch = 16  # images are not resized by default

    def __init__(
        self,
        classes: str | None = None,
        image_size: int | None = None,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        ablate: Literal["context"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.classes, self.preload = expand(classes, "data.classes"), preload
        self.ablate = ablate
        self.processor_options = {"size": image_size}
        self.augment = from_options(SegmentationAugment, augment, "data.augment")

    def make_dataset(self, source: Any, split: Split) -> SegmentationDataset:
        own = isinstance(source, str) or self.paths[split] is not None
        classes = self.classes if own else CLASSES  # of the built-in scenes
        return SegmentationDataset(source, classes, on_error=self.on_error)

    def prepare_dataset(self, dataset: SegmentationDataset, split: Split) -> SegmentationDataset:
        if self.preload:
            self.processor.preload(dataset, training=split == "train")
        self.processor.check(dataset)
        return dataset

    def check_train(self, dataset: SegmentationDataset) -> None:
        self.make_processor(dataset)  # counts the classes

    def collate_options(self, split: Split) -> dict[str, Any]:
        return {"training": split == "train"}


@dataclass
class SegmentationLossOptions(LossOptions):
    """The loss of segmentation.

    Args:
        objective: Losses and their weights: cross_entropy, dice, focal.
        class_weights: Weights of the classes, from the training pixels: none, log, sqrt, median (the strongest).
        aux_weight: Weight of the losses of coarser maps, for models with deep supervision.
    """

    objective: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 0.5})
    class_weights: Literal["none", "log", "sqrt", "median"] = "none"
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objective or any(name not in LOSSES or weight < 0 for name, weight in self.objective.items()):
            expected = f"{', '.join(LOSSES)} with weights from 0"
            raise ConfigError(f"loss.objective: expected {expected}, found {self.objective}.")
        check_range("loss.aux_weight", self.aux_weight, 0)


@dataclass
class SegmentationDecodeOptions(DecodeOptions):
    """Prediction of images in evaluation.

    Args:
        tile: Side of the tiles into which larger images are split, in pixels; none: not split.
        flip: Whether to average the logits of an image and of its mirror image.
    """

    tile: int | None = None
    flip: bool = False


class SegmentationModule(TaskModule[SegmentationDataModule]):
    """LightningModule of segmentation: losses and mIoU."""

    task = "segmentation"
    Loss, Decode = SegmentationLossOptions, SegmentationDecodeOptions
    model: Any

    def configure_model(self) -> None:
        super().configure_model()
        self.model.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs as on GPUs

    def training_loss(self, batch: SegmentationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.model(batch.pixel_values.contiguous(memory_format=torch.channels_last))
        weights = class_weights(self.loss.class_weights, self.data.processor.counts)
        weights = None if weights is None else weights.to(self.device)
        options: dict[str, Any] = {"weights": weights, "label_smoothing": self.loss.label_smoothing}
        parts = segmentation_loss(self.loss.objective, output.logits, batch.labels, **options)
        loss = torch.stack(list(parts.values())).sum()
        if output.auxiliary and self.loss.aux_weight:
            coarse = [
                segmentation_loss(self.loss.objective, logits, batch.labels, **options) for logits in output.auxiliary
            ]
            parts["auxiliary"] = torch.stack([torch.stack(list(c.values())).sum() for c in coarse]).mean()
            loss = loss + self.loss.aux_weight * parts["auxiliary"]
        return loss, parts if len(parts) > 1 else {}

    def chance(self) -> Chance:
        processor = self.data.processor
        best, names = int(np.argmax(processor.counts)), processor.classes.names
        samples = self.data.dataset("val").samples[:SOME]
        masks = (s.mask if isinstance(s, Prepared) else processor.labels_of(s) for s in samples)
        matrix = torch.zeros(len(names), len(names))
        matrix[:, best] = torch.from_numpy(sum(np.bincount(m.reshape(-1), minlength=256) for m in masks))[: len(names)]
        return Chance(float(scores(matrix, names)["miou"]), f"{names[best]!r} for every pixel")

    def make_metric(self) -> nn.Module:
        return SegmentationMetric(self.data.processor.classes.names)

    def update_metric(self, metric: Any, batch: SegmentationBatch) -> None:
        for rows in batch.alike():
            (height, width), (label_height, label_width) = batch.sizes[rows[0]], batch.label_sizes[rows[0]]
            pixels = batch.pixel_values[rows, :, :height, :width].contiguous(memory_format=torch.channels_last)
            logits = segment(lambda x: self.model.scores(x)[0], pixels, self.decode.tile, flip=self.decode.flip)
            labels = batch.labels[rows, :label_height, :label_width]
            metric.update(best_classes(logits, (label_height, label_width)), labels)
