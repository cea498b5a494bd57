"""Clips of a fixed number of frames: when these are shown, how they are resized, and where they are kept."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import DataError
from mmattn.data.image.processor import RESAMPLE, Box, ImageProcessor, load_image
from mmattn.data.video.frames import Frame
from mmattn.data.video.reading import FPS, Clip, VideoSource, open_video, where_of

KEPT = 4  # frames of a clip that are decoded in advance, for each one that the model gets at a time
SPARE = 4 << 30  # bytes of the disk that stay free
SHORTEST = 1e-3  # seconds


@dataclass(frozen=True)
class ClipSampling:
    """The times of a clip's frames.

    Without a rate the clip covers the whole segment: a frame of each of T equal parts (Wang et al. 2016, section 3.1).
    With a rate it is a part of the segment of T / rate seconds.

    Args:
        num_frames: T.
        rate: Frames per second; None: as many as the segment takes.

    >>> ClipSampling(4).times(0.0, 8.0)
    [1.0, 3.0, 5.0, 7.0]
    >>> ClipSampling(4, rate=2.0).times(0.0, 8.0, place=0.0)
    [0.25, 0.75, 1.25, 1.75]
    """

    num_frames: int
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames: expected at least 1, found {self.num_frames}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate: expected a positive number of frames per second, found {self.rate}")

    def times(self, start: float, end: float, place: float = 0.5, draw: random.Random | None = None) -> list[float]:
        """The times of the frames, ascending, in seconds.

        Args:
            start: Beginning of the segment.
            end: End of the segment.
            place: Which of several clips, 0..1: the place within each part, or of the clip within the segment.
            draw: In training: draws the place, and without a rate that within each part anew.
        """
        T = self.num_frames
        if self.rate is None:
            step = (end - start) / T
            places = [place] * T if draw is None else [draw.random() for _ in range(T)]
            return [start + (n + inside) * step for n, inside in enumerate(places)]
        slack = max(end - start - T / self.rate, 0.0)
        begin = start + slack * (place if draw is None else draw.random())
        return [min(begin + (n + 0.5) / self.rate, max(end - SHORTEST, start)) for n in range(T)]

    def places(self, clips: int) -> list[float]:
        """The places of several clips of a segment at equal distances."""
        if self.rate is None or clips == 1:
            return [(n + 0.5) / clips for n in range(clips)]
        return [n / (clips - 1) for n in range(clips)]

    def kept(self, start: float, end: float) -> list[float]:
        """The times of the frames that are decoded in advance: enough for clips at any place."""
        count = KEPT * self.num_frames
        if self.rate is not None:
            count = max(math.ceil(2 * self.rate * (end - start)), 1)
        return [start + (n + 0.5) * (end - start) / count for n in range(count)]


class FrameResizer:
    """Resizes frames as an `ImageProcessor` does; "crop" keeps what is beyond the square, for several crops of it.

    Args:
        image: The image processor.
    """

    def __init__(self, image: ImageProcessor) -> None:
        self.image = image

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the resized frames of a video of this (width, height)."""
        height, width = self.image.size
        if self.image.resize != "crop":
            return height, width
        scale = max(height / size[1], width / size[0])
        return max(round(size[1] * scale), height), max(round(size[0] * scale), width)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resizes a frame, uint8 (H, W, 3), to its working size."""
        height, width = self.working_size((pixels.shape[1], pixels.shape[0]))
        if pixels.shape[:2] == (height, width):
            return pixels
        if self.image.resize != "crop":
            return self.image.pixels(pixels)[0]
        resample = RESAMPLE.index(self.image.resample)
        return np.asarray(load_image(pixels).resize((width, height), resample))

    def crops(self, frames: np.ndarray, count: int = 1) -> list[np.ndarray]:
        """Square crops (T, H, W, 3) of resized frames (T, H', W', 3), at equal distances along their longer side."""
        height, width = self.image.size
        down, right = frames.shape[1] - height, frames.shape[2] - width
        shares = [0.5] if count == 1 else [n / (count - 1) for n in range(count)]
        corners = [(round(down * share), round(right * share)) for share in shares]
        return [frames[:, top : top + height, left : left + width] for top, left in corners]

    def window(self, size: tuple[int, int]) -> Box:
        """The part of a frame of this (width, height) that the middle crop covers."""
        if self.image.resize != "crop":
            return self.image.window(size)
        (height, width), (whole_height, whole_width) = self.image.size, self.working_size(size)
        top, left = (whole_height - height) / 2 / whole_height, (whole_width - width) / 2 / whole_width
        return left, top, 1 - left, 1 - top


def segment_of(seconds: float, start: float | None, end: float | None, where: str) -> tuple[float, float]:
    """Beginning and end of a segment within a video of this length.

    Raises:
        DataError: The segment begins after the video's end.
    """
    begin = start or 0.0
    if begin >= seconds:
        raise DataError(where, f"a start before the end of the video, {seconds:.2f} s", f"{begin:g} s")
    return begin, max(min(seconds, seconds if end is None else end), begin + SHORTEST)


def read_clip(
    source: VideoSource,
    times: Callable[[float, float], Sequence[float]],
    resizer: FrameResizer,
    name: str | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> Clip:
    """Reads the frames of a segment that are shown at some times, each once, resized.

    Args:
        source: See `open_video`.
        times: A function of beginning and end of the segment that returns the times, ascending.
        resizer: Resizes the frames.
        name: See `open_video`.
        start: Beginning of the segment in seconds; None: of the video.
        end: End of the segment; None: of the video.
        fps: Frames per second of numbered images and arrays.

    Raises:
        DataError: See `open_video`.
    """
    found: list[Frame] = []
    with open_video(source, name, fps or FPS) as video:
        begin, end = segment_of(video.seconds, start, end, where_of(source, name))
        for frame in video.frames_at(times(begin, end)):
            if not found or frame.time > found[-1].time:
                found.append(Frame(frame.time, resizer(frame.pixels)))
    frames = np.stack([frame.pixels for frame in found])
    return Clip(frames, tuple(max(frame.time - begin, 0.0) for frame in found), end - begin)


@dataclass(frozen=True)
class StoredFrames:
    """Frames (T, H, W, 3) in a part of a file, which is mapped only while they are read: a mapping keeps a file open.

    Args:
        path: The file.
        place: The first byte of the part.
        shape: (T, H, W, 3).
    """

    path: str
    place: int
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.memmap(self.path, np.uint8, "r", self.place, self.shape)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


class FrameFile:
    """Small frames of many clips in one file on the disk, which is removed when the process ends.

    Args:
        folder: Folder of the file; None: that of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.file = tempfile.NamedTemporaryFile(prefix="mmattn-", suffix=".frames", dir=folder)  # noqa: SIM115

    def __getstate__(self) -> dict[str, Any]:
        return {}  # workers read the clips, and neither write the file nor remove it

    @staticmethod
    def has_room(size: int, folder: Path | None = None) -> bool:
        """Whether the disk has room for so many bytes."""
        return shutil.disk_usage(folder or tempfile.gettempdir()).free > size + SPARE

    def add(self, clip: Clip) -> Clip:
        """Writes the frames of a clip; returns the clip with frames that are read from the file when they are used."""
        place = self.file.seek(0, 2)
        self.file.write(np.ascontiguousarray(clip.frames).tobytes())
        self.file.flush()
        frames: Any = StoredFrames(self.file.name, place, clip.frames.shape)
        return Clip(frames, clip.times, clip.seconds)
