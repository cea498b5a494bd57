"""Video classification: samples, data set and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, located, shorten
from mmattn.data.image.processor import Box
from mmattn.data.table import Table
from mmattn.data.video.clips import ClipSampling, FrameFile, FrameResizer, read_clip, segment_of
from mmattn.data.video.files import read_videos
from mmattn.data.video.reading import FPS, Clip, VideoSource, open_video

IN_MEMORY = 2 << 30  # bytes of decoded frames that are kept in memory; more are kept on the disk
ON_DISK = 64 << 30  # bytes that are kept there
Region = tuple[float, float, Box]  # begin and end in seconds, and boxes_xyxy in 0..1 of the frame


@dataclass
class VideoSample:
    """A labeled video, or a segment of one, with its annotations."""

    id: str
    video: VideoSource  # a file or its bytes, a folder of numbered images, a uint8 array (T, H, W, 3), or a `Clip`
    labels: list[str] = field(default_factory=list)  # its class, if it is known
    start: float | None = None  # of the segment, in seconds
    end: float | None = None
    fps: float | None = None  # of numbered images and arrays
    regions: list[Region] = field(default_factory=list)  # when and where the event of the class takes place
    resized: tuple[int, int] | None = None  # width and height before its frames were resized, if they were

    @property
    def image(self) -> np.ndarray | None:
        """The frame in the middle, (H, W, 3) uint8, by which reports show the video; None if it cannot be read."""
        with suppress(DataError), open_video(self.video, self.id, self.fps or FPS) as video:
            begin, end = segment_of(video.seconds, self.start, self.end, self.id)
            return next(video.frames_at([(begin + end) / 2])).pixels
        return None


@dataclass
class VideoBatch(Batch):
    """A batch of clips: the model's inputs and the data of loss and metric."""

    pixel_values: Tensor  # (B V, T, 3, H, W) float, V clips of each video
    targets: Tensor  # (B, K) float: the share of each class, mixed with the clips
    regions: Tensor  # (B, R, 4) float: boxes_xyxy in 0..1 of the first clip's frames
    region_frames: Tensor  # (B, R) long: the frame of each
    region_mask: Tensor  # (B, R) bool, True = a region
    ids: list[str]
    views: int = 1  # V
    is_repeat: bool = False  # repeated to give all ranks the same number of batches; excluded from metrics


class VideoDataset(SampleDataset[VideoSample]):
    """Labeled videos from a path or from samples in memory, validated.

    Args:
        source: A path in one of the formats of ``data/video/files.py`` (a tree of class folders, a CSV or JSONL);
            samples; or rows of a video and its label.
        root: Folder of a table's videos, if they are not in its folder.
        options: Keywords of ``SampleDataset``.
    """

    item: ClassVar[str] = "labeled video"
    columns = ("path", "label")

    def __init__(self, source: str | Path | Iterable[Any], root: str | Path | None = None, **options: Any) -> None:
        self.root = root
        self._kept: FrameFile | None = None
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, VideoSample]]:
        for row in read_videos(path, self.root, problems, self.require_labels):
            labels = [row.label] if row.label else []
            yield row.where, VideoSample(row.id, row.video, labels, row.start, row.end, row.fps)

    def check(self, sample: VideoSample) -> tuple[str, str] | None:
        if sample.video is None or (isinstance(sample.video, (str, bytes)) and not sample.video):
            return "a video", "none"
        if self.require_labels and len(sample.labels) != 1:
            return "one label", shorten(sample.labels) if sample.labels else "none"
        if any(not isinstance(label, str) or not label.strip() for label in sample.labels):
            return "a label that is not empty", shorten(sample.labels)
        if sample.start is not None and sample.end is not None and sample.end <= sample.start:
            return "an end after the start", f"start {sample.start:g} s and end {sample.end:g} s"
        if sample.fps is not None and not sample.fps > 0:
            return "fps: a positive number", f"{sample.fps:g}"
        return None

    def decode(self, sample: VideoSample, where: str) -> None:
        with located(where), open_video(sample.video, where, sample.fps or FPS) as video:
            begin, end = segment_of(video.seconds, sample.start, sample.end, where)
            for _ in video.frames_at(ClipSampling(16).times(begin, end)):
                pass

    def identity(self, sample: VideoSample) -> tuple[list[Any], list[Any]]:
        video = sample.video
        if isinstance(video, (str, Path)) and Path(video).is_dir():
            media: list[Any] = sorted(Path(video).iterdir())
        else:
            media = [video]
        regions = [[begin, end, list(box)] for begin, end, box in sample.regions]
        return [sample.id, sample.labels, sample.start, sample.end, regions], media

    def inputs(self, sample: VideoSample) -> tuple[list[Any], list[Any]]:
        return [sample.start, sample.end], self.identity(sample)[1]

    def facts(self, sample: VideoSample, files: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = {"class": sample.labels} if sample.labels else {}
        if not files:
            return found
        with open_video(sample.video, None, sample.fps or FPS) as video:
            begin, end = segment_of(video.seconds, sample.start, sample.end, sample.id)
            width, height = video.size
        return found | {"seconds": round(end - begin, 2), "width": width, "height": height}

    def preload(self, resizer: FrameResizer, sampling: ClipSampling, *, jitter: bool = True) -> bool:
        """Decodes every video once, as frames of the model's size, into memory or, if they are many, a file.

        Args:
            resizer: Resizes the frames.
            sampling: The times of a clip's frames.
            jitter: Whether frames at other times are needed than those of one clip.

        Returns:
            Whether they were decoded; False if the disk has no room, and the data set is unchanged.
        """
        size: int | None = None  # bytes of all frames, estimated from the first video

        def load(sample: VideoSample, where: str) -> VideoSample:
            nonlocal size
            if isinstance(sample.video, Clip) and sample.resized is not None:
                return sample
            times = sampling.kept if jitter else sampling.times
            clip = read_clip(sample.video, times, resizer, where, sample.start, sample.end, sample.fps)
            with open_video(sample.video, where, sample.fps or FPS) as video:
                before = video.size
            if size is None:
                size = len(self) * clip.frames.nbytes
                if size > ON_DISK or (size > IN_MEMORY and not FrameFile.has_room(size)):
                    raise _TooLarge
                self._kept = FrameFile() if size > IN_MEMORY else None
            kept = clip if self._kept is None else self._kept.add(clip)
            begin = sample.start or 0.0
            regions = [(max(first - begin, 0.0), last - begin, box) for first, last, box in sample.regions]
            return dataclasses.replace(
                sample, video=kept, start=None, end=None, fps=None, regions=regions, resized=before
            )

        try:
            self.preloaded(load)
        except _TooLarge:
            return False
        return True


class _TooLarge(Exception):
    pass
