"""The public speech set of ``scripts/fetch_data.py``: spoken digits."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from scripts.fetch.archive import Archive, FetchError

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TAKES = {"test": range(5), "val": range(5, 10), "train": range(10, 50)}  # the test split is the official one


def convert_fsdd(archive: Archive, folder: Path) -> None:
    """Convert WAV to FLAC without changing samples, write digits as words, and split by the numbers of the takes."""
    import soundfile

    (folder / "audio").mkdir()
    rows: dict[str, list[tuple[str, dict[str, object]]]] = {split: [] for split in _TAKES}
    for path, content in archive.files(r"recordings/\d_[a-z]+_\d+\.wav"):
        digit, speaker, take = Path(path).stem.split("_")
        split = next((name for name, takes in _TAKES.items() if int(take) in takes), None)
        if split is None:
            continue
        try:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        except soundfile.SoundFileError as error:
            raise FetchError(f"fsdd: {path} is no sound ({error})") from None
        name = f"audio/{'test_' if split == 'test' else ''}{Path(path).stem}.flac"
        soundfile.write(folder / name, samples, rate, subtype="PCM_16")
        row: dict[str, object] = {"audio": name, "audio_filepath": name, "duration": round(len(samples) / rate, 4)}
        rows[split].append((name, row | {"text": _DIGITS[int(digit)], "speaker": speaker}))
    for split, found in rows.items():
        if not found:
            raise FetchError(f"fsdd: the archive has no recordings of {split}")
        lines = [json.dumps(row) + "\n" for _, row in sorted(found, key=lambda pair: pair[0])]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def samples_digest(folder: Path) -> str:
    """SHA-256 over the names and samples of train and val, independent of the version of the FLAC encoder."""
    import soundfile

    found = hashlib.sha256()
    for path in sorted(folder.glob("*.flac")):
        if not path.name.startswith("test_"):
            try:
                samples, rate = soundfile.read(path, dtype="int16")
            except soundfile.SoundFileError as error:
                raise ValueError(f"{path.name} is no sound ({error})") from None
            found.update(f"{path.name} {rate} ".encode() + samples.tobytes())
    return found.hexdigest()
