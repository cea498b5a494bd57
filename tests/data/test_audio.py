"""Audio from files and from memory: invalid input, any rate and channel count; features against torchaudio."""

from __future__ import annotations

import io
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmattn.data.audio import reading
from mmattn.data.audio.mel import LogMel
from mmattn.data.audio.reading import audio_seconds, read_audio, resample, stream_audio
from tests.conftest import refused
from tests.data.files import bad_data, write


def tone(rate: int = 8000, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * 0.1).astype(np.float32)


def packed(samples: np.ndarray, rate: int = 8000, form: str = "WAV", **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_reads_the_written_samples(form: str, tmp_path: Path) -> None:
    samples = np.round(noise(3000) * 32767) / 32768
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(packed(samples, form=form, subtype="PCM_16"))
    expected = torch.from_numpy(samples).float()
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            assert torch.equal(read_audio(source, 8000), expected)
        assert not file.closed
    assert audio_seconds(path) == 3000 / 8000


def test_192_khz_and_eight_channels(tmp_path: Path) -> None:
    rate = 192_000
    channels = np.stack([tone(rate, 0.5, 440) * gain for gain in range(8)], 1) / 7
    soundfile.write(tmp_path / "a.wav", channels, rate, subtype="PCM_24")
    expected = torch.from_numpy(tone(8000, 0.5)) / 2  # the mean of 0/7 .. 7/7
    assert (read_audio(tmp_path / "a.wav", 8000) - expected)[50:-50].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("rate", "wanted"), [(48000, 8000), (44100, 16000), (11025, 8000), (8000, 16000), (22051, 8000)]
)
def test_resampler_equals_torchaudio(rate: int, wanted: int) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    wave = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    ratio = 1 / Fraction(wanted, rate).limit_denominator(1000)  # 22051 : 8000 is approximated, the others are exact
    assert abs(ratio / (rate / wanted) - 1) < 1e-6
    expected = torchaudio.functional.resample(wave.double(), ratio.numerator, ratio.denominator)
    whole = torch.cat(list(resample([wave], rate, wanted)))
    assert whole.shape == expected.shape
    assert (whole - expected).abs().max() < 5e-6


@pytest.mark.parametrize("size", [1, 7, 500])
@pytest.mark.parametrize(("rate", "wanted"), [(48000, 8000), (44100, 16000), (8000, 16000), (8000, 8000)])
def test_chunked_resampling_equals_full(size: int, rate: int, wanted: int) -> None:
    wave = torch.randn(1203, generator=torch.Generator().manual_seed(1))
    whole, pieces = (torch.cat(list(resample(given, rate, wanted))) for given in ([wave], wave.split(size)))
    assert whole.shape == pieces.shape
    assert (whole - pieces).abs().max() < 1e-6


def test_streaming_equals_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([noise(30_000), noise(30_000, 1)], 1), 24_000)
    whole = read_audio(path, 8000)
    monkeypatch.setattr(reading, "BLOCK", 3001)
    pieces = list(stream_audio(path, 8000, block_seconds=0.3))
    assert list(map(len, pieces)) == [2400, 2400, 2400, 2400, 400]
    assert (torch.cat(pieces) - whole).abs().max() < 1e-6
    refused("block_seconds", next, stream_audio(path, 8000, block_seconds=0))


