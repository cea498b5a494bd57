"""Training and measuring segmentation: a sum of losses, deep supervision, one confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from mmattn.tasks.common.pretrained import Parts
from torch import Tensor, nn

from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.segmentation.adapters import adopt, fitted
from mmattn.tasks.segmentation.data import (
    SegmentationAugment,
    SegmentationBatch,
    SegmentationDataset,
    SegmentationProcessor,
    collate,
)
from mmattn.tasks.segmentation.losses import LOSSES, class_weights, segmentation_loss
from mmattn.tasks.segmentation.metrics import SegmentationMetric
from mmattn.tasks.segmentation.model import SegmentationModel, best_classes
from mmattn.tasks.segmentation.tiles import segment

PATCH = 8  # side of the patches of the built-in baseline, in pixels


class SegmentationDataModule(TaskDataModule):
    """Pictures with masks.

    Args:
        classes: path of the class list, where it is not `classes.txt` in the data's folder or the one above.
        image_size: the shorter side at which the model sees a picture, in pixels; none: as it is, or as in
            `model.init_from`. What is measured is the masks' own size always.
        augment: SegmentationAugment's keywords, for training; none: no augmentation.
        preload: decode everything once into memory, as long as that takes at most 2 GB.
        scenes: training scenes of the built-in data.
        hide: train and measure without context: pictures are cut into patches, with their labels, and the patches
            shuffled. A baseline to be beaten.
    """

    processor_class = SegmentationProcessor
    sizes = ("num_classes",)

    def __init__(
        self,
        classes: str | None = None,
        image_size: int | None = None,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        scenes: int | None = None,
        hide: Literal["context"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.classes, self.image_size = expand(classes, "data.classes"), image_size
        self.preload, self.scenes, self.hide = preload, scenes, hide
        try:
            self.augment = SegmentationAugment(**augment) if augment else None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"data.augment: {error}") from None

    def open_split(self, split: Split, path: str | None) -> SegmentationDataset:
        if path is None:
            from mmattn.tasks.segmentation.demo import CLASSES, make

            return SegmentationDataset(make(split, self.scenes if split == "train" else None), CLASSES)
        return SegmentationDataset(path, self.classes, on_error=self.on_error)

    def make_processor(self, train: Any) -> SegmentationProcessor:
        try:
            return SegmentationProcessor.fit(train, self.image_size)
        except ValueError as error:
            raise error if getattr(error, "user_error", False) else ConfigError(f"data: {error}") from None

    def adopt_processor(self, start: Parts) -> Parts:
        start, self.processor = adopt(start, self.dataset("train"), self.image_size)  # type: ignore[arg-type]
        return start

    def prepare_dataset(self, dataset: Any, split: Split) -> SegmentationDataset:
        if self.preload:
            dataset.preload(self.processor, training=split == "train")
        return dataset

    def collate_fn(self, split: Split) -> Callable[..., SegmentationBatch]:
        training = split == "train"
        augment = self.augment if training else None
        make = partial(collate, processor=self.processor, training=training, augment=augment)
        return partial(_shuffled, make) if self.hide else make


def _shuffled(make: Callable[..., SegmentationBatch], samples: Any, **options: Any) -> SegmentationBatch:
    """A batch whose pictures are shuffled patches; the order depends on the sample alone."""
    batch = make(samples, **options)
    if batch.labels.shape[1:] != batch.pixel_values.shape[2:] or any(n % PATCH for n in batch.labels.shape[1:]):
        found = f"{tuple(batch.pixel_values.shape[2:])} and {tuple(batch.labels.shape[1:])}"
        raise ConfigError(
            f"data.hide: expected pictures and masks of one size, whole patches of {PATCH}; found {found}."
        )
    grid = [n // PATCH for n in batch.labels.shape[1:]]
    for row, name in enumerate(batch.ids):
        order = torch.from_numpy(np.random.RandomState(list(name.encode())).permutation(grid[0] * grid[1]))
        for tensor in (batch.pixel_values[row], batch.labels[row]):
            cells = tensor.unflatten(-2, (grid[0], PATCH)).unflatten(-1, (grid[1], PATCH))  # (..., gh, p, gw, p)
            cells = cells.transpose(-3, -2).flatten(-4, -3)[..., order, :, :]  # (..., gh gw, p, p)
            tensor.copy_(cells.unflatten(-3, grid).transpose(-3, -2).flatten(-2).flatten(-3, -2))
    return batch


class SegmentationModule(TaskModule):
    """Segmentation's losses and mIoU.

    Args:
        loss: losses and their weights: cross_entropy, dice, focal.
        class_weights: of the losses, from the training pixels: none, log, sqrt, median (the strongest).
        auxiliary_weight: of the losses of coarser maps, where the model has deep supervision.
        tile: side of the tiles in which larger pictures are measured; none: whole.
        flip: measure the mean of a picture's scores and its mirror image's.
        training: what TaskModule takes.
    """

    task = "segmentation"
    model_class = SegmentationModel
    monitor = "val/miou"
    model: Any

    def __init__(
        self,
        model: dict[str, Any],
        *,
        loss: dict[str, float] = {"cross_entropy": 1.0, "dice": 0.5},  # noqa: B006  read, never changed
        class_weights: Literal["none", "log", "sqrt", "median"] = "none",
        auxiliary_weight: float = 0.4,
        tile: int | None = None,
        flip: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(model, **training)
        if not loss or any(name not in LOSSES or weight < 0 for name, weight in loss.items()):
            raise ConfigError(f"model.loss: expected {', '.join(LOSSES)} with weights from 0, found {loss}.")
        self.loss, self.class_weights, self.auxiliary_weight = dict(loss), class_weights, auxiliary_weight
        self.tile, self.flip = tile, flip

    def begin(self, start: Parts, sizes: Mapping[str, Any]) -> Parts:
        return fitted(start, sizes, self.seed)

    def configure_model(self) -> None:
        super().configure_model()
        self.model.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs as on GPUs

    @property
    def _processor(self) -> SegmentationProcessor:
        return self.trainer.datamodule.processor  # type: ignore[attr-defined]

    def training_loss(self, batch: SegmentationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.model(batch.pixel_values.contiguous(memory_format=torch.channels_last))
        weights = class_weights(self.class_weights, self._processor.counts)
        weights = None if weights is None else weights.to(self.device)
        options: dict[str, Any] = {"weights": weights, "label_smoothing": self.label_smoothing}
        parts = segmentation_loss(self.loss, output.logits, batch.labels, **options)
        loss = torch.stack(list(parts.values())).sum()
        if output.auxiliary and self.auxiliary_weight:
            coarse = [segmentation_loss(self.loss, logits, batch.labels, **options) for logits in output.auxiliary]
            parts["auxiliary"] = torch.stack([torch.stack(list(c.values())).sum() for c in coarse]).mean()
            loss = loss + self.auxiliary_weight * parts["auxiliary"]
        return loss, parts if len(parts) > 1 else {}

    def make_metric(self) -> nn.Module:
        return SegmentationMetric(self._processor.classes.names)

    def update_metric(self, metric: Any, batch: SegmentationBatch) -> None:
        for rows in batch.alike():
            (height, width), (label_height, label_width) = batch.sizes[rows[0]], batch.label_sizes[rows[0]]
            pixels = batch.pixel_values[rows, :, :height, :width].contiguous(memory_format=torch.channels_last)
            logits = segment(lambda x: self.model.scores(x)[0], pixels, self.tile, flip=self.flip)
            labels = batch.labels[rows, :label_height, :label_width]
            metric.update(best_classes(logits, (label_height, label_width)), labels)


LIGHTNING = (SegmentationModule, SegmentationDataModule)
