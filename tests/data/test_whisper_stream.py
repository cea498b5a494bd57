"""Whisper's frames of a long recording, read as they are asked for: those of the whole, little in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmattn.data.audio.mel import WhisperFeatures
from mmattn.tasks.asr.whisper import WhisperStream

FRONT = WhisperFeatures(n_mels=20, seconds=2)
WINDOW = 200  # frames


def sound(samples: int) -> Tensor:
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    wave *= torch.linspace(0.001, 1, samples)  # what is loudest comes last
    wave[5_000:9_000] = 0.0  # and what is silence is told by it
    return wave


@pytest.mark.parametrize("samples", [32_001, 32_160, 100_000, 111_111, 96_000])
@pytest.mark.parametrize("block", [160, 7_001, 32_000, 200_000])
def test_any_window_is_that_of_the_whole(samples: int, block: int) -> None:
    wave = sound(samples)
    whole = FRONT(wave, whole=True)
    top = WhisperStream(FRONT, wave.split(block)).loudest()
    stream = WhisperStream(FRONT, wave.split(block), top)
    for frame in sorted([0, 0, 37, 200, 201, 390, samples // 160 - 1]):
        begin, frames = stream.read(frame)
        expected = whole[frame : frame + WINDOW]
        assert begin == frame or not len(expected)
        torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)
    assert len(stream.read(samples // 160)[1]) == 0
    assert stream.total == samples


def test_little_is_kept() -> None:
    kept = []

    def blocks() -> Iterator[Tensor]:
        for piece in sound(3_200_000).split(32_000):
            kept.append(len(stream.wave))
            yield piece

    stream = WhisperStream(FRONT, blocks(), 0.0)
    frame = 0
    while len(stream.read(frame)[1]):
        frame += 150
    assert len(kept) == 100
    assert max(kept) < 3 * 32_000


def test_silence_is_passed_over() -> None:
    said = sound(32_000)
    quiet = torch.zeros(160_000)
    quiet[::2] = 1e-5
    wave = torch.cat([said, quiet, said, quiet])
    stream = WhisperStream(FRONT, wave.split(32_000), 2.0, silence=1e-4)
    assert stream.read(0)[0] == 0
    begin, frames = stream.read(WINDOW + 50)
    assert begin == WINDOW + 50 + 4 * WINDOW, "the first window that reaches what is said next"
    assert len(frames) == WINDOW
    assert len(stream.read(begin + WINDOW + 150)[1]) == 0
    assert stream.total == len(wave)
    with pytest.raises(ValueError, match="the loudest frame is not known"):
        WhisperStream(FRONT, [said]).read(0)
