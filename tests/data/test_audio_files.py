"""Audio files that were cut short, streamed or joined: all samples are read, or an error says what is missing."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmattn.data.audio.reading import audio_seconds, read_audio, stream_audio
from tests.data.files import bad_data, write

RATE = 16_000
TAG = b"ID3\4\0\0\0\0\2\0" + bytes(range(256))
GARBAGE = np.random.default_rng(0).bytes(5000)


def sound(count: int = 16_000, seed: int = 0) -> np.ndarray:
    """Noise, quiet in its first half: the first frames of a variable bit rate are smaller than the others."""
    noise = np.random.default_rng(seed).standard_normal(count) * np.linspace(0, 0.2, count) ** 2
    return noise.astype(np.float32)


def packed(form: str, samples: np.ndarray, rate: int = RATE, **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=form, **options)
    return stream.getvalue()


def without_index(content: bytes, rate: int = RATE) -> bytes:
    """An MP3 without its first frame, the index, as streamed recorders write it."""
    assert b"Xing" in content[:60]
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # of MPEG-2
    return content[72_000 * rates[content[2] >> 4] // rate + (content[2] >> 1 & 1) :]


def length(content: Any, rate: int = RATE) -> int:
    """The number of samples, on which all ways of reading must agree."""
    wave = read_audio(content, rate)
    assert audio_seconds(content) == pytest.approx(len(wave) / rate, abs=1e-4)
    assert torch.equal(torch.cat(list(stream_audio(content, rate, block_seconds=0.7))), wave)
    start = len(wave) * 2 // 3
    part = read_audio(content, rate, start=start / rate, seconds=0.1)
    torch.testing.assert_close(part, wave[start : start + rate // 10], atol=1e-6, rtol=0)
    return len(wave)


LONG, SHORT = packed("MP3", sound(288_000)), packed("MP3", sound(80_000, 1))
BARE, BARE_SHORT = without_index(LONG), without_index(SHORT)
FRAMES = 502 * 576 - 529  # of the encoded sound, less the decoder's delay
SHORT_FRAMES = 141 * 576 - 529


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (LONG, 288_000),
        (BARE, FRAMES),
        (LONG + SHORT, 368_000),
        (LONG + BARE_SHORT, 502 * 576 + 141 * 576 - 529),  # the first index counts half of the frames
        (BARE + SHORT, FRAMES + 80_000),
        (BARE + BARE_SHORT, 502 * 576 + 141 * 576 - 529),
        (TAG + LONG + TAG + SHORT + b"TAG".ljust(128, b"\0"), 368_000),
        (LONG + GARBAGE, 288_000),
        (BARE + GARBAGE, FRAMES),
        (BARE + GARBAGE + BARE_SHORT, FRAMES + SHORT_FRAMES),
        (TAG + TAG + BARE, FRAMES),
        (TAG + bytes(5000) + BARE, FRAMES),
        (BARE[:-5], FRAMES - 576),  # nothing says that the last frame was meant to be whole
    ],
    ids=range(13),
)
def test_mp3_is_read_to_its_end(content: bytes, count: int, tmp_path: Path) -> None:
    assert length(content) == length(write(tmp_path / "a.mp3", content)) == count


def test_joined_files_are_read_one_after_the_other() -> None:
    for form, options in (("MP3", {}), ("OGG", {"subtype": "VORBIS"}), ("OGG", {"subtype": "OPUS"})):
        one, two = (packed(form, sound(30_000, seed), **options) for seed in (0, 1))
        assert torch.equal(read_audio(one + two, RATE), torch.cat([read_audio(one, RATE), read_audio(two, RATE)]))
        assert length(one + two) == 60_000
    other = packed("MP3", sound(), 24_000)
    bad_data(
        "expected one sample rate, found files joined that have 16,000 and 24,000 Hz", read_audio, SHORT + other, RATE
    )


def test_mp3_in_a_wav() -> None:
    settings = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 288, 1, 1393)
    body = b"WAVEfmt " + struct.pack("<I", len(settings)) + settings + b"data" + struct.pack("<I", len(BARE)) + BARE
    assert length(b"RIFF" + struct.pack("<I", len(body)) + body) == FRAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LONG[: len(LONG) // 2], r"expected 502 MPEG frames, as in its header, found \d+ \(a truncated file\?\)"),
        (LONG[:-5], "expected 502 MPEG frames, as in its header, found 501"),
        (LONG + SHORT[:-900], "expected 141 MPEG frames"),
        (LONG[:20_000] + bytes(3000) + LONG[23_000:], "expected 502 MPEG frames"),
        (packed("OGG", sound(60_000))[:-900], "expected whole Ogg pages, found a page that is cut short"),
    ],
    ids=range(5),
)
def test_truncated_frames(content: bytes, message: str) -> None:
    for read in (lambda given: read_audio(given, RATE), audio_seconds):
        bad_data(message, read, content)


CONTAINERS = [  # with the place of the size, from its chunk's name, and its format
    ("WAV", "PCM_16", b"data", 4, "<I"),
    ("WAV", "MS_ADPCM", b"data", 4, "<I"),
    ("WAVEX", "PCM_24", b"data", 4, "<I"),
    ("RF64", "PCM_16", b"ds64", 16, "<Q"),
    ("W64", "PCM_16", b"data\xf3", 16, "<Q"),
    ("AIFF", "PCM_16", b"SSND", 4, ">I"),
    ("AIFF", "FLOAT", b"SSND", 4, ">I"),
    ("AU", "ULAW", b".snd", 8, ">I"),
    ("CAF", "PCM_16", b"data", 4, ">q"),
    ("SVX", "PCM_16", b"BODY", 4, ">I"),
    ("NIST", "PCM_16", None, 0, ""),
    ("VOC", "PCM_16", None, 0, ""),
    ("AVR", "PCM_16", None, 0, ""),
    ("MPC2K", "PCM_16", None, 0, ""),
    ("WVE", "ALAW", None, 0, ""),
    ("SDS", "PCM_16", None, 0, ""),
]


@pytest.mark.parametrize(("form", "subtype", "chunk", "place", "kind"), CONTAINERS)
def test_length_of_the_header(
    form: str, subtype: str, chunk: bytes | None, place: int, kind: str, tmp_path: Path
) -> None:
    rate = 8000 if form == "WVE" else RATE
    whole = packed(form, sound(16_001), rate, subtype=subtype)
    count = length(whole, rate)
    assert form == "VOC" or length(whole + b"junkjunk" * 3, rate) == count, "trailing bytes are no samples"
    for cut in (whole[: len(whole) // 2], whole[:-4]):
        for source in (cut, io.BytesIO(cut), write(tmp_path / "a", cut)):
            bad_data(
                r"bytes of samples, as in its header, found [\d,]+ \(a truncated file\?\)", read_audio, source, rate
            )
            bad_data("a truncated file", audio_seconds, source)
    if chunk is not None:
        field = whole.index(chunk) + place
        width = struct.calcsize(kind)
        for size in (0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, (1 << 8 * width) - 1):  # of streaming writers
            value = size.to_bytes(width, "little" if kind[0] == "<" else "big")
            assert length(whole[:field] + value + whole[field + width :], rate) >= count


def test_padding_and_other_chunks() -> None:
    odd = packed("WAV", sound(15_999), subtype="PCM_U8")
    assert length(odd) == length(odd[:-1]) == 15_999  # without the byte of padding
    assert length(odd + b"LIST" + struct.pack("<I", 90) + bytes(20)) == 15_999
    place = odd.index(b"data")
    assert length(odd[:place] + b"JUNK" + struct.pack("<I", 7) + bytes(8) + odd[place:]) == 15_999
    empty = packed("WAV", sound(0)) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    bad_data("expected at least one sample, found none", read_audio, empty, RATE)


def test_flac_of_unknown_length() -> None:
    content = packed("FLAC", sound())
    rate_and_bits = int.from_bytes(content[18:26], "big") >> 36 << 36  # without the number of samples
    assert length(content[:18] + rate_and_bits.to_bytes(8, "big") + content[26:]) == 16_000


def test_formats_without_a_check_are_refused() -> None:
    for form in ("MAT4", "MAT5", "XI"):
        subtype = "DPCM_16" if form == "XI" else "PCM_16"
        bad_data(f"{form}: a format without a check", read_audio, packed(form, sound(), subtype=subtype), RATE)
