"""Recordings longer than a window: the same words as of short ones, at their times, in bounded memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.asr.alignment import windows
from mmattn.tasks.asr.data import ASRSample
from mmattn.tasks.asr.predict import OVERLAP, Recogniser
from tests.tasks import tones
from tests.tasks.long_recordings import hear_long

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return tones.recogniser()


@pytest.mark.parametrize("size", [1, 333, 1000, 5000])
def test_windows_are_the_recording(size: int) -> None:
    wave = torch.randn(4321)
    found = list(windows(wave.split(size), rate=100, seconds=10.0, overlap=2.5))
    for window in found:
        first = round(window.start * 100)
        assert torch.equal(window.wave, wave[first : first + 1000])
        assert window.end == pytest.approx(window.start + len(window.wave) / 100)
        assert window.start <= window.low < window.high
    assert found[0].low == 0.0
    assert found[-1].high == float("inf")
    assert found[-1].end == 43.21
    for before, after in itertools.pairwise(found):
        assert after.start == pytest.approx(before.start + 7.5)
        assert after.start <= before.high == after.low <= before.end


def test_borders_lie_where_it_is_quiet() -> None:
    wave = torch.ones(2000)
    wave[820:850] = 0.0  # of what windows 0 and 1 share, samples 750 to 1000
    first, second, *_ = windows([wave], rate=100, seconds=10.0, overlap=2.5)
    assert first.high == second.low
    assert 8.2 <= first.high <= 8.5


def test_a_recording_of_one_window_is_whole() -> None:
    (only,) = windows([torch.randn(1000)], rate=100, seconds=10.0, overlap=2.5)
    assert only.whole
    with pytest.raises(ValueError, match=r"windows of 10.0 s cannot share 6.0 s"):
        next(windows([torch.randn(10)], 100, 10.0, 6.0))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_same_words_at_the_same_times_as_of_short_recordings(recogniser: Recogniser, batch_size: int) -> None:
    clips = [tones.clip(3000 + n) for n in range(14)]
    joined = ASRSample("joined", (torch.cat([clip.audio[0] for clip in clips]), tones.RATE))  # type: ignore[index]
    short = recogniser.predict(clips)
    *beside, long, last = recogniser.predict([*clips[:3], joined, clips[5]], batch_size=batch_size)
    assert long.duration > 5 * recogniser.processor.max_seconds * (1 - OVERLAP)
    assert [answer.text for answer in (*beside, last)] == [short[n].text for n in (0, 1, 2, 5)]
    assert long.text == " ".join(answer.text for answer in short)
    start, expected = 0.0, []
    for clip, answer in zip(clips, short, strict=True):
        expected += [(word.word, start + word.start, start + word.end) for word in answer.words]
        start += clip.duration
    assert [word.word for word in long.words] == [word for word, _, _ in expected]
    for mine, (_, begin, end) in zip(long.words, expected, strict=True):
        assert abs(mine.start - begin) < 0.05
        assert abs(mine.end - end) < 0.05


def test_windows_of_another_length() -> None:
    shared = tones.recogniser()
    recogniser, clip = Recogniser(shared.model, shared.processor), tones.clip(4000, 12)
    for window in (2.0, 3.0, 60.0):
        assert recogniser(clip, window=window).text == clip.text
    assert recogniser.long


def test_what_is_bad_far_inside_is_one_error(recogniser: Recogniser) -> None:
    wave = torch.as_tensor(tones.clip(1, 40).audio[0]).clone()  # type: ignore[index]
    wave[-100] = torch.nan
    good = tones.clip(1000)
    items: list[Any] = [good, {"audio": (wave, tones.RATE), "id": "bad"}, tones.clip(1001)]
    with pytest.raises(DataError, match=r"item bad: .* found 1 that are NaN"):
        recogniser.predict(items, batch_size=2)
    first, error, last = recogniser.stream(items, batch_size=2, on_error="skip")
    assert isinstance(error, DataError)
    assert [first.text, last.text] == [good.text, tones.clip(1001).text]  # type: ignore[union-attr]


def test_answers_come_as_they_are_known(recogniser: Recogniser) -> None:
    """A recording is opened only when those a batch before it are answered."""
    opened = []

    class Watched(Recogniser):
        def windows(self, sample: ASRSample, shown: bool = True, **options: Any) -> Any:
            opened.append(sample.id)
            return super().windows(sample, shown, **options)

    watched = Watched(recogniser.model, recogniser.processor)
    answers = watched.stream([tones.clip(n) for n in range(8)], batch_size=2)
    next(answers)
    assert len(opened) <= 3
    assert len(list(answers)) == 7


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Twelve minutes of eight channels: 0.17 GB as floats, of which a window at a time is in memory."""
    sentence = torch.as_tensor(tones.clip(5, 40).audio[0])  # type: ignore[index]
    duration, count = hear_long(tones.save(tmp_path / "model"), tmp_path, sentence, 8000, (1, 1), (12, 8))
    assert duration == pytest.approx(720, abs=20)
    assert count > 1000
