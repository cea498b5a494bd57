"""Word timings: windows of long recordings, CTC forced alignment, silence, and correction of the emission delay."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmattn.data.errors import DataError
from mmattn.tasks.asr import alignment
from mmattn.tasks.asr.alignment import Word, fit_to_sound, measure_delay, place_words, windows, words_in_frames
from mmattn.tasks.asr.data import ASRDataset, ASRSample
from mmattn.tasks.asr.demo import make
from mmattn.tasks.asr.model import ASRModel
from mmattn.tasks.asr.predict import OVERLAP, ASRPredictor, load
from mmattn.tasks.asr.processor import ASRProcessor
from mmattn.tasks.common.sources import named_models
from tests.conftest import refused
from tests.tasks import tones
from tests.tasks.runs import edited


@pytest.fixture(scope="module")
def recognizer() -> ASRPredictor:
    return tones.recognizer()


@pytest.fixture(scope="module")
def clips() -> ASRDataset:
    return ASRDataset(make("train", 50))


@pytest.mark.parametrize("size", [1, 333, 1000, 5000])
def test_windows_cover_the_recording(size: int) -> None:
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
    for before, after in pairwise(found):
        assert after.start == pytest.approx(before.start + 7.5)
        assert after.start <= before.high == after.low <= before.end


def test_window_boundaries_fall_in_silence() -> None:
    wave = torch.ones(2000)
    wave[820:850] = 0.0  # in the overlap of windows 0 and 1, samples 750 to 1000
    first, second, *_ = windows([wave], rate=100, seconds=10.0, overlap=2.5)
    assert first.high == second.low
    assert 8.2 <= first.high <= 8.5


def test_short_recording_is_one_window() -> None:
    (only,) = windows([torch.randn(1000)], rate=100, seconds=10.0, overlap=2.5)
    assert only.whole
    refused(r"windows of 10.0 s cannot share 6.0 s", next, windows([torch.randn(10)], 100, 10.0, 6.0))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_long_recording_equals_its_clips(recognizer: ASRPredictor, batch_size: int) -> None:
    clips = [tones.clip(3000 + n) for n in range(14)]
    joined = ASRSample("joined", (torch.cat([clip.audio[0] for clip in clips]), tones.RATE))  # type: ignore[index]
    short = recognizer.predict(clips)
    *beside, long, last = recognizer.predict([*clips[:3], joined, clips[5]], batch_size=batch_size)
    assert long.duration > 5 * recognizer.processor.max_seconds * (1 - OVERLAP)
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


def test_other_window_lengths() -> None:
    shared = tones.recognizer()
    recognizer, clip = ASRPredictor(shared.model, shared.processor), tones.clip(4000, 12)
    for window in (2.0, 3.0, 60.0):
        assert recognizer(clip, window=window).text == clip.text
    assert recognizer.long


def test_invalid_sample_late_in_a_recording_is_one_error(recognizer: ASRPredictor) -> None:
    wave = torch.as_tensor(tones.clip(1, 40).audio[0]).clone()  # type: ignore[index]
    wave[-100] = torch.nan
    good = tones.clip(1000)
    items: list[Any] = [good, {"audio": (wave, tones.RATE), "id": "bad"}, tones.clip(1001)]
    refused(r"item bad: .* found 1 that are NaN", recognizer.predict, items, batch_size=2, error=DataError)
    first, error, last = recognizer.stream(items, batch_size=2, on_error="skip")
    assert isinstance(error, DataError)
    assert [first.text, last.text] == [good.text, tones.clip(1001).text]  # type: ignore[union-attr]


def test_predictions_are_streamed(recognizer: ASRPredictor) -> None:
    """A recording is opened only after the predictions for the previous batch."""
    opened = []

    class LoggingPredictor(ASRPredictor):
        def windows(self, sample: ASRSample, shown: bool = True, **options: Any) -> Any:
            opened.append(sample.id)
            return super().windows(sample, shown, **options)

    watched = LoggingPredictor(recognizer.model, recognizer.processor)
    answers = watched.stream([tones.clip(n) for n in range(8)], batch_size=2)
    next(answers)
    assert len(opened) <= 3
    assert len(list(answers)) == 7


def test_memory_is_constant_in_recording_length(tmp_path: Path) -> None:
    """Twelve minutes of eight channels: 0.17 GB as floats, of which one window at a time is in memory."""
    sentence = torch.as_tensor(tones.clip(5, 40).audio[0])  # type: ignore[index]
    duration, count = tones.measure_long(tones.save(tmp_path / "model"), tmp_path, sentence, 8000, (1, 1), (12, 8))
    assert duration == pytest.approx(720, abs=20)
    assert count > 1000


def test_words_without_an_alignment_are_spread_evenly(recognizer: ASRPredictor) -> None:
    """Two frames cannot hold five characters."""
    log_p = torch.zeros(2, recognizer.processor.sizes()["vocab_size"]).log_softmax(-1)
    assert words_in_frames("ab cd", log_p, recognizer.processor) == [("ab", 0, 1, [0.5]), ("cd", 1, 2, [1.5])]
    words, sure = place_words("ab cd", log_p, torch.zeros(320), recognizer.processor, 0.02, 1.0)
    assert [(w.word, w.start, w.end) for w in words] == [("ab", 1.0, 1.02), ("cd", 1.02, 1.04)]
    assert sure == [[1.01], [1.03]]


def test_word_peaks_are_ctc_peaks(recognizer: ASRPredictor) -> None:
    ids = recognizer.processor.encode("abc d")
    log_p = torch.full((30, recognizer.processor.sizes()["vocab_size"]), -9.0)
    log_p[:, 0] = 0.0
    for frame, index in zip((2, 3, 19, 21, 24), ids, strict=True):
        log_p[frame, index] = 9.0
    words = words_in_frames("abc d", log_p, recognizer.processor)
    assert [sure for *_, sure in words] == [[2.5, 3.5, 19.5], [24.5]]


def test_pause_separates_two_words() -> None:
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    wave[3200:4800] *= 1e-4  # from 0.4 to 0.6 s
    words = [Word("ab", 0.1, 0.7), Word("cd", 0.7, 0.9)]
    apart = fit_to_sound(words, wave, 8000, sure=[[0.2, 0.3], [0.75, 0.8]])
    assert [(w.start, w.end) for w in apart] == [(0.0, 0.4), (0.6, 1.0)]
    later = fit_to_sound([Word(w.word, w.start + 5, w.end + 5) for w in words], wave, 8000, 5.0, [[5.2, 5.3], [5.75]])
    assert [(w.start, w.end) for w in later] == [(5.0, 5.4), (5.6, 6.0)]
    assert fit_to_sound(words, wave, 8000)[0].end == pytest.approx(0.7)
    for near in (0.0, 1.0):  # a pause that reaches the first or last sound of the clip
        wave[:] = 1e-6
        wave[4000] = 1.0
        fit_to_sound(words, wave, 8000, sure=[[near], [near]])
        fit_to_sound(words, wave, 8000, sure=[[0.0], [1.0]])


def test_words_in_silence_move_to_the_nearest_sound() -> None:
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 1e-4
    wave[2400:4000] *= 1e4  # from 0.3 to 0.5 s
    wave[5600:7200] *= 1e4  # from 0.7 to 0.9 s
    early = [Word("go", 0.02, 0.08)]
    assert [(w.start, w.end) for w in fit_to_sound(early, wave, 8000, sure=[[0.05]])] == [(0.3, 0.5)]
    pair = fit_to_sound([Word("go", 0.02, 0.45), Word("on", 0.45, 0.8)], wave, 8000, sure=[[0.05], [0.6, 0.75]])
    assert pair[0].start <= pair[0].end <= pair[1].start <= pair[1].end
    assert pair[0].start == 0.3


class Delayed(nn.Module):
    """Scores of each frame computed only from the input a fixed number of frames earlier."""

    subsampling = 1

    def __init__(self, frames: int, bands: int, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frames, self.head = frames, nn.Module()
        self.head.ctc = nn.Linear(bands, vocab_size)

    def encode(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        late = torch.roll(features, self.frames, 1)
        if self.frames > 0:
            late = torch.cat([torch.zeros_like(late[:, : self.frames]), late[:, self.frames :]], 1)
        return late, mask


@pytest.mark.parametrize("frames", [0, 7, 20])
def test_known_emission_delay_is_measured(clips: ASRDataset, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BETTER", -2.0)  # accept any delay: this output is not text
    processor = ASRProcessor.fit(clips)
    model: Any = Delayed(frames, processor.mel.n_mels, processor.tokenizer.vocab_size)
    found = measure_delay(model, processor, clips.samples)
    assert abs(found - (frames + 0.5) * processor.frame_seconds) < 1e-3  # the time of a frame is its center
    monkeypatch.undo()
    nn.init.zeros_(model.head.ctc.weight)
    assert measure_delay(model, processor, clips.samples) == 0.0, "constant scores have no emission delay"


def test_emission_delay_is_subtracted_from_word_timings() -> None:
    recognizer, (sample,) = load("asr/demo", device="cpu"), make("test", 1)
    wave, text = sample.read(8000), sample.text
    log_p = torch.full((40, recognizer.processor.tokenizer.vocab_size), -9.0)  # indistinguishable frames
    log_p[:, 0] = 0.0
    ids = recognizer.processor.encode(text)
    for n, token in enumerate(ids):
        log_p[5 + 2 * n, token] = 1.0
    flat = torch.ones_like(wave)  # a constant level without information
    times = {}
    for late_by in (0.0, 0.08):
        recognizer.processor.delay = late_by
        times[late_by] = place_words(text, log_p, flat, recognizer.processor, recognizer.frame_seconds)[0]
    assert len(times[0.0]) == len(text.split()) >= 3
    for late, early in zip(times[0.0], times[0.08], strict=True):
        assert abs(late.start - early.start - 0.08) < 0.002
        assert abs(late.end - early.end - 0.08) < 0.002
    assert Word("a", 0.1, 0.5).moved(-0.2, 0.0, 9.0) == Word("a", 0.0, 0.3)
    assert Word("a", 0.1, 0.5).moved(0.2, 0.0, 0.6) == Word("a", 0.3, 0.6)


def test_missing_emission_delay_is_zero(tmp_path: Path) -> None:
    folder = shutil.copytree(named_models("asr")["demo"], tmp_path / "model")
    with edited(folder / "processor" / "processor.json") as settings:
        settings.pop("delay", None)
    older = load(folder, device="cpu")
    assert older.processor.delay == 0.0
    assert isinstance(older, ASRPredictor)
    assert older.predict([ASRSample("1", make("test", 1)[0].audio)])[0].text


def test_emission_delay_must_increase_speech_coverage() -> None:
    loud = torch.zeros(100, dtype=torch.bool)
    loud[20:80] = True
    late = [(0.35, 0.95, loud)]  # seconds; the speech is from 0.2 to 0.8
    assert abs(alignment._covered(late, 0.15) - 1.0) < 0.05
    assert alignment._covered(late, 0.0) < 0.65
    everywhere = torch.ones(100, dtype=torch.bool)  # no silence: no delay
    assert alignment._covered([(0.0, 1.0, everywhere)], 0.15) < 0.9
    assert alignment._covered([], 0.1) == 0.0


def test_shipped_model_word_timings_correct_its_emission_delay() -> None:
    recognizer, clips = load("asr/demo", device="cpu"), make("test", 30)
    assert 0.05 < recognizer.processor.delay < 0.25
    found, errors = recognizer.aligned(clips), []
    for sample, words in zip(clips, found, strict=True):
        for word, (_, start, end) in zip(words, sample.words, strict=True):
            errors += [abs(word.start - start), abs(word.end - end)]
    assert sorted(errors)[len(errors) // 2] < 0.05


def test_emission_delay_in_half_precision(clips: ASRDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BETTER", -2.0)
    processor = ASRProcessor.fit(clips)
    torch.manual_seed(0)
    model = ASRModel(**processor.sizes(), embed_dim=16, num_heads=2, ffn_dim=16, encoder_layers=1, decoder="none")
    whole = measure_delay(model, processor, clips.samples)
    assert abs(measure_delay(model.bfloat16(), processor, clips.samples) - whole) < 0.1
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("ids", "peaks"), [([4, 5, 6, 6, 7], [5, 7, 10, 12, 15]), ([4, 5, 5], [5, 10, 12]), ([4, 4], [0, 39]), ([4], [20])]
)
def test_token_segments_are_widened(ids: list[int], peaks: list[int]) -> None:
    """Also repeated tokens, whose separating blank must not be taken from the surrounding silence."""
    log_p = torch.full((40, 9), -9.0)
    log_p[:, 0] = 0.0
    for token, frame in zip(ids, peaks, strict=True):
        log_p[frame, token], log_p[frame, 0] = 0.0, -9.0
    plain = alignment.align(log_p, ids)
    shared = alignment.widened(log_p, ids, plain)
    assert plain == [(frame, frame) for frame in peaks]
    assert shared[0][0] == peaks[0]
    assert shared[-1][1] == peaks[-1]
    assert all(one[1] < other[0] for one, other in pairwise(shared))
    assert sum(last - first + 1 for first, last in shared) >= peaks[-1] - peaks[0]
