"""Videos for tests: one film in every format, and unreadable files, written by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

RATE = 10  # frames per second
ERRORS = {  # error messages of the collection's unreadable files
    "audio.mp4": "expected a video stream, found none (audio alone)",
    "cut.avi": "expected a whole video",
    "cut.gif": "expected a whole GIF, found one that was cut short",
    "cut.mp4": "expected a whole video",
    "cut.webm": "expected a whole video",
    "empty.mp4": "expected a video, found an empty file",
    "headless.mp4": "found a damaged one, or another kind of file",
    "text.mp4": "another kind of file, that starts with b'a text",
}


def film(count: int = 20, height: int = 24, width: int = 32) -> np.ndarray:
    """Frames (T, H, W, 3) whose red tells their number, green at the upper left."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 250, count).round()[:, None, None]
    frames[:, : height // 2, : width // 2, 1] = 255
    return frames


def reds(frames: Sequence[np.ndarray]) -> list[float]:
    """The mean red of frames."""
    return [float(frame[..., 0].mean()) for frame in frames]


def noise(count: int = 30) -> np.ndarray:
    """Frames that hardly compress, so that a file that is cut in the middle ends in the middle."""
    return np.random.default_rng(0).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    *,
    rate: int = RATE,
    milliseconds: Sequence[int] | None = None,
    rotation: int | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    keys: int = 12,
) -> Path:
    """Writes a video.

    Args:
        path: The file; its suffix determines the container.
        frames: (T, H, W, 3) uint8.
        codec: Name of the encoder.
        rate: Frames per second.
        milliseconds: The time of each frame, for a variable frame rate.
        rotation: Degrees of the container's rotation, counterclockwise.
        pixels: Pixel format.
        options: Options of the container.
        keys: Largest distance of key frames.
    """
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = keys
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixel_values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixel_values, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """Writes a file with a sound and no picture."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_images(folder: Path, frames: np.ndarray, missing: Sequence[int] = ()) -> Path:
    """Writes frames as numbered images, from 1, without some."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        if number not in missing:
            Image.fromarray(frame).save(folder / f"frame_{number + 1:04d}.png")
    return folder


def write_bad(folder: Path) -> Path:
    """Writes the files of ERRORS."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "whole"
    scratch.mkdir()
    fast = {"movflags": "faststart"}  # the index precedes the frames
    whole = {
        "cut.avi": write(scratch / "a.avi", noise(), "mpeg4"),
        "cut.gif": write(scratch / "a.gif", noise(), "gif", pixels="rgb8"),
        "cut.mp4": write(scratch / "a.mp4", noise(), options=fast),
        "cut.webm": write(scratch / "a.webm", noise(), "libvpx"),
        "headless.mp4": write(scratch / "b.mp4", noise()),
    }
    for name, path in whole.items():
        content = path.read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        path.unlink()
    scratch.rmdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("a text of some length, and no video at all" * 20)
    write_audio(folder / "audio.mp4")
    return folder
