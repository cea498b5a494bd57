"""Training and evaluation of detection: the loss of matched boxes, COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmattn.data.options import from_options
from mmattn.tasks.common.chance import Chance
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import DecodeOptions, LossOptions, check_range
from mmattn.tasks.detection.augment import DetectionAugment
from mmattn.tasks.detection.data import DetectionBatch, DetectionDataset
from mmattn.tasks.detection.decoder import check_reader
from mmattn.tasks.detection.demo import CATEGORIES
from mmattn.tasks.detection.detect import MOST, detect
from mmattn.tasks.detection.losses import DetectionLoss
from mmattn.tasks.detection.metrics import DetectionMetric
from mmattn.tasks.detection.model import OWN
from mmattn.tasks.detection.processor import DetectionProcessor


class DetectionDataModule(TaskDataModule[DetectionDataset, DetectionProcessor]):
    """Data module of images with boxes.

    Args:
        root: Folder of the images, if they are not near the annotations.
        image_size: Side to which input images are resized, in pixels, see `DetectionProcessor`; none: not resized, or
            as in `init_from`. Metrics are always in pixels of the original images.
        resize: How images are resized: fit, pad or squash; none: fit, or as in `init_from`.
        augment: Keywords of DetectionAugment, for training images; none: no augmentation.
        preload: Decode images once into memory, if that takes at most 2 GB.
        ablate: Train and evaluate without the image, hidden behind its mean. A baseline.
    """

    task = "detection"
    sizes = ("num_classes",)
    largest_batch = 16  # images are not resized by default

    def __init__(
        self,
        root: str | None = None,
        image_size: int | None = None,
        resize: Literal["fit", "pad", "squash"] | None = None,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        ablate: Literal["image"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.preload, self.ablate = expand(root, "data.root"), preload, ablate
        self.processor_options = {"size": image_size, "resize": resize}
        self.augment = from_options(DetectionAugment, augment, "data.augment")

    def make_dataset(self, source: Any, split: Split) -> DetectionDataset:
        own = isinstance(source, str) or self.paths[split] is not None
        classes = None if own else CATEGORIES  # of the built-in scenes
        return DetectionDataset(source, split, self.root, classes, on_error=self.on_error)

    def prepare_dataset(self, dataset: DetectionDataset, split: Split) -> DetectionDataset:
        if self.preload:
            self.processor.preload(dataset)
        self.processor.check(dataset)
        return dataset


@dataclass
class DetectionLossOptions(LossOptions):
    """The loss of detection, see `DetectionLoss`.

    Args:
        classification: focal, varifocal or matchability; cross_entropy for networks with a softmax, such as DETR; none:
            matchability, or cross_entropy for those.
        class_weight: Weight of the classification.
        l1_weight: Weight of the L1 distance.
        giou_weight: Weight of 1 - GIoU.
        class_cost: Weight of the scores in matching.
        l1_cost: Weight of the L1 distance in matching.
        giou_cost: Weight of the GIoU in matching.
        aux_weight: Weight of the decoder's earlier layers.
        proposal_weight: Weight of the encoder's proposals.
        proposal_copies: How many proposals an object is matched with.
        copy_weight: Weight of the queries of `--model.copy_queries`.
        copies: How many of them an object is matched with.
        denoising_weight: Weight of the denoising queries.
        no_object_weight: Weight, in the cross-entropy, of queries without an object.
    """

    classification: Literal["focal", "varifocal", "matchability", "cross_entropy"] | None = None
    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    aux_weight: float = 1.0
    proposal_weight: float = 1.0
    proposal_copies: int = 4
    copy_weight: float = 1.0
    copies: int = 4
    denoising_weight: float = 1.0
    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing:
            raise ConfigError(f"loss.label_smoothing: expected 0 in detection, found {self.label_smoothing}.")
        try:
            self.build()
        except ValueError as error:
            raise ConfigError(f"loss: {error}.") from None

    def build(self) -> DetectionLoss:
        """Make the loss."""
        return DetectionLoss(**{name: value for name, value in asdict(self).items() if name != "label_smoothing"})


@dataclass
class DetectionDecodeOptions(DecodeOptions):
    """Prediction of boxes in evaluation.

    Args:
        most: Number of boxes of an image that are kept, by score.
    """

    most: int = MOST

    def __post_init__(self) -> None:
        check_range("decode.most", self.most, 1)


class DetectionModule(TaskModule[DetectionDataModule]):
    """LightningModule of detection: losses and average precision."""

    task = "detection"
    Loss, Decode = DetectionLossOptions, DetectionDecodeOptions
    model: Any

    @classmethod
    def check_model(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        """See `TaskModule`; how queries read the maps is chosen from a table of this task's own."""
        reader = keywords.get("cross_attention")
        others = {name: value for name, value in keywords.items() if name != "cross_attention"}
        if reader is None or reader.get("kind") == "dense" or keywords.get("network", OWN) != OWN:
            return super().check_model(keywords)
        try:
            check_reader(reader)
        except ValueError as error:
            raise ConfigError(f"model.cross_attention: {error}.") from None
        return super().check_model(others) | {"cross_attention": reader}

    def configure_model(self) -> None:
        super().configure_model()
        try:
            self.loss.build().kind(self.model.no_object)
        except ValueError as error:
            raise ConfigError(f"loss.{error}.") from None
        self.model.to(memory_format=torch.channels_last)  # faster convolutions, on CPUs as on GPUs

    def training_loss(self, batch: DetectionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch.pixel_values.contiguous(memory_format=torch.channels_last)
        truth = (batch.boxes_cxcywh, batch.labels, batch.box_mask)
        parts = self.loss.build()(self.model(pixels, batch.pixel_mask, *truth), *truth)
        return torch.stack(list(parts.values())).sum(), parts

    def chance(self) -> Chance:
        return Chance(0.0, "no box at all")

    def complete_processor(self, processor: DetectionProcessor, metrics: Mapping[str, float]) -> DetectionProcessor:
        """The processor with each class's threshold, which validation chose."""
        found = [metrics.get(f"threshold/{name}") for name in processor.labels]
        if all(one is not None for one in found):
            processor.thresholds = [float(one) for one in found if one is not None]
        return processor

    def make_metric(self) -> nn.Module:
        return DetectionMetric(self.data.processor.labels)

    def update_metric(self, metric: Any, batch: DetectionBatch) -> None:
        found = detect(self.model, self.data.processor, batch, self.decode.most)
        metric.update(found, batch.truths, batch.ids)
