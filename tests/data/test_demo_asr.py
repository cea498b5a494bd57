"""The built-in speech: frozen, and as documented."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from mmattn.tasks.asr import demo
from mmattn.tasks.asr.data import ASRSample, normalize_text
from mmattn.tasks.asr.demo import DIGITS, NUM_CLIPS, UNSEEN, VOICES, WORDS, make, sentences
from mmattn.tasks.asr.voices import PHONES, RATE, speak
from tests.data.demos import DemoTests

SOME = 80  # clips per split whose audio is tested: a clip depends only on its number and its split
TEXTS = {
    "train": "bd6446da5ef8ad276e629e99189ba43cf92a9fefba1d7dc147fa401326be2374",
    "val": "a65c8164f3c5945f353cd25387d4a931a6df712eb6d2d09ed18804b765252ee6",
    "test": "74b86ae65971b197ef422e71b0f8d459bfe5335800477fb2427bcb31d56b6950",
}


@pytest.fixture(scope="module")
def parts() -> dict[str, list[ASRSample]]:
    return {split: make(split, SOME) for split in NUM_CLIPS}


@pytest.fixture(scope="module")
def texts() -> dict[str, list[list[str]]]:
    return {split: sentences(split) for split in NUM_CLIPS}


class TestFrozen(DemoTests):
    demo = demo
    digests = (
        "5125dbd37124f71ea5adea02364823bdf0cf12cac238e0c85fa78954666786ba",
        "75b4914b853063254aa8718b85c74949c3d3ccccdfeaf0838b192bcc0ff06a56",
        "8f2288306f92849aa2f44a8a05d6c80c4e895c4387d63f4eaaf4885f22a2fc67",
    )

    def content(self, sample: ASRSample) -> bytes:
        described = f"{sample.id} {sample.speaker} {sample.text} {sample.words}"
        return described.encode() + sample.audio[0].numpy().tobytes()


def test_all_transcripts_are_frozen(texts: dict[str, list[list[str]]]) -> None:
    for split, part in texts.items():
        assert len(part) == NUM_CLIPS[split]
        assert hashlib.sha256("\n".join(map(" ".join, part)).encode()).hexdigest() == TEXTS[split]


def test_every_word_is_trained_and_no_sentence_repeats(texts: dict[str, list[list[str]]]) -> None:
    joined = [" ".join(words) for part in texts.values() for words in part]
    assert len(set(joined)) == len(joined) == sum(NUM_CLIPS.values())
    counts = {word: sum(word in words for words in texts["train"]) for word in WORDS}
    assert min(counts.values()) >= 50
    assert {sound for sounds in WORDS.values() for sound in sounds} == set(PHONES)
    assert len(set(WORDS.values())) == len(WORDS), "all words differ in pronunciation"
    pairs = [(a, b) for a in WORDS for b in WORDS if a < b and len(WORDS[a]) == len(WORDS[b])]
    near = {(a, b) for a, b in pairs if sum(x != y for x, y in zip(WORDS[a], WORDS[b], strict=True)) == 1}
    assert {("den", "ten"), ("bed", "red"), ("cap", "cat"), ("sheep", "ship"), ("feed", "need")} <= near
    assert len(near) >= 15


def test_word_sets_do_not_determine_their_order(texts: dict[str, list[list[str]]]) -> None:
    """Many digit strings and phrases with two nouns are also sentences in another order."""
    other = 0
    for words in texts["test"]:
        digits = all(word in DIGITS for word in words) and len(set(words)) > 1
        middle = next((n for n, word in enumerate(words) if word in ("near", "and")), None)
        other += digits or (middle is not None and words[:middle] != words[middle + 1 :])
    assert other > 0.4 * len(texts["test"])
    orders = Counter(tuple(sorted(words)) for part in texts.values() for words in part)
    assert sum(count for count in orders.values() if count > 1) > 200


def test_each_split_has_an_unseen_speaker(parts: dict[str, list[ASRSample]]) -> None:
    known = {voice.name for voice in VOICES}
    assert {sample.speaker for sample in parts["train"]} == known
    for split in ("val", "test"):
        speakers = [sample.speaker for sample in parts[split]]
        assert set(speakers) == known | {UNSEEN[split].name}
        assert speakers.count(UNSEEN[split].name) == SOME // 2
    assert UNSEEN["val"].name != UNSEEN["test"].name


def test_clip_durations_and_levels(parts: dict[str, list[ASRSample]]) -> None:
    samples = [sample for part in parts.values() for sample in part]
    lengths = np.array([len(sample.audio[0]) / RATE for sample in samples])
    assert 0.7 < lengths.min() < 1.3 < lengths.mean() < 1.9 < lengths.max() < 4
    assert [sample.duration for sample in samples] == lengths.tolist()
    peaks = np.array([float(sample.audio[0].abs().max()) for sample in samples])
    assert 0.02 < peaks.min() < 0.1 < peaks.max() < 1
    assert all((sample.audio[0] * 32768 % 1 == 0).all() for sample in samples), "16 bits"


def test_word_timings_match_the_signal(parts: dict[str, list[ASRSample]]) -> None:
    for sample in parts["val"]:
        assert " ".join(word for word, _, _ in sample.words) == sample.text == normalize_text(sample.text)
        times = [time for _, *border in sample.words for time in border]
        assert [0.05, *times, sample.duration - 0.1] == sorted([0.05, *times, sample.duration - 0.1])
        power = sample.audio[0].double().numpy() ** 2
        inside = np.zeros(len(power), bool)
        for _, begin, end in sample.words:
            assert 0.05 < end - begin < 1.0
            inside[round(begin * RATE) : round(end * RATE)] = True
        before = power[: round(times[0] * RATE) - 80]
        assert power[inside].mean() > 5 * before.mean()  # the noise is at least 10 dB below


def _spoken(*phones: str) -> tuple[np.ndarray, float, float]:
    sound, [(begin, end)] = speak(VOICES[1], [phones], [0.1, 0.1], np.random.RandomState(3))
    return sound, begin, end


def _spectrum(sound: np.ndarray, time: float, size: int = 480) -> np.ndarray:
    """The power spectrum of 60 ms around a time, in bins of 16.7 Hz."""
    middle = int(time * RATE)
    return np.abs(np.fft.rfft(sound[middle - size // 2 : middle + size // 2] * np.hanning(size))) ** 2


@pytest.mark.parametrize(("vowel", "first", "second"), [("IY", 280, 2250), ("AA", 740, 1130), ("AE", 690, 1660)])
def test_vowel_formants(vowel: str, first: float, second: float) -> None:
    sound, begin, end = _spoken(vowel)
    power = _spectrum(sound, (begin + end) / 2)
    hertz = np.arange(len(power)) * RATE / 480
    for formant, low, high in ((first, 200, 900), (second, 950, 2600)):
        band = (hertz > low) & (hertz < high)
        found = hertz[band][power[band].argmax()]
        assert abs(found - formant * VOICES[1].scale) < 130, "the strongest harmonic is near it"


def test_speaker_pitch() -> None:
    for voice in VOICES:
        sound, [(begin, end)] = speak(voice, [("AA",)], [0.1, 0.1], np.random.RandomState(5))
        middle = sound[int(begin * RATE) + 160 : int(end * RATE) - 160]
        middle = middle - middle.mean()
        lags = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        period = 25 + lags[25:110].argmax()
        assert abs(RATE / period / voice.pitch - 1) < 0.25


def test_fricative_spectra() -> None:
    centers = {}
    for name in ("S", "SH", "F"):
        sound, begin, _ = _spoken(name, "AA")
        power = _spectrum(sound, begin + 0.045, 400)
        centers[name] = (power * np.arange(len(power))).sum() / power.sum() * RATE / 400
    assert 2200 < centers["SH"] < 3000 < centers["S"]
    assert centers["F"] < centers["S"]


def test_stop_consonant_is_silence_and_a_burst() -> None:
    sound, begin, end = _spoken("AA", "T", "AA")
    loud = np.sqrt((sound[: len(sound) // 40 * 40].reshape(-1, 40) ** 2).mean(1))  # (5 ms)
    first, last = round(begin * 200), round(end * 200)
    third = (last - first) // 3
    middle = loud[first + third : last - third]
    closure, vowel = middle.argmin(), loud[first : first + third].max()
    assert middle[closure] < 0.01 * vowel
    burst = sound[(first + third + closure) * 40 : (first + third + closure + 12) * 40]
    assert np.abs(np.diff(burst)).max() > 20 * middle[closure], "then noise, immediately"
