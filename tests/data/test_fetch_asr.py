"""Spoken digits: the conversion, its errors, and that what was measured on is what the table says."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmattn.tasks.asr.data import ASRDataset
from scripts.fetch.archive import FetchError, fetch, sources
from tests.conftest import refused
from tests.data.fetching import get, measured_on, nothing_left


def wav(samples: np.ndarray) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 8000, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def digits(takes: list[int]) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        f"recordings/{digit}_{speaker}_{take}.wav": wav(rng.integers(-999, 999, 80 + take).astype(np.int16))
        for digit in (3, 7)
        for speaker in ("theo", "anna")
        for take in takes
    }


def test_conversion(tmp_path: Path) -> None:
    files = digits([0, 7, 12])
    folder = get("fsdd", files | {"README.md": b"x", "recordings/3_theo_60.wav": wav(np.zeros(9))}, tmp_path)
    for split, take, mark in (("test", 0, "test_"), ("val", 7, ""), ("train", 12, "")):
        found = ASRDataset(folder / f"{split}.jsonl")
        names = [f"audio/{mark}{d}_{s}_{take}.flac" for d in (3, 7) for s in ("anna", "theo")]
        assert [sample.id for sample in found.samples] == names
        assert [(s.text, s.speaker) for s in found.samples][1:3] == [("three", "theo"), ("seven", "anna")]
        assert found[0].duration == round((80 + take) / 8000, 4)
    kept = soundfile.read(folder / "audio" / "7_theo_12.flac", dtype="int16")[0]
    assert np.array_equal(kept, soundfile.read(io.BytesIO(files["recordings/7_theo_12.wav"]), dtype="int16")[0])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (digits([0, 12]), "no recordings of val"),
        (digits([0, 7, 12]) | {"recordings/3_theo_7.wav": b"text"}, "3_theo_7.wav is no sound"),
    ],
)
def test_another_content_than_expected(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    refused(message, get, "fsdd", files, tmp_path / "out", error=FetchError)
    assert nothing_left(tmp_path / "out")


def test_changed_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"train\.jsonl has sha256 .*audio/ has sha256"):
        get("fsdd", digits([0, 7, 12]), tmp_path / "out", checked=True)
    assert nothing_left(tmp_path / "out")


@pytest.mark.slow
def test_what_was_measured_on_is_what_the_conversion_gives(real_data: Path, tmp_path: Path) -> None:
    """The source is rebuilt from the data of the measurements; the test part, kept aside, from the val part."""
    given, files = measured_on(real_data, "fsdd"), {}
    for path in sorted((given / "audio").glob("*.flac")):
        content = wav(soundfile.read(path, dtype="int16")[0])
        files[f"recordings/{path.stem}.wav"] = content
        files[re.sub(r"_5$", "_0", f"recordings/{path.stem}") + ".wav"] = content
    folder = get("fsdd", files, tmp_path, checked=True)
    for name in ("train.jsonl", "val.jsonl"):
        assert (folder / name).read_bytes() == (given / name).read_bytes()
    assert fetch(sources()["fsdd"], real_data, "http://127.0.0.1:9") == given  # recognised where it lies
