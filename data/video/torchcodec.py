"""Video files by torchcodec, which needs an FFmpeg of the system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmattn.data.errors import DataError, shorten
from mmattn.data.video.frames import FRAMES, MISSING, Frame


class TorchcodecVideo:
    """An opened video file; see `mmattn.data.video.reading.Video`. torchcodec itself rotates the frames.

    Args:
        source: The file, or its bytes.
        where: Name of the video in messages.
        start: The first bytes of the file, for messages.
    """

    def __init__(self, source: Path | bytes, where: str, start: bytes) -> None:
        from torchcodec.decoders import VideoDecoder

        self.where = where
        given = source if isinstance(source, bytes) else str(source)
        try:
            self.decoder: Any = VideoDecoder(given, dimension_order="NHWC")
            about = self.decoder.metadata
            self.begin = float(about.begin_stream_seconds or 0.0)
            self.seconds = float(about.end_stream_seconds - self.begin)
            first = self.decoder[0]
        except Exception as error:  # RuntimeError, ValueError, IndexError, TypeError: for whatever FFmpeg refuses
            found = f"a damaged one, or another kind of file, that starts with {start!r} ({shorten(str(error))})"
            raise DataError(where, "a video", found) from None
        promised = about.duration_seconds_from_header or 0.0
        if promised - self.seconds > max(MISSING, FRAMES * self.seconds / max(about.num_frames or 1, 1)):
            whole = f"a whole video of {promised:.2f} s, as its header states"
            raise DataError(where, whole, f"one that ends after {self.seconds:.2f} s")
        self.size = (int(first.shape[1]), int(first.shape[0]))

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        frame: Frame | None = None
        until = 0.0  # the time to which the frame is shown
        for time in times:
            if frame is None or time >= until:
                place = min(max(time, 0.0), self.seconds - 1e-4) + self.begin
                try:
                    found = self.decoder.get_frame_played_at(place)
                except Exception as error:
                    reason = f"a damaged one, at {time:.2f} s ({shorten(str(error))})"
                    raise DataError(self.where, "a whole video", reason) from None
                begin = float(found.pts_seconds) - self.begin
                frame, until = Frame(begin, found.data.numpy()), begin + float(found.duration_seconds)
            yield frame
