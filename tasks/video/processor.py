"""The processor of video classification: videos to clips, logits to class names; shipped with the model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mmattn.data.image.objects import pad_boxes
from mmattn.data.image.processor import ImageProcessor, move_box
from mmattn.data.seeds import seed_of
from mmattn.data.video.augment import ClipAugment
from mmattn.data.video.clips import ClipSampling, FrameResizer, read_clip
from mmattn.data.video.reading import FPS, Clip, open_video, read_frames
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.images import resized
from mmattn.tasks.common.labels.processor import LabelProcessor, labels_in
from mmattn.tasks.video.data import Region, VideoBatch, VideoDataset, VideoSample


class VideoProcessor(LabelProcessor[VideoSample, VideoBatch]):
    """Converts videos to clips and logits to class names; shipped with the model.

    Args:
        image: Image processor of the frames.
        labels: See ``LabelProcessor``; none for clips without labels.
        num_frames: Number of frames T of a clip.
        rate: Frames per second of a clip; None: a clip covers the whole video.
    """

    KEYS = frozenset({"image", "labels", "num_frames", "rate"})
    least = 0  # pretraining needs no classes

    def __init__(
        self, image: ImageProcessor, labels: Sequence[str], num_frames: int = 12, rate: float | None = None
    ) -> None:
        super().__init__(labels)
        self.image, self.sampling = image, ClipSampling(num_frames, rate)
        self.resizer = FrameResizer(image)

    @classmethod
    def fit(
        cls,
        dataset: VideoDataset,
        image_size: int | Sequence[int] = 32,
        num_frames: int = 12,
        rate: float | None = None,
        **image: Any,
    ) -> Self:
        """Fit a processor, whose classes are those of the training data in alphabetical order.

        Args:
            dataset: The training data.
            image_size: Side of the frames, or (H, W).
            num_frames: See the class.
            rate: See the class.
            image: Keywords of ``ImageProcessor``: mean, std, resize.
        """
        return cls(ImageProcessor(image_size, **image), labels_in(dataset), num_frames, rate)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"image_size": self.image.size[0], "num_frames": self.sampling.num_frames}

    def retarget(self, train: VideoDataset, given: Mapping[str, Any]) -> Self:
        """A processor with the model's preprocessing and the data's classes; see `Processor.retarget`."""
        given = {key: value for key, value in given.items() if value is not None}
        num_frames, rate = given.get("num_frames", self.sampling.num_frames), given.get("rate", self.sampling.rate)
        return type(self)(with_statistics(resized(self.image, given), given), labels_in(train), num_frames, rate)

    def check_views(self, clips: int, crops: int) -> None:
        """Check the number of clips and crops of a video.

        Raises:
            ConfigError: Crops of frames that are not cropped.
        """
        if crops > 1 and self.image.resize != "crop":
            raise ConfigError(
                f"crops: expected 1 with data.resize {self.image.resize!r}, or resize crop; found {crops}."
            )
        if min(clips, crops) < 1:
            raise ConfigError(f"clips and crops: expected at least 1, found {clips} and {crops}.")

    def clips(
        self, sample: VideoSample, clips: int = 1, crops: int = 1, draw: random.Random | None = None
    ) -> tuple[list[np.ndarray], list[Region]]:
        """The clips of a video, each uint8 (T, H, W, 3), those of one time after another; and its regions in these.

        Args:
            sample: The sample.
            clips: Number of clips in time.
            crops: Number of crops of each.
            draw: In training: draws the times.
        """
        name, found, regions = f"item {sample.id}", list[np.ndarray](), list[Region]()
        source, begin = sample.video, sample.start or 0.0
        for place in self.sampling.places(clips):
            wanted: list[float] = []

            def times(start: float, end: float, place: float = place, wanted: list[float] = wanted) -> list[float]:
                wanted[:] = self.sampling.times(start, end, place, draw)
                return wanted

            if isinstance(source, Clip) and sample.resized is not None:  # decoded in advance, at this size
                frames = np.stack(read_frames(source, times(0.0, source.seconds), name))
                size = sample.resized
            else:
                clip = read_clip(source, times, self.resizer, name, sample.start, sample.end, sample.fps)
                # Times of the clip count from the beginning of the segment.
                frames = np.stack(read_frames(clip, [time - begin for time in wanted], name))
                size = self._size(sample)
            if not found and sample.regions:
                regions = self._regions(sample, [time - begin for time in wanted], size)
            found += self.resizer.crops(frames, crops)
        return found, regions

    def _size(self, sample: VideoSample) -> tuple[int, int]:
        """Width and height of the frames before they were resized; needed for samples with regions alone."""
        if not sample.regions:
            return self.image.size[1], self.image.size[0]
        with open_video(sample.video, f"item {sample.id}", sample.fps or FPS) as video:
            return video.size

    def _regions(self, sample: VideoSample, times: Sequence[float], size: tuple[int, int]) -> list[Region]:
        """The regions in the frames shown at these times: number of the frame (twice), and box of the input."""
        window, begin = self.resizer.window(size), sample.start or 0.0
        found: list[Region] = []
        for number, time in enumerate(times):
            for first, last, box in sample.regions:
                if first - begin <= time < last - begin and (moved := move_box(box, window)) is not None:
                    found.append((number, number, moved))
        return found

    def collate(
        self,
        samples: Sequence[VideoSample],
        *,
        augment: ClipAugment | None = None,
        seeds: Sequence[int] | None = None,
        is_repeat: bool = False,
        jitter: bool = False,
        clips: int = 1,
        crops: int = 1,
    ) -> VideoBatch:
        """Collate a batch.

        Args:
            samples: The samples.
            augment: Augmentation of the clips, in training.
            seeds: One integer per sample, required by ``augment`` and ``jitter``.
            is_repeat: See ``Processor.collate``.
            jitter: Whether the times of the frames are drawn.
            clips: Number of clips of each video, at equal distances in time.
            crops: Number of crops of each, along the longer side.
        """
        if (augment is not None or jitter) and seeds is None:
            raise ValueError("collate: augment and jitter need seeds")
        pixels: list[np.ndarray] = []
        regions: list[list[Region]] = []
        for n, sample in enumerate(samples):
            draw = random.Random(seeds[n]) if jitter and seeds is not None else None
            found, inside = self.clips(sample, clips, crops, draw)
            pixels += found
            regions.append(inside)
        videos = torch.from_numpy(np.stack(pixels)).permute(0, 1, 4, 2, 3)  # (B V, T, 3, H, W) uint8
        targets = self.targets(samples)
        if augment is not None and seeds is not None:
            videos, targets = augment(videos, targets, seeds)
        boxes, mask = pad_boxes([[box for *_, box in row] for row in regions])
        frames = torch.zeros(mask.shape, dtype=torch.long)
        frames[mask] = torch.tensor([int(number) for row in regions for number, *_ in row], dtype=torch.long)
        return VideoBatch(
            pixel_values=self._standardized(videos),
            targets=targets,
            regions=boxes,
            region_frames=frames,
            region_mask=mask,
            ids=[sample.id for sample in samples],
            views=clips * crops,
            is_repeat=is_repeat,
        )

    def normalized(self, clips: np.ndarray) -> Tensor:
        """Clips (N, T, H, W, 3) uint8 as the model's input (N, T, 3, H, W)."""
        return self._standardized(torch.from_numpy(clips).permute(0, 1, 4, 2, 3))

    def _standardized(self, videos: Tensor) -> Tensor:
        values = videos.float().div_(255) if videos.dtype == torch.uint8 else videos
        mean, std = (torch.tensor(given)[:, None, None] for given in (self.image.mean, self.image.std))
        return values.sub_(mean).div_(std).contiguous()

    def ablate(self, batch: VideoBatch, what: str, seeds: Sequence[int] | None = None) -> VideoBatch:
        """Shuffle the frames ("order"), each clip with its own seed, or show the middle one alone ("motion")."""
        pixels = batch.pixel_values
        T = pixels.shape[1]
        if what == "motion":
            batch.pixel_values = pixels[:, T // 2 : T // 2 + 1].expand_as(pixels).contiguous()
            orders = torch.full((len(batch), T), T // 2)
        else:
            streams = [torch.Generator().manual_seed(seed_of(seed, 0, 1)) for seed in seeds or range(len(batch))]
            orders = torch.stack([torch.randperm(T, generator=stream) for stream in streams])  # (B, T)
            rows = torch.arange(len(pixels))[:, None]
            batch.pixel_values = pixels[rows, orders.repeat_interleave(batch.views, 0)]
        # A frame's regions move with it; a frame that is not shown has none.
        places = orders.argsort(1) if what == "order" else torch.full_like(orders, T // 2)
        batch.region_mask = batch.region_mask & ((what == "order") | (batch.region_frames == T // 2))
        batch.region_frames = (
            places.gather(1, batch.region_frames) if batch.region_frames.numel() else batch.region_frames
        )
        return batch

    def settings(self) -> dict[str, Any]:
        sampling = {"num_frames": self.sampling.num_frames, "rate": self.sampling.rate}
        return {"image": self.image.config(), "labels": self.labels, **sampling}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], folder: Path) -> Self:
        return cls(ImageProcessor.from_config(config["image"]), config["labels"], config["num_frames"], config["rate"])


def with_statistics(image: ImageProcessor, given: Mapping[str, Any]) -> ImageProcessor:
    """The image processor with the mean and standard deviation of a configuration, if it has any."""
    return ImageProcessor.from_config(image.config() | {key: given[key] for key in ("mean", "std") if key in given})


@dataclass(frozen=True)
class PublicInputs:
    """What a public image encoder expects of each frame; the classes are those of the data.

    Args:
        image: Image processor of the encoder.
    """

    image: ImageProcessor

    def retarget(self, train: VideoDataset, given: Mapping[str, Any]) -> VideoProcessor:
        """The processor of the data with these inputs; see `Processor.retarget`."""
        given = {key: value for key, value in given.items() if value is not None}
        fitted = VideoProcessor.fit(train, **given)
        image = with_statistics(resized(self.image, given), given)
        return VideoProcessor(image, fitted.labels, fitted.sampling.num_frames, fitted.sampling.rate)
