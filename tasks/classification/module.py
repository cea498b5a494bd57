"""Training and measuring classification: soft targets, mixed pictures, accuracy and how far to trust it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from mmattn.tasks.common.pretrained import Parts
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.data.seeds import seed_of
from mmattn.data.image.augment import BatchAugment
from mmattn.tasks.classification.adapters import adopt, fitted
from mmattn.tasks.classification.data import (
    ClassificationBatch,
    ClassificationDataset,
    ClassificationProcessor,
    collate,
)
from mmattn.tasks.classification.metrics import ClassificationMetric
from mmattn.tasks.classification.model import ClassificationModel
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.losses import soft_cross_entropy
from mmattn.tasks.common.module import TaskModule, parameter_groups

HIDDEN_PATCH = 8  # pixels


class ClassificationDataModule(TaskDataModule):
    """Labelled pictures.

    Args:
        root: folder of a torchvision data set's files, or of a CSV's pictures where they are not beside it.
        image_size: side of the square that the model sees, in pixels; none: 64, or that of `model.init_from`.
        resize: how a picture gets that shape: squash, crop or pad; none: squash, or as in `model.init_from`.
        mean: subtracted from pixel values in 0..1, per channel; none: 0.5, or as in `model.init_from`.
        std: that they are then divided by; likewise.
        multi_label: classes do not exclude each other; labels in a CSV are separated by |.
        augment: BatchAugment's keywords (data/augment.py), for training pictures; none: no augmentation.
        preload: decode each picture once into memory, as long as that takes at most 2 GB.
        pictures: training pictures of the built-in data.
        hide: train and measure with the patches of each picture shuffled ("arrangement"): a baseline to be beaten.
    """

    processor_class = ClassificationProcessor
    sizes = ("num_classes", "image_size")

    def __init__(
        self,
        root: str | None = None,
        image_size: int | None = None,
        resize: Literal["squash", "crop", "pad"] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        multi_label: bool = False,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        pictures: int | None = None,
        hide: Literal["arrangement"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.multi_label, self.preload = expand(root, "data.root"), multi_label, preload
        self.pictures, self.hide = pictures, hide
        self.processor_options = {"image_size": image_size, "mean": mean, "std": std, "resize": resize}
        try:
            self.augment = BatchAugment.from_options(augment)
        except ValueError as error:
            raise ConfigError(f"data.augment.{error}") from None

    def open_split(self, split: Split, path: str | None) -> ClassificationDataset:
        if path is None:
            from mmattn.tasks.classification.demo import make

            return ClassificationDataset(make(split, self.pictures if split == "train" else None))
        multi_label = self.processor.multi_label if self.processor is not None else self.multi_label
        return ClassificationDataset(path, split, self.root, self.on_error, multi_label)

    def make_processor(self, train: Any) -> ClassificationProcessor:
        try:
            options = {key: value for key, value in self.processor_options.items() if value is not None}
            return ClassificationProcessor.fit(train, **options, multi_label=self.multi_label)
        except ValueError as error:
            raise error if getattr(error, "user_error", False) else ConfigError(f"data: {error}") from None

    def adopt_processor(self, start: Parts) -> Parts:
        train: Any = self.dataset("train")
        labels = sorted({label for sample in train.samples for label in sample.labels})
        options: dict[str, Any] = dict(self.processor_options)
        options["size"] = options.pop("image_size")
        start, self.processor = adopt(start, labels, self.multi_label, **options)
        return start

    def prepare_dataset(self, dataset: Any, split: Split) -> ClassificationDataset:
        self.processor.check(dataset)
        if self.preload:
            dataset.preload(self.processor.image)
        return dataset

    def model_sizes(self) -> dict[str, Any]:
        return self.processor.sizes() | {"image_size": self.processor.image.size[0]}

    def collate_fn(self, split: Split) -> Callable[..., ClassificationBatch]:
        make = partial(collate, processor=self.processor, augment=self.augment if split == "train" else None)
        return partial(_shuffled, make) if self.hide else make


def _shuffled(make: Callable[..., ClassificationBatch], samples: Any, **options: Any) -> ClassificationBatch:
    """A batch whose pictures are cut into patches and laid out anew, each by its own seed."""
    batch = make(samples, **options)
    H, W = batch.pixel_values.shape[2:]
    seeds = options.get("seeds") or range(len(batch))
    patches = F.unfold(batch.pixel_values, HIDDEN_PATCH, stride=HIDDEN_PATCH)  # (B, C patch patch, cells)
    order = torch.stack(
        [
            torch.randperm(patches.shape[2], generator=torch.Generator().manual_seed(seed_of(seed, 0, 1)))
            for seed in seeds
        ]
    )
    patches = patches.gather(2, order[:, None].expand(-1, patches.shape[1], -1))
    size = (H - H % HIDDEN_PATCH, W - W % HIDDEN_PATCH)
    batch.pixel_values = F.fold(patches, size, HIDDEN_PATCH, stride=HIDDEN_PATCH)
    return batch


class ClassificationModule(TaskModule):
    """Cross-entropy against soft targets, or one yes or no a class.

    Args:
        layer_decay: each layer learns so much slower than the one above it (Bao et al. 2022); 1: all alike. For
            weights that were trained before.
        training: what TaskModule takes.
    """

    task = "classification"
    model_class = ClassificationModel
    model: Any

    def __init__(self, model: dict[str, Any], *, layer_decay: float = 1.0, **training: Any) -> None:
        super().__init__(model, **training)
        if not 0.0 < layer_decay <= 1.0:
            raise ConfigError(f"model.layer_decay: expected a value above 0 and at most 1, found {layer_decay}.")
        self.layer_decay = layer_decay

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """The metric that the best checkpoint has."""
        return "val/map" if self.multi_label else "val/top1"

    @property
    def multi_label(self) -> bool:
        """Whether classes do not exclude each other: the processor knows, before there is one the settings."""
        if self._trainer is not None and (processor := self._trainer.datamodule.processor) is not None:  # type: ignore[attr-defined]
            return processor.multi_label
        return bool(self.settings.get("data.multi_label"))

    def begin(self, start: Parts, sizes: Mapping[str, Any]) -> Parts:
        return fitted(start, sizes, self.seed)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = parameter_groups(self.model, self.weight_decay)
        if self.layer_decay == 1.0:
            return groups
        depths = self.model.depth_of()
        top = max(depths.values())
        return [
            {**group, "params": [p for p in group["params"] if depths[p] == depth], "lr": self.lr * scale}
            for depth in range(top + 1)
            for scale in [self.layer_decay ** (top - depth)]
            for group in groups
        ]

    def training_loss(self, batch: ClassificationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch.pixel_values).logits
        if self.multi_label:
            targets = batch.targets * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            return F.binary_cross_entropy_with_logits(logits.float(), targets), {}
        return soft_cross_entropy(logits, batch.targets, self.label_smoothing), {}

    def make_metric(self) -> nn.Module:
        processor = self.trainer.datamodule.processor  # type: ignore[attr-defined]
        return ClassificationMetric(len(processor.labels), processor.multi_label)

    def update_metric(self, metric: Any, batch: ClassificationBatch) -> None:
        metric.update(self.model(batch.pixel_values).logits.float(), batch.targets)

    def _log_metrics(self, split: str) -> None:
        super()._log_metrics(split)
        confusion = self.metrics[split].confusion  # type: ignore[union-attr]
        if self.trainer.is_global_zero and confusion is not None and self.trainer.state.fn != "fit":
            self._draw_confusion(split, confusion)

    def _draw_confusion(self, split: str, confusion: Tensor) -> None:
        """A picture of which class was taken for which, beside the figures."""
        from mmattn.plot import heat_map

        labels = self.trainer.datamodule.processor.labels  # type: ignore[attr-defined]
        shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
        path = Path(self.trainer.default_root_dir) / f"confusion_{split}.png"
        names = {"row_name": "true class", "col_name": "predicted", "value_name": "share of the true class"}
        heat_map(shares, labels, labels, path, **names)


LIGHTNING = (ClassificationModule, ClassificationDataModule)
