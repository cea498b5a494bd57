"""Reading of videos by time: files by PyAV or torchcodec, folders of numbered images, and frames in memory.

A frame is chosen by the time at which it is shown, never by its number, so that variable frame rates and missing frames
come out right. Only the frames that are asked for are converted to RGB, and the memory does not depend on the length of
the video.
"""

from __future__ import annotations

import importlib.util
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmattn.data.errors import DataError, shorten
from mmattn.data.files import files_below
from mmattn.data.image.processor import IMAGE_EXTENSIONS, image_size, load_image
from mmattn.data.names import find_file
from mmattn.data.video.frames import Frame

VideoSource = Any  # str | Path (a file, or a folder of numbered images) | bytes | uint8 array (T, H, W, 3) | Clip
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
FPS = 25.0  # frames per second of images and arrays, which do not state it
BACKENDS = {"av": "PyAV", "torchcodec": "torchcodec"}  # by module, in order of preference


@dataclass(frozen=True)
class Clip:
    """Frames in memory, or in a file that is mapped into it, with their times.

    Args:
        frames: (F, H, W, 3) uint8.
        times: When each frame is first shown, ascending, in seconds.
        seconds: Length of the video.
    """

    frames: np.ndarray
    times: tuple[float, ...]
    seconds: float

    @classmethod
    def of(cls, frames: np.ndarray, fps: float = FPS) -> Clip:
        """A clip of a constant frame rate."""
        return cls(frames, tuple(number / fps for number in range(len(frames))), len(frames) / fps)

    def fingerprint(self) -> str:
        """What enters the fingerprint of a data set."""
        from mmattn.data.dataset import content_of

        return f"{self.times} {self.seconds} {content_of(self.frames)!r}"


class Video(Protocol):
    """An opened video."""

    seconds: float  # length
    size: tuple[int, int]  # width and height, after rotation

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """Yields the frame that is shown at each time, in seconds, ascending; the first one before the beginning.

        Raises:
            DataError: The video is damaged, or ends before a time that its header promises.
        """


def backend() -> str:
    """The library that reads video files, with its version: PyAV, or torchcodec where that alone is installed.

    Raises:
        ModuleNotFoundError: Neither is installed.
    """
    from importlib import metadata

    module = _backend_module()
    return f"{BACKENDS[module]} {metadata.version(module)}"


def _backend_module() -> str:
    found = next((name for name in BACKENDS if importlib.util.find_spec(name) is not None), None)
    if found is None:
        raise ModuleNotFoundError("No module named 'av'", name="av")
    return found


def where_of(source: VideoSource, name: str | None) -> str:
    """Name of a video in messages."""
    if isinstance(source, (str, Path)):
        known = not name or f" {name}".endswith(f" {source}")
        return f"video {source}" if known else f"{name}: video {source}"
    kind = "bytes" if isinstance(source, bytes) else "frames"
    return f"{name}: video" if name else f"video ({kind})"


@contextmanager
def open_video(source: VideoSource, name: str | None = None, fps: float = FPS) -> Iterator[Video]:
    """Opens a video.

    Args:
        source: A video file or its bytes, a folder of numbered images, a uint8 array (T, H, W, 3), or a `Clip`.
        name: Location of the item, which errors name besides the file, e.g. ``"train.csv, line 7"``.
        fps: Frames per second of images and arrays.

    Raises:
        DataError: The source is missing, empty or damaged, no video, or has no video stream.
        ModuleNotFoundError: Neither PyAV nor torchcodec is installed.
    """
    where = where_of(source, name)
    if isinstance(source, np.ndarray):
        _check_array(source, where)
        yield _Memory(Clip.of(source, fps))
        return
    if isinstance(source, Clip):
        yield _Memory(source)
        return
    path = None if isinstance(source, bytes) else _existing(source, where)
    if path is not None and path.is_dir():
        yield _Images(path, where, fps)
        return
    if path is not None:
        with path.open("rb") as file:
            start = file.read(12)
    else:
        start = source[:12]
    if not start:
        raise DataError(where, "a video", "an empty file")
    if start.startswith((b"#EXTM3U", b"ffconcat")):
        raise DataError(where, "a video", "a playlist, whose addresses are not followed")
    if start.startswith(b"GIF8"):
        _check_gif(source if path is None else path, where)
    if _backend_module() == "av":
        from mmattn.data.video.pyav import PyAVVideo

        with PyAVVideo.opened(source if path is None else path, where, start) as video:
            yield video
    else:
        from mmattn.data.video.torchcodec import TorchcodecVideo

        yield TorchcodecVideo(source if path is None else path, where, start)


