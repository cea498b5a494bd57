"""Speech augmentation: deterministic per seed, every operation as documented; joined clips from a script."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mmattn.data.errors import ConfigError
from mmattn.data.options import from_options
from mmattn.tasks.asr import augment as module
from mmattn.tasks.asr.augment import SpeechAugment, add_noise, change_speed, join_waves
from mmattn.tasks.asr.data import ASRDataset, ASRSample
from mmattn.tasks.asr.processor import ASRProcessor
from scripts import join_clips
from tests.conftest import refused
from tests.data.files import write

SEEDS = [1, 2, 3, 4, 5, 6]
ALL: dict[str, Any] = {"join": 3, "speed": [0.9, 1.1], "shift": 0.2, "gain": 6, "noise": [5, 30]}
ALL |= {"time_masks": 2, "freq_masks": 2}


def sound(seconds: float = 0.5, seed: int = 0) -> torch.Tensor:
    return torch.randn(round(seconds * 8000), generator=torch.Generator().manual_seed(seed)) * 0.1


def clips() -> list[ASRSample]:
    words = ("one", "two", "three", "four", "five", "six")
    return [ASRSample(word, (sound(0.3 + n / 20, n), 8000), word, speaker="ab"[n % 2]) for n, word in enumerate(words)]


@pytest.fixture(scope="module")
def processor() -> ASRProcessor:
    return ASRProcessor.fit(ASRDataset(clips()))


def waves(augment: SpeechAugment) -> list[torch.Tensor]:
    """Twelve copies of the same second of audio."""
    return augment.waves([sound(1.0, 5)] * 12, ["a"] * 12, [""] * 12, list(range(12)), 8000)[0]


def test_deterministic_given_the_seeds(processor: ASRProcessor) -> None:
    samples = clips()
    augment = SpeechAugment(**ALL).attach(samples)
    torch.manual_seed(0)
    one = processor.collate(samples, augment=augment, seeds=SEEDS)
    torch.manual_seed(1)
    other = processor.collate(samples, augment=augment, seeds=SEEDS)
    changed = processor.collate(samples, augment=augment, seeds=[*SEEDS[:5], 7])
    assert torch.equal(one.features, other.features)
    assert one.references == other.references
    kept = one.feature_mask[:5].sum(1).tolist()
    assert kept == changed.feature_mask[:5].sum(1).tolist()
    for n, size in enumerate(kept):
        assert torch.allclose(one.features[n, :size], changed.features[n, :size], atol=1e-4)
    assert not torch.equal(one.features[5, :20], changed.features[5, :20])
    assert all(torch.equal(a.read(8000), b.read(8000)) for a, b in zip(samples, clips(), strict=True))


def test_views_of_a_clip_differ_only_by_their_masks(processor: ASRProcessor) -> None:
    samples = clips()
    augment = SpeechAugment(join=2, speed=[0.9, 1.1], time_masks=2, freq_masks=2).attach(samples)
    one, two = (processor.collate(samples, augment=augment, seeds=SEEDS, views=views) for views in (1, 2))
    assert torch.equal(two.features[:6], one.features), "the first view equals a single view"
    assert (two.references, two.ids) == (one.references * 2, one.ids * 2)
    for name in ("feature_mask", "labels", "label_mask", "target_ids"):
        first, second = getattr(two, name).chunk(2)
        assert torch.equal(first, second)
        assert torch.equal(first, getattr(one, name))
    first, second = two.features.chunk(2)
    seen = (first != 0) & (second != 0)  # masked in neither view
    assert torch.equal(first[seen], second[seen])
    assert not any(torch.equal(first[n], second[n]) for n in range(6))


def test_seeds_are_required_and_off_is_identity(processor: ASRProcessor) -> None:
    refused("augment needs seeds", processor.collate, clips(), augment=SpeechAugment(shift=0.1))
    plain, off = (processor.collate(clips(), augment=a, seeds=SEEDS) for a in (None, SpeechAugment()))
    assert torch.equal(off.features, plain.features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sped": [1, 1]}, "sped: unknown option .*did you mean 'speed'.*expected one of: join, pause, speed"),
        ({"speed": 0.9}, "speed: expected a minimum and a maximum within 0.25 to 4.0, found 0.9"),
        ({"speed": [1.1, 0.9]}, "speed: expected a minimum"),
        ({"speed": "ab"}, "speed: expected a minimum"),
        ({"noise": [5, "a"]}, "noise: expected a minimum"),
        ({"gain": -1}, "gain: expected 0 to 60, found -1"),
        ({"time_masks": True}, "time_masks: expected 0 to 50"),
        ({"join": 1000}, "join: expected 0 to 100"),
        ({"self": 1}, "self: unknown option"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    refused(rf"data\.augment\.{message}", from_options, SpeechAugment, options, "data.augment", error=ConfigError)


def test_joined_clips_share_speaker_and_transcript() -> None:
    samples = clips()
    by_text = {sample.text: sample for sample in samples}
    augment = SpeechAugment(join=4, pause=0.25).attach(samples)
    counts = set()
    for seed in range(20):
        joined, texts = augment.waves([s.read(8000) for s in samples[:2]], ["one", "two"], ["a", "b"], [seed, 99], 8000)
        for wave, text, first in zip(joined, texts, samples, strict=False):
            words = text.split()
            assert words[0] == first.text
            assert {by_text[word].speaker for word in words} == {first.speaker}
            parts = [by_text[word].audio[0] for word in words]
            least = sum(map(len, parts))
            assert least <= len(wave) <= least + (len(words) - 1) * 2001
            assert torch.equal(wave[: len(parts[0])], parts[0])
            assert torch.equal(wave[-len(parts[-1]) :], parts[-1])
        assert len({len(text.split()) for text in texts}) == 1  # the same number of clips for the whole batch
        counts.add(len(texts[0].split()))
    assert counts == {1, 2, 3, 4}
    alone = SpeechAugment(join=4)
    refused("join: expected recordings to join with", alone.waves, [sound()], ["one"], ["a"], [3], 8000)


def test_expected_lengths(processor: ASRProcessor) -> None:
    samples = clips()
    augment = SpeechAugment(join=5, pause=0.2, speed=[0.8, 1.0], shift=0.1).attach(samples)
    plain = processor.lengths(samples)
    expected = augment.lengths(plain, processor.frame_seconds)
    drawn = torch.zeros(6, 2)
    for seed in range(60):
        batch = processor.collate(samples, augment=augment, seeds=[seed * 7 + n for n in range(6)])
        drawn += torch.stack([batch.feature_mask.sum(1), batch.label_mask.sum(1)], 1) / 60
    ratio = drawn.mean(0) / torch.tensor(expected).float().mean(0)
    assert (ratio - 1).abs().max() < 0.1
    assert SpeechAugment(freq_masks=1).lengths(plain) == plain


def test_clip_boundaries() -> None:
    parts = [sound(0.1, 1), sound(0.2, 2), sound(0.3, 3)]
    wave, borders = join_waves(parts, [0.05, 0.0], 8000)
    assert sum(borders, ()) == pytest.approx((0, 0.1, 0.15, 0.35, 0.35, 0.65))
    for part, (start, end) in zip(parts, borders, strict=True):
        assert torch.equal(wave[round(start * 8000) : round(end * 8000)], part)
    assert not wave[800:1200].any()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.9])
def test_speed_perturbation(factor: float) -> None:
    time = torch.arange(8000) / 8000
    wave = torch.sin(2 * math.pi * 400 * time) * torch.hann_window(8000)
    faster = change_speed(wave, factor)
    actual = 8000 / len(faster)
    assert abs(actual / factor - 1) < 0.01
    place = torch.arange(len(faster)) * actual / 8000
    expected = torch.sin(2 * math.pi * 400 * place) * (0.5 - 0.5 * torch.cos(2 * math.pi * place))
    assert (faster - expected).abs().max() < 2e-3
    assert change_speed(wave, 1.0) is wave


def test_speed_perturbation_at_any_length() -> None:
    """Small rounding errors, also for the shortest clips."""
    for size in range(4000, 40_000, 997):
        for factor in (0.85, 0.95, 1.0 + 1e-9, 1.05, 1.15):
            assert abs(size / len(change_speed(torch.zeros(size), factor)) / factor - 1) < 0.01
    for size in (1, 2, 3, 7, 1001):
        for changed in (change_speed(torch.ones(size), factor) for factor in (0.9, 1.1)):
            assert len(changed) >= 1
            assert torch.isfinite(changed).all()


@pytest.mark.parametrize("ratio", [0.0, 20.0])
@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
def test_noise_matches_the_snr(ratio: float, tilt: float) -> None:
    wave = sound(2.0)
    noise = add_noise(wave, ratio, [0.3, 0.7, tilt]) - wave
    assert 10 * math.log10(float(wave.square().mean() / noise.square().mean())) == pytest.approx(ratio, abs=1.5)
    low, high = (half.mean() for half in torch.fft.rfft(noise).abs().square().tensor_split(2))
    assert (low > 2 * high) == (tilt > 0.4)
    assert not torch.equal(add_noise(wave, ratio, [0.4, 0.7, 0.5]), add_noise(wave, ratio, [0.3, 0.7, 0.5]))


def test_long_noise_and_silent_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not add_noise(torch.zeros(100), 10.0, [0.1, 0.2, 0.3]).any()
    module._noise_table.cache_clear()
    monkeypatch.setattr(module, "NOISE", 1000)
    assert add_noise(sound(1.0), 10.0, [0.999, 0.999, 0.5]).shape == (8000,)
    module._noise_table.cache_clear()


def test_shift_pads_with_silence() -> None:
    places = []
    for wave in waves(SpeechAugment(shift=0.1)):
        start = int(wave.nonzero()[0])
        assert torch.equal(wave[start : start + 8000], sound(1.0, 5))
        assert not wave[start + 8000 :].any()
        assert len(wave) <= 9600
        places += [start, len(wave) - start - 8000]
    assert min(places) < 200 < 600 < max(places)


def test_gain_ramp() -> None:
    curves = torch.stack([20 * torch.log10(wave / sound(1.0, 5)) for wave in waves(SpeechAugment(gain=12))])
    assert torch.allclose(curves[:, 4000], (curves[:, 0] + curves[:, -1]) / 2, atol=0.01)
    assert curves.abs().max() < 12.1
    assert curves[:, 0].std() > 3
    assert (curves[:, -1] - curves[:, 0]).abs().max() > 6


def test_time_and_frequency_masks() -> None:
    features, mask = torch.ones(64, 100, 40), torch.ones(64, 100, dtype=torch.bool)
    mask[:32, 50:] = False
    seeds = list(range(64))
    hidden = SpeechAugment(time_masks=1, time_width=15).features(features, mask, seeds) == 0
    assert torch.equal(hidden, hidden[:, :, :1].expand_as(hidden))
    widths = hidden[:, :, 0].sum(1)
    assert (widths[:32].max(), widths[32:].max(), widths.min()) == (10, 15, 0)  # at most a fifth of 50 frames
    assert not hidden[:32, 50:].any()
    assert ((hidden[:, 1:, 0] != hidden[:, :-1, 0]).sum(1) <= 2).all()
    hidden = SpeechAugment(freq_masks=1, freq_width=6).features(features, mask, seeds) == 0
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert sorted(set(hidden[:, 0].sum(1).tolist())) == list(range(7))
    assert hidden[:, 0].any(0).float().mean() > 0.9  # anywhere in the bands
    both = SpeechAugment(time_masks=2, freq_masks=2).features(features, mask, seeds)
    assert 0.5 < both.mean() < 0.95


def joined(*arguments: object) -> int:
    """The exit status of the script."""
    try:
        return join_clips.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_join_clips_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audio").mkdir()
    lines, stored, speakers = [], {}, {}
    for sample in clips():
        soundfile.write(tmp_path / "audio" / f"{sample.id}.flac", sample.audio[0].numpy(), 8000)
        stored[sample.text] = torch.from_numpy(soundfile.read(tmp_path / f"audio/{sample.id}.flac", dtype="float32")[0])
        lines.append({"audio": f"audio/{sample.id}.flac", "text": sample.text, "speaker": sample.speaker})
        speakers[sample.text] = sample.speaker
    write(tmp_path / "a.jsonl", lines)
    out = tmp_path / "new" / "strings"
    assert joined(tmp_path / "a.jsonl", out, "--count", 5, "--words", 2, 4, "--seed", 3) == 0
    assert capsys.readouterr().err == ""
    found = ASRDataset(out / "manifest.jsonl")
    assert len(found) == 5
    for sample in found.samples:
        words = sample.text.split()
        assert 2 <= len(words) <= 4
        assert [word for word, _, _ in sample.words] == words
        assert {speakers[word] for word in words} == {sample.speaker}
        wave = sample.read(8000)
        assert len(wave) / 8000 == pytest.approx(sample.duration, abs=1e-3)
        for word, start, end in sample.words:
            assert torch.equal(wave[round(start * 8000) : round(end * 8000)], stored[word])
        assert all(0 <= b[1] - a[2] <= 0.3 for a, b in zip(sample.words, sample.words[1:], strict=False))
    assert joined(tmp_path / "a.jsonl", out) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "audio" / "two.flac").write_bytes(b"no sound")
    assert joined(tmp_path / "a.jsonl", tmp_path / "bad", "--count", 20) == 1
    assert re.match("error: .*a.jsonl, line 2: audio", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "audio", "new"]  # no partial output
