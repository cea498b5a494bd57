"""Speech recognition: samples, and the formats they are read from, each with errors that name file and line.

Formats, by the path: a JSONL manifest as NeMo has it, a CSV or TSV with a header, a tree of LibriSpeech's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmattn.data.audio.reading import AudioSource, audio_seconds, read_audio
from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.readers import read_rows, read_text, report_missing

logger = logging.getLogger(__name__)
AUDIO_KEYS = ("audio", "audio_filepath")
KEYS = (*AUDIO_KEYS, "text", "duration", "offset", "speaker", "id", "words")
WORDS = "words: [[word, start, end], ...] in seconds"
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv")
Row = tuple[str, "ASRSample"]  # where it stands, and what stands there


@dataclass
class ASRSample:
    """A recording and what is said in it, as a person would describe it."""

    id: str
    audio: AudioSource  # a path, the file's bytes, or samples (n,) or (channels, n) and their rate
    text: str = ""
    duration: float = 0.0  # seconds; 0: not known yet
    speaker: str = ""
    words: list[tuple[str, float, float]] = field(default_factory=list)  # true borders in seconds, where known
    segment: tuple[float, float] | None = None  # seconds of the recording, from and up to; None: all of it

    def read(self, sample_rate: int, name: str | None = None) -> Tensor:
        """The samples (n,) at this rate; see ``read_audio``.

        Args:
            sample_rate: In Hz.
            name: What an error calls it; by default by its id.
        """
        name = f"item {self.id}" if name is None else name
        if self.segment is None:
            return read_audio(self.audio, sample_rate, name)
        begin, end = self.segment
        return read_audio(self.audio, sample_rate, name, begin, end - begin)

    def seconds(self, name: str | None = None) -> float:
        """Its duration, looked up where it is not known."""
        return self.duration or audio_seconds(self.audio, f"item {self.id}" if name is None else name)


def normalise(text: str) -> str:
    """The form in which texts are learnt and measured: lower case, letters, digits and apostrophes, single blanks.

    Unicode's NFKC first; what else there is, hyphens among it, parts words. Apostrophes stay where they touch a letter.

    >>> normalise("It\u2019s  twenty-one, 'Mr. Fox'?")
    "it's twenty one 'mr fox'"
    """
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    kept = "".join(sign if sign == "'" or unicodedata.category(sign)[0] in "LMN" else " " for sign in text)
    return " ".join(word for word in kept.split() if word.strip("'"))


_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u0060": "'", "\u00b4": "'"})


class ASRDataset(Dataset[ASRSample]):
    """Recordings with their texts from a path or from samples in memory, checked.

    Formats, by the path:

    - ``.jsonl``: ``{"audio_filepath": ..., "duration": ..., "text": ...}`` a line, as NeMo has it; ``audio`` means the
      same as ``audio_filepath``; ``offset`` (with ``duration``) names a part of the file; also ``speaker``, ``id``, and
      ``words``: ``[[word, start, end], ...]``;
    - ``.csv``, ``.tsv``: a header with ``audio`` (or ``audio_filepath``) and ``text``, and any of the others;
    - a folder: LibriSpeech's tree, ``*.trans.txt`` with an id and a text a line, the recordings beside it.

    Audio paths are relative to the file that names them. A text may be empty where nothing is said.

    Args:
        source: A path, or samples.
        on_error: ``raise`` ends at the first bad item. ``skip`` decodes every recording once, leaves the bad ones out
            and reports them in ``skipped`` and in the log; it never puts something else in their place.
        require_text: Whether an item without a text is an error, as in training and evaluation.

    Raises:
        DataError: Names the file and the line or item, what was expected and what was found.

    >>> len(ASRDataset([ASRSample("1", (torch.zeros(8000), 8000), "yes")]))
    1
    """

    def __init__(
        self, source: str | Path | Iterable[ASRSample], on_error: str = "raise", require_text: bool = True
    ) -> None:
        self.problems = Problems(on_error)
        found: Iterable[Row]
        if isinstance(source, (str, Path)):
            self.name = str(source)
            found = read_recordings(source, self.problems, require_text)
        else:
            self.name = "samples"
            found = ((f"sample {number} (id {sample.id!r})", sample) for number, sample in enumerate(source))
        self._digest: str | None = None
        self._keep(list(self._check(found)))

    def _keep(self, checked: Sequence[Row]) -> None:
        self.places, self.samples = [where for where, _ in checked], [sample for _, sample in checked]
        if self.problems.items:
            logger.warning("%s", self.problems.summary(self.name, len(checked)))
        if not self.samples:
            left = f"none ({len(self.skipped)} left out as bad)" if self.skipped else "none"
            raise DataError(self.name, "at least one recording", left)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """What was left out: item and reason."""
        return self.problems.items

    def _check(self, found: Iterable[Row]) -> Iterator[Row]:
        seen: dict[str, str] = {}
        for where, sample in found:
            try:
                self._check_one(where, sample)
                if sample.id in seen:
                    raise DataError(where, "an id of its own", f"{sample.id!r}, which {seen[sample.id]} has already")
                if not sample.duration:
                    sample = dataclasses.replace(sample, duration=sample.seconds(where))
                if self.problems.on_error == "skip":
                    sample.read(8_000, where)
            except DataError as error:
                if self.problems.on_error == "raise":
                    raise
                self.problems.items.append((where, str(error).removeprefix(f"{where}: ")))
                continue
            seen[sample.id] = where
            yield where, sample

    @staticmethod
    def _check_one(where: str, sample: ASRSample) -> None:
        if sample.audio is None or (isinstance(sample.audio, (str, bytes)) and not sample.audio):
            raise DataError(where, "a recording", "none")
        if not isinstance(sample.text, str) or is_broken(sample.text):
            raise DataError(where, "a text", shorten(sample.text))
        if isinstance(sample.audio, (str, Path)) and not _is_file(sample.audio):
            kind = "a folder" if os.path.isdir(sample.audio) else "no such file"
            raise DataError(where, "an audio file", f"{kind}: {sample.audio}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ASRSample:
        return self.samples[index]

    def leave_out_longer(self, seconds: float) -> int:
        """Leaves out what is longer than that, and reports how much it is.

        Returns:
            How many clips were left out.

        Raises:
            DataError: Nothing is left.
        """
        kept = [pair for pair in zip(self.places, self.samples, strict=True) if pair[1].duration <= seconds]
        count = len(self) - len(kept)
        if count:
            hours = sum(s.duration for s in self.samples if s.duration > seconds) / 3600
            logger.warning("%s: left out %d clips (%.2f hours) longer than %s s", self.name, count, hours, seconds)
            if not kept:
                shortest = min(sample.duration for sample in self.samples)
                raise DataError(self.name, f"clips of at most {seconds} s", f"none; the shortest has {shortest:.1f} s")
            self._digest = None
            self.places, self.samples = [where for where, _ in kept], [sample for _, sample in kept]
        return count

    def preload(self, sample_rate: int, max_bytes: int = 1 << 30) -> bool:
        """Decodes every recording once into memory, at the model's rate, so that no batch waits for a file.

        Args:
            sample_rate: In Hz.
            max_bytes: The most memory to take, of four bytes a sample: by default 9 hours at 8 kHz.

        Returns:
            Whether it was done; False when ``max_bytes`` is too little (nothing is changed then).

        Raises:
            DataError: A recording cannot be read; names its line.
        """
        if sum(sample.duration for sample in self.samples) * sample_rate * 4 > max_bytes:
            return False
        self.fingerprint()  # of the files, not of what becomes of them
        loaded = []
        for where, sample in zip(self.places, self.samples, strict=True):
            wave = sample.read(sample_rate, where)
            loaded.append(
                dataclasses.replace(sample, audio=(wave, sample_rate), duration=len(wave) / sample_rate, segment=None)
            )
        self.samples = loaded
        return True

    def fingerprint(self) -> str:
        """SHA-256 over every text and recording (a file counts by name and size)."""
        if self._digest is None:
            digest = hashlib.sha256()
            for sample in self.samples:
                digest.update(json.dumps([sample.id, sample.text, sample.segment]).encode())
                digest.update(_content(sample.audio))
            self._digest = digest.hexdigest()
        return self._digest


def _content(audio: AudioSource) -> bytes:
    if isinstance(audio, (str, Path)):
        path = Path(audio)
        return f"{path.name} {path.stat().st_size if path.exists() else -1}".encode()
    if isinstance(audio, tuple):
        samples = torch.as_tensor(audio[0]).detach().cpu().contiguous()
        return f"{audio[1]} {tuple(samples.shape)}".encode() + samples.numpy().tobytes()
    return audio if isinstance(audio, bytes) else repr(getattr(audio, "name", "")).encode()


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


def read_recordings(path: str | Path, problems: Problems, require_text: bool = True) -> Iterator[Row]:
    """The samples of a path in any of the formats; see ``ASRDataset``."""
    path = Path(path)
    if path.is_dir():
        return _librispeech(path, problems)
    if path.suffix.lower() not in TABLES:
        raise DataError(str(path), "a manifest .jsonl, a .csv or .tsv, or LibriSpeech's folder", shorten(path.name))
    return _table(path, problems, require_text)


def _table(path: Path, problems: Problems, require_text: bool) -> Iterator[Row]:
    taken: set[str] = set()
    for where, line, row in read_rows(path, problems):
        missing = [] if row.keys() & set(AUDIO_KEYS) else ["audio"]
        missing += ["text"] if require_text and "text" not in row else []
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        try:
            sample = _row(row, path, line, where, require_text)
        except DataError as error:
            if problems.on_error == "raise":
                raise
            problems.items.append((where, str(error).removeprefix(f"{where}: ")))
            continue
        if row.get("id") in (None, "") and sample.id in taken:
            sample.id = f"{sample.id} line {line}"  # the same file again; only an id that is given must be its own
        taken.add(sample.id)
        yield where, sample


def _row(row: Mapping[str, Any], path: Path, line: int, where: str, require_text: bool) -> ASRSample:
    key = next((key for key in AUDIO_KEYS if row.get(key)), None)
    if key is None:
        raise DataError(where, "audio: a path", "nothing")
    if require_text and row.get("text") is None:
        raise DataError(where, "text: a text", "nothing")
    audio, text = row[key], row.get("text")
    if not isinstance(audio, str):
        raise DataError(where, f"{key}: a path", shorten(audio))
    if not isinstance(text, str | None):
        raise DataError(where, "text: a text", shorten(text))
    duration, offset = (_seconds(row, name, where) for name in ("duration", "offset"))
    if offset is not None and not duration:
        raise DataError(where, "a duration beside the offset", shorten(row.get("duration")))
    return ASRSample(
        id=(audio if offset is None else f"{audio}@{offset:g}") if row.get("id") in (None, "") else str(row["id"]),
        audio=str(path.parent / audio),
        text=text or "",
        duration=duration or 0.0,
        speaker=str(row.get("speaker") or ""),
        words=_words(row.get("words"), where),
        segment=None if offset is None else (offset, offset + (duration or 0.0)),
    )


def _seconds(row: Mapping[str, Any], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(where, f"{key}: seconds", shorten(value))
    return seconds


def _words(given: Any, where: str) -> list[tuple[str, float, float]]:
    if isinstance(given, str) and given.strip():  # a CSV's cell
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            raise DataError(where, WORDS, shorten(given)) from None
    if given in (None, "", []):
        return []
    try:
        words = [(str(word), float(start), float(end)) for word, start, end in given]
        if all(0 <= start <= end < math.inf for _, start, end in words):
            return words
    except (TypeError, ValueError):
        pass
    raise DataError(where, WORDS, shorten(given))


def _librispeech(folder: Path, problems: Problems) -> Iterator[Row]:
    files = sorted(folder.rglob("*.trans.txt"))
    if not files:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise DataError(str(folder), "LibriSpeech's *.trans.txt somewhere in it", inside or "an empty folder")
    for file in files:
        beside = {p.stem: p for p in file.parent.iterdir() if p.suffix.lower() in (".flac", ".wav")}
        for line, content in enumerate(read_text(file).split("\n"), start=1):
            if not content.strip():
                continue
            where = f"{file}, line {line}"
            name, _, text = content.strip().partition(" ")
            if name not in beside:
                problems.add(where, f"{name}.flac or {name}.wav beside it", "no such file")
                continue
            yield where, ASRSample(name, str(beside[name]), text.strip(), speaker=name.partition("-")[0])