def read_frames(
    source: VideoSource, times: Sequence[float], name: str | None = None, fps: float = FPS
) -> list[np.ndarray]:
    """Returns the frame (H, W, 3) that a video shows at each time, in seconds, ascending; see `open_video`.

    >>> frames = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    >>> [int(frame[0, 0, 0]) for frame in read_frames(frames, [0.0, 0.05, 0.11], fps=25)]
    [0, 1, 2]
    """
    with open_video(source, name, fps) as video:
        return [frame.pixels for frame in video.frames_at(times)]


def _check_gif(source: Path | bytes, where: str) -> None:
    """Raises a DataError if a GIF, whose header states no length, lacks its last byte."""
    if isinstance(source, bytes):
        end = source[-64:]
    else:
        with source.open("rb") as file:
            file.seek(max(source.stat().st_size - 64, 0))
            end = file.read()
    if not end.rstrip(b"\0").endswith(b";"):
        raise DataError(where, "a whole GIF", "one that was cut short")


def _existing(source: Any, where: str) -> Path:
    try:
        path = find_file(source)
        if not path.exists():
            raise DataError(where, "a video file, or a folder of numbered images", "no such file")
        return path
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(where, "a readable video", shorten(str(error))) from None


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise DataError(where, "a uint8 array (T, H, W, 3)", f"{array.dtype} of shape {array.shape}")


class _Memory:
    """Frames in memory."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.seconds = clip, clip.seconds
        self.size = (clip.frames.shape[2], clip.frames.shape[1])

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        for time in times:
            number = max(bisect_right(self.clip.times, time + 1e-6) - 1, 0)
            yield Frame(self.clip.times[number], self.clip.frames[number])


_NUMBER = re.compile(r"(\d+)$")


def numbered_images(folder: Path, where: str) -> list[tuple[int, Path]]:
    """The images of a folder with the numbers at the end of their names, in ascending order.

    Raises:
        DataError: The folder has no images, one without a number, or two of one number.
    """
    found: dict[int, Path] = {}
    for name, path in files_below(folder, IMAGE_EXTENSIONS):
        if "/" in name:
            continue
        number = _NUMBER.search(path.stem)
        if number is None:
            raise DataError(where, "images whose names end in their numbers", f"{name}")
        if int(number[1]) in found:
            raise DataError(where, "one image of each number", f"{found[int(number[1])].name} and {name}")
        found[int(number[1])] = path
    if not found:
        raise DataError(where, "a folder of numbered images", "none in it")
    return sorted(found.items())


class _Images:
    """A folder of numbered images; a missing number is a frame that was dropped, during which the last one is shown."""

    def __init__(self, folder: Path, where: str, fps: float) -> None:
        self.where, images = where, numbered_images(folder, where)
        self.paths = [path for _, path in images]
        self.times = [(number - images[0][0]) / fps for number, _ in images]
        self.seconds = self.times[-1] + 1 / fps
        self.size = image_size(self.paths[0], where)

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        last, frame = -1, None
        for time in times:
            number = max(bisect_right(self.times, time + 1e-6) - 1, 0)
            if frame is None or number != last:
                last = number
                frame = Frame(self.times[number], np.asarray(load_image(self.paths[number], self.where)))
            yield frame
