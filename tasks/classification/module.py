"""Training and evaluation of classification: soft targets, mixed images, accuracy and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.data.image.augment import BatchAugment
from mmattn.data.options import from_options
from mmattn.tasks.classification.data import ClassificationBatch, ClassificationDataset
from mmattn.tasks.classification.model import classify
from mmattn.tasks.classification.processor import ClassificationProcessor
from mmattn.tasks.common import linear_probe
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.labels.metrics import ClassificationMetric
from mmattn.tasks.common.losses import soft_cross_entropy
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import DecodeOptions


class ClassificationDataModule(TaskDataModule[ClassificationDataset, ClassificationProcessor]):
    """Data module of labeled images.

    Args:
        root: Folder of a torchvision data set's files, or of a CSV's images if they are not in its folder.
        image_size: Side of the square input image, in pixels; none: 64, or that of `init_from`.
        resize: Method of resizing to a square: squash, crop or pad; none: squash, or that of `init_from`.
        mean: Mean of pixel values in 0..1, per channel; none: 0.5, or that of `init_from`.
        std: Standard deviation of pixel values in 0..1, per channel; none: 0.5, or that of `init_from`.
        multi_label: Whether classes are not mutually exclusive; labels in a CSV are separated by |.
        augment: Keywords of BatchAugment (data/image/augment.py), for training images; none: no augmentation.
        preload: Decode each image once into memory, if that takes at most 2 GB.
        ablate: Train and evaluate with the patches of each image shuffled ("arrangement"): a baseline.
    """

    task = "classification"
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
        ablate: Literal["arrangement"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.multi_label, self.preload = expand(root, "data.root"), multi_label, preload
        self.ablate = ablate
        self.processor_options = {"image_size": image_size, "mean": mean, "std": std, "resize": resize}
        self.processor_options |= {"multi_label": multi_label}
        self.augment = from_options(BatchAugment, augment, "data.augment")

    def make_dataset(self, source: Any, split: Split) -> ClassificationDataset:
        multi_label = self.processor.multi_label if self.processor is not None else self.multi_label
        return ClassificationDataset(source, split, self.root, multi_label, on_error=self.on_error)

    def prepare_dataset(self, dataset: ClassificationDataset, split: Split) -> ClassificationDataset:
        self.processor.check(dataset)
        if self.preload:
            dataset.preload(self.processor.image)
        return dataset


@dataclass
class ClassificationDecodeOptions(DecodeOptions):
    """Prediction of images in evaluation.

    Args:
        flip: Whether to average the logits of an image and of its mirror image.
    """

    flip: bool = False


class ClassificationModule(TaskModule[ClassificationDataModule]):
    """LightningModule of classification: cross-entropy with soft targets, or binary cross-entropy for multi-label."""

    task = "classification"
    Decode = ClassificationDecodeOptions
    model: Any

    @property
    def monitor(self) -> str:
        """The metric that selects the best checkpoint."""
        return "val/map" if self.multi_label else super().monitor

    @property
    def multi_label(self) -> bool:
        """Whether classes are not mutually exclusive, from the processor, or from the settings before it exists."""
        if self._trainer is not None and self.data.processor is not None:
            return self.data.processor.multi_label
        return bool(self.settings.get("data.multi_label"))

    def on_fit_start(self) -> None:
        """Let a new last layer begin as a linear probe, where samples are few."""
        samples = self.data.dataset("train").samples
        is_new = self.start is not None and "head.out.weight" in self.start.fresh
        if not is_new or self.trainer.ckpt_path is not None or len(samples) > linear_probe.FEW:
            return
        size, collate, layer = self.data.batch_size, self.data.processor.collate, self.model.head.out
        batches = (collate(samples[n : n + size]).to(self.device) for n in range(0, len(samples), size))
        was_training = self.training
        self.eval()
        linear_probe.start_from_probe(layer, batches, lambda batch: self.model(batch.pixel_values), self.multi_label)
        self.train(was_training)
        for value in (layer.weight, layer.bias):  # of one process for all
            value.data.copy_(self.trainer.strategy.broadcast(value.data))

    def training_loss(self, batch: ClassificationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch.pixel_values).logits
        if self.multi_label:
            targets = batch.targets * (1 - self.loss.label_smoothing) + 0.5 * self.loss.label_smoothing
            return F.binary_cross_entropy_with_logits(logits.float(), targets), {}
        return soft_cross_entropy(logits, batch.targets, self.loss.label_smoothing), {}

    def make_metric(self) -> nn.Module:
        return ClassificationMetric(len(self.data.processor.labels), self.multi_label)

    def update_metric(self, metric: Any, batch: ClassificationBatch) -> None:
        logits = classify(self.model, batch.pixel_values, self.decode.flip)
        metric.update(logits.float(), batch.targets)

    def chance(self) -> Chance | None:
        if self.multi_label:
            return None
        train, val = (self.data.dataset(split).samples for split in ("train", "val"))
        answers = (sample.labels[0] for sample in train)
        return constant(
            answers, lambda answer: sum(sample.labels == [answer] for sample in val) / len(val), kind="label"
        )