def test_streaming_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long recording no more than one block is read before the first chunk is returned."""
    read: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            read.append(len(content))
            return content

        def readinto(self, buffer: Any) -> int:
            read.append(count := super().readinto(buffer))
            return count

    monkeypatch.setattr(reading, "BLOCK", 8000)
    content = packed(noise(400_000))
    stream = stream_audio(Counting(content), 8000, block_seconds=1.0)
    assert len(next(stream)) == 8000
    assert 0 < sum(read) < len(content) / 8
    assert sum(len(piece) for piece in stream) == 392_000


def test_reads_a_segment(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(8000), 8000)
    whole = read_audio(path, 8000)
    for source in (path, (whole, 8000)):
        assert torch.equal(read_audio(source, 8000, start=0.25, seconds=0.5), whole[2000:6000])
    assert torch.equal(read_audio(path, 8000, start=0.9, seconds=0.5), whole[7200:])
    bad_data(r"expected at least one sample after 1\.5 s, found none", read_audio, path, 8000, start=1.5)


def test_in_memory_samples() -> None:
    wave = torch.from_numpy(noise(800))
    for given, tolerance in (
        (wave, 0.0),
        (wave.double().numpy(), 0.0),
        (torch.stack([wave / 2, 1.5 * wave]), 1e-7),
        ((wave * 32768).short(), 1 / 32768),
        ((wave * 128 + 128).byte(), 1 / 128),
    ):
        assert (read_audio((given, 8000), 8000) - wave).abs().max() <= tolerance
    assert audio_seconds((wave, 8000)) == 0.1


def test_silence_and_a_single_sample() -> None:
    assert torch.equal(read_audio(packed(np.zeros(100)), 8000), torch.zeros(100))
    one = read_audio(packed(np.full(1, 0.25)), 8000)
    assert (one.tolist(), LogMel()(one).shape) == ([0.25], (1, 40))
    assert read_audio(packed(np.full(1, 0.25)), 16000).shape == (2,)


FLAC = packed(noise(20_000), form="FLAC")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "expected audio, found an empty file"),
        (b"hello, this is a text\n", r"expected audio \(WAV.*found a file that begins with b'hello, this is a'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "begins with b'.x89PNG"),
        (packed(np.zeros(0)), "expected at least one sample, found none"),
        (packed(np.zeros(10), 500), "expected a sample rate from 1,000 to 1,000,000 Hz, found 500"),
        (packed(np.array([0, np.nan, np.inf]), subtype="FLOAT"), "finite samples, found 2 that are NaN or infinite"),
        (FLAC[: len(FLAC) // 2], "expected audio, found a damaged file"),
        (packed(np.zeros(10))[:30], "expected audio .*begins with b'RIFF"),
        ((torch.zeros(0), 8000), "expected at least one sample, found none"),
        ((torch.full((4,), torch.nan), 8000), "finite samples, found 4"),
        ((torch.zeros(9000, 2), 8000), r"samples \(n,\) or \(channels, n\), found an array of shape \(9000, 2\)"),
        ((torch.zeros(2, 2, 2), 8000), r"found an array of shape \(2, 2, 2\)"),
        ((torch.zeros(0, 9), 8000), "at least one channel, found none"),
        ((torch.zeros(9, dtype=torch.bool), 8000), "found torch.bool"),
        (("abc", 8000), "expected samples, an array"),
        ((torch.zeros(9), 0), "a sample rate from"),
        ((torch.zeros(9), "8000"), "a sample rate from .* found '8000'"),
        ((torch.zeros(9),), r"expected \(samples, rate\), found 1 values"),
        (17, "expected a path, bytes, an open binary file, or"),
        ("a\0b.wav", "expected a readable audio file"),
    ],
    ids=lambda given: "bytes" if isinstance(given, bytes) else None,  # encoded files differ between runs
)
def test_invalid_audio_raises(source: Any, message: str) -> None:
    for read in (read_audio, lambda *args: list(stream_audio(*args))):
        bad_data(f"(?s)^line 3: audio.*{message}", read, source, 8000, "line 3")


def test_errors_name_the_file(tmp_path: Path) -> None:
    text, empty = write(tmp_path / "text.wav", "no sound"), write(tmp_path / "empty.wav", "")
    for path, found in ((text, "begins with b'no sound'"), (empty, "empty file"), (tmp_path / "none.wav", "no such")):
        bad_data(f"audio .*{path.name}: .*{found}", read_audio, path, 8000)
        bad_data(f"audio .*{path.name}: .*{found}", audio_seconds, path)
    bad_data("expected an audio file, found a folder", read_audio, tmp_path, 8000)


def test_file_shorter_than_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: 900))
    bad_data("expected 900 samples, as in its header, found 800", read_audio, packed(noise(800)), 8000)


def fake_torchcodec(monkeypatch: pytest.MonkeyPatch, samples: torch.Tensor, rate: int) -> None:
    """A fake of torchcodec 0.17: segments by time, a RuntimeError if there are no samples."""

    class AudioDecoder:
        def __init__(self, source: Any) -> None:
            if not source.read(4).startswith(b"odd"):
                raise RuntimeError("no streams")
            self.metadata = types.SimpleNamespace(sample_rate=rate)

        def get_samples_played_in_range(self, start: float, stop: float) -> Any:
            begin, end = (int(seconds * rate + 0.5) if seconds < 1e6 else None for seconds in (start, stop))
            found = samples[:, begin:end]
            if not found.shape[1]:
                raise RuntimeError("no frames were decoded")
            return types.SimpleNamespace(data=found)

    module = types.ModuleType("torchcodec.decoders")
    module.AudioDecoder = AudioDecoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


def test_other_formats_by_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    bad_data("other formats need torchcodec", read_audio, b"odd format", 8000)
    left = torch.from_numpy(noise(8000 * 70))
    fake_torchcodec(monkeypatch, torch.stack([left, -left / 2]), 8000)
    assert torch.allclose(read_audio(b"odd format", 8000), left / 4)  # in three chunks
    assert torch.allclose(read_audio(b"odd format", 8000, start=29.5, seconds=2), left[236_000:252_000] / 4)
    assert audio_seconds(b"odd format") == 70
    bad_data(r"expected audio, found a file that begins with b'a text' \('no streams'\)", read_audio, b"a text", 8000)
    fake_torchcodec(monkeypatch, torch.zeros(1, 0), 8000)
    bad_data(r"expected audio, found .*no frames were decoded", read_audio, b"odd format", 8000)


@pytest.mark.parametrize(
    ("sizes", "more"),
    [((8000, 40, 256, 80), {}), ((16000, 80, 512, 160), {}), ((16000, 64, 400, 160), {"f_min": 60.0, "f_max": 7600.0})],
)
def test_features_equal_torchaudio(sizes: tuple[int, int, int, int], more: dict[str, float]) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    ours, wave = LogMel(*sizes, **more), torch.from_numpy(noise(9000))
    named = dict(zip(("sample_rate", "n_mels", "n_fft", "hop_length"), sizes, strict=True))
    reference = torchaudio.transforms.MelSpectrogram(**named, **more, pad_mode="constant")
    expected, found = torch.log(reference(wave) + ours.eps).T, ours(wave)
    assert found.shape == expected.shape == (ours.num_frames(9000), sizes[1])
    assert (found - expected).abs().max() < 1e-4
    assert ours.config() == LogMel(**ours.config()).config()


def test_frames_are_centered_and_a_tone_is_in_its_band() -> None:
    mel = LogMel()
    click = torch.zeros(8000)
    click[4000] = 1.0
    assert mel(click).sum(1).argmax() == 50
    frame = mel(torch.from_numpy(tone(hertz=1000.0)))[50]
    place = 2595 * np.log10(1 + 1000 / 700) / (2595 * np.log10(1 + 4000 / 700)) * 41 - 1  # mel band of 1000 Hz
    assert abs(int(frame.argmax()) - place) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mels": 0}, "n_mels: expected at least 1 and at most 4096, found 0"),
        ({"n_mels": 200}, "n_mels: .* of 200 bands contain no frequency of an n_fft of 256"),
        ({"f_max": 5000.0}, "f_min < f_max <= 4000"),
        ({"f_min": 900.0, "f_max": 800.0}, "f_min < f_max"),
        ({"hop": 0}, "hop: expected at least 1"),
        ({"sample_rate": 10}, "sample_rate: expected at least 1000"),
    ],
)
def test_invalid_feature_options(options: dict[str, Any], message: str) -> None:
    refused(message, LogMel, **options)
