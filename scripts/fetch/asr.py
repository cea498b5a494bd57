"""The public speech set of ``scripts/fetch_data.py``: spoken digits."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from scripts.fetch.archive import Archive, FetchError, Source

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TAKES = {"test": range(5), "val": range(5, 10), "train": range(10, 50)}  # the test's are the set's own


def _convert_fsdd(archive: Archive, folder: Path) -> None:
    """WAV to FLAC, samples unchanged; the digits as words; the split by the takes' numbers."""
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


def _samples(folder: Path) -> str:
    """SHA-256 over the names and samples of what is no test: the same whatever version packed them."""
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


FSDD = Source(
    name="fsdd",
    repository="Jakobovski/free-spoken-digit-dataset",
    commit="26eb9aaf76e81b692f806f9140c2d2777410d7a1",
    licence="CC BY-SA 4.0",
    megabytes=16,
    convert=_convert_fsdd,
    sha256={
        "train.jsonl": "13ae0bd28e142258c32272801fed470dd3b82c70ad0c5981c5717c80417146bb",
        "val.jsonl": "4d4cc6db4690ad25696b353535162563b0a4f38c30f8b0e7505addf496def9fd",
        "audio/": "4fa01f24d82a3cce8c47bb00e5df6be879eedf0c59456646924b4b9be21bf0e3",
    },
    digests={"audio/": _samples},
)
