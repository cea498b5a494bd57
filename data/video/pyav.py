"""Video files by PyAV, which brings its own FFmpeg."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from mmattn.data.errors import DataError, shorten
from mmattn.data.image.processor import LIMIT, MAX_PIXELS, limit_of
from mmattn.data.video.frames import FRAMES, MISSING, Frame

# FFmpeg recognizes files by content alone, and would follow the addresses in a playlist: only these formats are opened.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif,mpeg,mpegts,mpegvideo,asf,flv,ogg,h264,hevc,m4v,ivf,mjpeg"
NAMES = "MP4, MOV, AVI, WebM, MKV, GIF, MPEG, WMV, FLV"
SHOWN = 1e-4  # seconds by which a time may precede that of a frame: times are rounded in containers
FAR = 10.0  # seconds ahead to which it pays to seek in a file without an index of its key frames


class PyAVVideo:
    """An opened video file; see `mmattn.data.video.reading.Video`."""

    def __init__(self, container: Any, where: str) -> None:
        self.container, self.where = container, where
        pictures = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise DataError(where, "a video stream", f"none ({kinds} alone)")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            raise DataError(where, "a video of a known codec", "another one")
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        limit = limit_of(LIMIT, MAX_PIXELS)
        if width * height > limit:
            raise DataError(where, f"frames of at most {limit:,} pixels", f"{width} x {height}; {LIMIT} sets another")
        self.base = float(self.stream.time_base or 1 / 90_000)
        self.begin = float((self.stream.start_time or 0) * self.base)
        self.converter: Any = VideoReformatter()
        self.is_promised = True  # whether the header states the length
        self.can_seek = True
        self.seconds = self._length()
        decoded = self._decoded()
        with self._errors("its first frame"):
            first = next(decoded, None)
        if first is None:
            raise DataError(where, "a video with frames", "none")
        self._begun: Iterator[Any] | None = itertools.chain([first], decoded)  # until the first frames are taken
        self.begin = min(self.begin, self._time(first) + self.begin) if first.pts is not None else self.begin
        width, height = first.width, first.height
        self.size = (height, width) if first.rotation % 180 else (width, height)

    @classmethod
    @contextmanager
    def opened(cls, source: Path | bytes, where: str, start: bytes) -> Iterator[PyAVVideo]:
        """Opens a file, or its bytes, of which `start` are the first."""
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
        try:
            container = av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            found = f"a damaged one, or another kind of file, that starts with {start!r}"
            raise DataError(where, f"a video ({NAMES})", f"{found} ({_reason(error)})") from None
        with container:
            yield cls(container, where)

    @contextmanager
    def _errors(self, at: str) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(self.where, "a whole video", f"a damaged one, at {at} ({_reason(error)})") from None

    def _length(self) -> float:
        """Length in seconds: of the stream, by its tag, of the whole file, or by counting its packets."""
        if self.stream.duration:
            return float(self.stream.duration * self.base)
        tag = {key.upper(): value for key, value in self.stream.metadata.items()}.get("DURATION", "")
        parts = tag.split(":")
        if len(parts) == 3:
            hours, minutes, seconds = (float(part) for part in parts)
            return 3600 * hours + 60 * minutes + seconds - self.begin
        self.is_promised = False
        if self.container.duration:
            return float(self.container.duration / av.time_base) - self.begin
        end = 0.0
        with self._errors("its packets"):
            for packet in self.container.demux(self.stream):
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * self.base)
            self.container.seek(0)
        return end - self.begin

    def _decoded(self) -> Iterator[Any]:
        yield from self.container.decode(self.stream)

    def _time(self, frame: Any) -> float:
        return (0.0 if frame.pts is None else float(frame.pts * self.base)) - self.begin

    def _end(self, frame: Any) -> float:
        return self._time(frame) + float((frame.duration or 0) * self.base)

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        decoded: Iterator[Any] = self._rewound()
        current: Any = None
        upcoming: Any = None
        made: tuple[Any, Frame] | None = None  # the last frame that was converted
        is_begun = False
        for time in times:
            with self._errors(f"{time:.2f} s"):
                if self._is_far(current, time) and (jumped := self._jump(time)) is not None:
                    decoded, current, upcoming, is_begun = jumped
                if not is_begun:
                    upcoming, is_begun = next(decoded, None), True
                while upcoming is not None and (current is None or self._time(upcoming) <= time + SHOWN):
                    current, upcoming = upcoming, next(decoded, None)
            if current is None:
                raise DataError(self.where, "a video with frames", "none")
            if upcoming is None:
                self._check_end(current, time)
            if made is None or made[0] is not current:
                made = current, Frame(self._time(current), self._pixels(current))
            yield made[1]

    def _rewound(self) -> Iterator[Any]:
        """Decodes from the beginning."""
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun
        self.container.seek(0)
        return self._decoded()

    def _is_far(self, current: Any, time: float) -> bool:
        """Whether a key frame lies between the current frame and a time, so that it pays to seek."""
        now = 0.0 if current is None else self._time(current)
        if not self.can_seek or time - now < 0.5:
            return False
        entries: Any = getattr(self.stream, "index_entries", ())  # PyAV has them since 17
        if not len(entries):
            return time - now > FAR
        place = entries.search_timestamp(round((time + self.begin) / self.base))
        return place >= 0 and entries[place].timestamp * self.base - self.begin > now + SHOWN

    def _jump(self, time: float) -> tuple[Iterator[Any], Any, Any, bool] | None:
        """Seeks to the key frame before a time; None if the file does not let us, so that it is decoded on."""
        target = round((time + self.begin) / self.base)
        try:
            self.container.seek(target, stream=self.stream)
            decoded = self._decoded()
            first = next(decoded, None)
        except (av.error.FFmpegError, OSError):
            first = None
        if first is not None and first.pts is not None and self._time(first) <= time + SHOWN:
            return decoded, None, first, True
        self.can_seek = False  # inexact: the whole file is decoded in order
        self.container.seek(0)
        return self._decoded(), None, None, False

    def _pixels(self, frame: Any) -> np.ndarray:
        """The frame as RGB (H, W, 3), rotated as the file says."""
        # One converter for all frames: making one for each, as `frame.to_ndarray` does, takes four times as long.
        pixels = self.converter.reformat(frame, format="rgb24").to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return pixels if turns == 0 else np.ascontiguousarray(np.rot90(pixels, turns))

    def _check_end(self, last: Any, time: float) -> None:
        """Raises a DataError if frames that the header promises are missing."""
        end, frame = self._end(last), float((last.duration or 0) * self.base)
        if self.is_promised and min(time, self.seconds) - end > max(MISSING, FRAMES * frame):
            promised = f"a whole video of {self.seconds:.2f} s, as its header states"
            raise DataError(self.where, promised, f"one that ends after {end:.2f} s")


def _reason(error: Exception) -> str:
    return shorten(getattr(error, "strerror", None) or str(error))
