"""Training and evaluation of video classification: soft targets, supervised attention, masked pretraining."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.backbones.videomae import masked_loss, tube_mask
from mmattn.data.options import from_options
from mmattn.data.seeds import seed_of
from mmattn.data.video.augment import ClipAugment
from mmattn.data.video.reading import backend
from mmattn.explain import capture
from mmattn.tasks.common.chance import Chance, constant
from mmattn.tasks.common.datamodule import Split, TaskDataModule, expand
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.grid import cells_inside, pointing_loss
from mmattn.tasks.common.labels.metrics import ClassificationMetric
from mmattn.tasks.common.losses import soft_cross_entropy
from mmattn.tasks.common.metrics import GroupedMean
from mmattn.tasks.common.module import TaskModule
from mmattn.tasks.common.options import LossOptions, check_range
from mmattn.tasks.video.data import VideoBatch, VideoDataset
from mmattn.tasks.video.model import DECODER_LAYERS, SPACE, TIME, classify
from mmattn.tasks.video.processor import VideoProcessor

logger = logging.getLogger(__name__)
MASKED, ERROR = "masked", "reconstruction_error"  # the objective of pretraining, and its metric


class VideoDataModule(TaskDataModule[VideoDataset, VideoProcessor]):
    """Data module of labeled videos.

    Args:
        root: Folder of a table's videos, if they are not in its folder.
        image_size: Side of the square frames, in pixels; none: 32, or that of `init_from`.
        num_frames: Number of frames of a clip; none: 12, or that of `init_from`.
        rate: Frames per second of a clip; none: a clip covers the whole video, with a frame of each of equal parts.
        resize: Method of resizing frames to a square: squash, crop or pad; none: squash, or that of `init_from`.
        mean: Mean of pixel values in 0..1, per channel; none: 0.5, or that of `init_from`.
        std: Standard deviation of pixel values in 0..1, per channel; none: 0.5, or that of `init_from`.
        jitter: Draw the times of the frames anew in each epoch of training.
        clips: Number of clips of a video, whose predictions are averaged in evaluation.
        crops: Number of crops of each, along the longer side, likewise; for `resize` crop.
        augment: Keywords of ClipAugment (data/video/augment.py), for training clips; none: no augmentation.
        preload: Decode each video once, as small frames, into memory or, above 2 GB, a temporary file.
        ablate: Train and evaluate with the frames of each clip shuffled ("order"), or with the middle one alone
            ("motion"): baselines.
    """

    task = "video"
    sizes = ("num_classes", "image_size", "num_frames")
    largest_batch = 32

    def __init__(
        self,
        root: str | None = None,
        image_size: int | None = None,
        num_frames: int | None = None,
        rate: float | None = None,
        resize: Literal["squash", "crop", "pad"] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        jitter: bool = True,
        clips: int = 1,
        crops: int = 1,
        augment: dict[str, Any] | None = None,
        preload: bool = True,
        ablate: Literal["order", "motion"] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        check_range("data.num_frames", num_frames, 1)
        check_range("data.rate", rate, 0, open_low=True)
        check_range("data.clips", clips, 1)
        check_range("data.crops", crops, 1)
        self.root, self.preload, self.ablate = expand(root, "data.root"), preload, ablate
        self.jitter, self.clips, self.crops = jitter, clips, crops
        self.processor_options = {"image_size": image_size, "num_frames": num_frames, "rate": rate}
        self.processor_options |= {"resize": resize, "mean": mean, "std": std}
        self.augment = from_options(ClipAugment, augment, "data.augment")

    def make_dataset(self, source: Any, split: Split) -> VideoDataset:
        dataset = VideoDataset(source, self.root, on_error=self.on_error, require_labels=self.require_labels)
        if not self.require_labels:  # pretraining ignores those that there are
            dataset.samples = [dataclasses.replace(sample, labels=[]) for sample in dataset.samples]
        return dataset

    def prepare_dataset(self, dataset: VideoDataset, split: Split) -> VideoDataset:
        if self.processor.labels:
            self.processor.check(dataset)
        self.processor.check_views(self.clips, self.crops)
        if self.preload:
            moved = self.jitter if split == "train" else self.clips > 1
            dataset.preload(self.processor.resizer, self.processor.sampling, jitter=moved)
        return dataset

    def check_train(self, dataset: VideoDataset) -> None:
        self.make_processor(dataset)

    def make_processor(self, train: VideoDataset) -> VideoProcessor:
        processor = super().make_processor(train)
        if self.require_labels and len(processor.labels) < 2:
            found = f"{len(processor.labels)}: {', '.join(processor.labels)}"
            raise ConfigError(f"{train.name}: expected videos of at least two classes, found {found}.")
        return processor

    def collate_options(self, split: Split) -> dict[str, Any]:
        return {"jitter": self.jitter} if split == "train" else {"clips": self.clips, "crops": self.crops}


@dataclass
class VideoLossOptions(LossOptions):
    """The loss of video classification.

    Args:
        objective: cross_entropy; or masked, the pretraining of encoder `tubelet` on clips without labels, which
            predicts the pixels of masked patches (VideoMAE).
        attention_supervision: Weight of the loss of attention outside the event of the class, in time and in space, for
            data that have its regions.
        mask_ratio: Share of the patches that are masked in pretraining, the same in all frames.
    """

    objective: Literal["cross_entropy", "masked"] = "cross_entropy"
    attention_supervision: float = 0.0
    mask_ratio: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.attention_supervision", self.attention_supervision, 0)
        check_range("loss.mask_ratio", self.mask_ratio, 0, 0.99, open_low=True)
        if self.objective == MASKED and (self.attention_supervision or self.label_smoothing):
            raise ConfigError(
                "loss.attention_supervision and loss.label_smoothing: expected 0 with loss.objective masked, whose "
                "loss has no such terms."
            )


class VideoModule(TaskModule[VideoDataModule]):
    """LightningModule of video classification, and of masked pretraining."""

    task = "video"
    Loss = VideoLossOptions
    model: Any

    @classmethod
    def needs_labels(cls, loss: Mapping[str, Any]) -> bool:
        return loss.get("objective") != MASKED

    @property
    def is_pretraining(self) -> bool:
        """Whether the objective is masked pretraining."""
        return bool(self.loss.objective == MASKED)

    @property
    def mode(self) -> Literal["min", "max"]:  # type: ignore[override]
        """Whether the monitored metric is best at its minimum."""
        return "min" if self.is_pretraining else "max"

    @property
    def monitor(self) -> str:
        """The metric that selects the best checkpoint."""
        return f"val/{ERROR}" if self.is_pretraining else super().monitor

    def complete_keywords(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        keywords = super().complete_keywords(sizes)
        if not self.is_pretraining:
            if keywords.get("decoder_layers") is not None:
                raise ConfigError("model.decoder_layers: expected none without loss.objective masked.")
            return keywords
        if keywords.get("encoder") != "tubelet":
            found = keywords.get("encoder")
            raise ConfigError(f"loss.objective masked: expected model.encoder tubelet, found {found!r}.")
        layers = keywords.get("decoder_layers")
        return keywords | {"num_classes": 0, "decoder_layers": DECODER_LAYERS if layers is None else layers}

    def check_processor(self, processor: VideoProcessor) -> None:
        options = self.loss
        if options.attention_supervision and self.keywords.get("pooling", "attention") != "attention":
            raise ConfigError("loss.attention_supervision: expected 0 without model.pooling attention.")
        if options.attention_supervision and self.settings.get("data.augment"):
            raise ConfigError("loss.attention_supervision: expected 0 with data.augment, which moves the regions.")

    def training_loss(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.is_pretraining:
            return self._reconstruction(batch.pixel_values), {}
        options = self.loss
        if not options.attention_supervision or not batch.region_mask.any():
            logits = self.model(batch.pixel_values).logits
            return soft_cross_entropy(logits, batch.targets, options.label_smoothing), {}
        with capture(self.model, only=(SPACE, TIME)) as maps:
            logits = self.model(batch.pixel_values).logits
        classes = soft_cross_entropy(logits, batch.targets, options.label_smoothing)
        time, space = attention_losses(
            maps[TIME][0], maps[SPACE][0], batch, self.model.grid_size(batch.pixel_values), self.model.group
        )
        parts = {"classes": classes, "attention_time": time, "attention_space": space}
        return classes + options.attention_supervision * (time + space), parts

    def _reconstruction(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of masked pretraining for one draw of the masks."""
        encoder, image = self.model.encoder, self.data.processor.image
        patches = encoder.patches
        T, (H, W) = pixel_values.shape[1], pixel_values.shape[3:]
        size = (T // patches.tubelet_size, H // patches.patch_size, W // patches.patch_size)
        try:
            mask = tube_mask(len(pixel_values), size, self.loss.mask_ratio, generator).to(pixel_values.device)
        except ValueError as error:
            raise ConfigError(f"loss.objective masked: {error}.") from None
        return masked_loss(encoder, self.model.decoder, pixel_values, mask, image.mean, image.std)

    def make_metric(self) -> nn.Module:
        return GroupedMean(ERROR) if self.is_pretraining else ClassificationMetric(len(self.data.processor.labels))

    def update_metric(self, metric: Any, batch: VideoBatch) -> None:
        if not self.is_pretraining:
            metric.update(classify(self.model, batch.pixel_values, batch.views), batch.targets)
            return
        errors = []
        for row, name in zip(batch.pixel_values[:: batch.views], batch.ids, strict=True):
            generator = torch.Generator().manual_seed(seed_of(0, 0, sum(map(ord, name))))
            errors.append(self._reconstruction(row[None], generator).float())
        metric.update(torch.stack(errors), batch.ids)

    def chance(self) -> Chance | None:
        if self.is_pretraining:
            return None
        train, val = (self.data.dataset(split).samples for split in ("train", "val"))
        answers = (sample.labels[0] for sample in train)
        return constant(
            answers, lambda answer: sum(sample.labels == [answer] for sample in val) / len(val), kind="label"
        )

    def notes(self) -> dict[str, str]:
        try:
            return {"decoder": backend()}
        except ModuleNotFoundError:  # frames in memory or images
            return {}


def attention_losses(
    time: Tensor, space: Tensor, batch: VideoBatch, grid_size: tuple[int, int], group: int = 1
) -> tuple[Tensor, Tensor]:
    """Negative logarithms of the shares of attention that lie on the event, in time and in space; two scalars.

    Args:
        time: Attention to the frames (B, h, 1, t).
        space: Attention to the cells of each frame (B t, h, 1, P).
        batch: Its regions.
        grid_size: (gh, gw), P = gh * gw.
        group: Number of frames of each of the t groups.
    """
    B, t = time.shape[0], time.shape[3]
    inside = cells_inside(batch.regions, batch.region_mask, grid_size).to(time.dtype)  # (B, R, P)
    frames = F.one_hot(batch.region_frames // group, t).to(time.dtype) * batch.region_mask[..., None]  # (B, R, t)
    target = (frames.mT @ inside).clamp_max(1.0)  # (B, t, P)
    event = target.any(-1)  # (B, t)
    in_time = (time.mean((1, 2)) * event).sum(-1)  # (B,)
    in_space = (space.mean((1, 2)).unflatten(0, (B, t)) * target).sum(-1)  # (B, t)
    return pointing_loss(in_time, event.any(-1)), pointing_loss(in_space, event)
