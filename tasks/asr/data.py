"""Speech recognition data: samples, file formats and batches.

Formats, by path; audio paths are relative to the file that contains them:

- ``.jsonl``, also named ``.json``: one ``{"audio_filepath": ..., "duration": ..., "text": ...}`` per line, as in NeMo;
  ``audio`` is a synonym of ``audio_filepath``; ``offset`` (with ``duration``) selects a part of the file; optional are
  ``speaker``, ``id``, and ``words``: ``[[word, start, end], ...]``;
- ``.csv``, ``.tsv``: a header with ``audio`` (or ``audio_filepath``) and ``text``, and any of the others;
- a folder: LibriSpeech's tree, ``*.trans.txt`` with an id and a text per line, the recordings beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from mmattn.data.audio.reading import AudioSource, audio_seconds, read_audio
from mmattn.data.batching import Batch
from mmattn.data.dataset import Row, SampleDataset
from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.files import files_below
from mmattn.data.names import find_file, nfc
from mmattn.data.readers import TABLES, parse_json, read_rows, read_text, report_missing
from mmattn.data.table import Table, is_media

logger = logging.getLogger(__name__)
AUDIO_KEYS = ("audio", "audio_filepath")
KEYS = (*AUDIO_KEYS, "text", "duration", "offset", "speaker", "id", "words")
WORDS = "words: [[word, start, end], ...] in seconds"
TRANSCRIPTS = ".trans.txt"


@dataclass
class ASRSample:
    """A recording and its text."""

    id: str
    audio: AudioSource  # a path, the file's bytes, an open file, or samples (n,) or (channels, n) and their rate
    text: str = ""  # empty for a recording without speech
    duration: float = 0.0  # seconds; 0: unknown
    speaker: str = ""
    words: list[tuple[str, float, float]] = field(default_factory=list)  # reference borders in seconds, if known
    segment: tuple[float, float] | None = None  # start and end in seconds; None: the whole recording

    def read(self, sample_rate: int, name: str | None = None) -> Tensor:
        """Read the samples (n,) at a rate in Hz; errors name the sample by `name`, or by its id. See ``read_audio``."""
        begin, end = (0.0, None) if self.segment is None else self.segment
        return read_audio(
            self.audio, sample_rate, name or f"item {self.id}", begin, None if end is None else end - begin
        )

    def seconds(self, name: str | None = None) -> float:
        """Its duration, read from the file if unknown."""
        return self.duration or audio_seconds(self.audio, name or f"item {self.id}")


@dataclass
class ASRBatch(Batch):
    """Tensors for the model, and references for the metric."""

    features: Tensor  # (B, T, M) float: log-mel frames, normalized; or (B, n), samples
    feature_mask: Tensor  # (B, T) bool, True = of the recording
    target_ids: Tensor  # (B, L) long: the decoder's input, the start token first
    labels: Tensor  # (B, L) long: the target at each position, the end token last
    label_mask: Tensor  # (B, L) bool, True = counts
    ids: list[str]
    references: list[str]  # normalized texts
    is_repeat: bool = False  # repeated to give every rank the same number of batches; excluded from metrics


def normalize_text(text: str) -> str:
    """Text normalization for training and scoring: lower case, letters, digits and apostrophes, single spaces.

    Applies Unicode's NFKC first; all other characters, such as hyphens, separate words. Apostrophes remain next to
    letters. Invisible characters within words, such as soft hyphens and zero-width joiners, are removed.

    >>> normalize_text("It\u2019s  twenty-one, 'Mr. Fox'?")
    "it's twenty one 'mr fox'"
    """
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_APOSTROPHES).lower()
    kept = "".join(
        character if character == "'" or unicodedata.category(character)[0] in "LMN" else " " for character in text
    )
    return " ".join(word for word in kept.split() if word.strip("'"))


# Soft hyphens, zero-width joiners and non-joiners, marks of direction and of variants; the zero-width space is a space.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u0060": "'", "\u00b4": "'"})


class ASRDataset(SampleDataset[ASRSample]):
    """Recordings with their texts, from a path in one of the formats or from samples in memory, checked.

    >>> import torch
    >>> len(ASRDataset([ASRSample("1", (torch.zeros(8000), 8000), "yes")]))
    1
    """

    item: ClassVar[str] = "recording"
    columns = ("audio", "text")

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[Row[ASRSample]]:
        return read_recordings(path, problems, self.require_labels)

    def check(self, sample: ASRSample) -> tuple[str, str] | None:
        if sample.audio is None or (isinstance(sample.audio, (str, bytes)) and not sample.audio):
            return "a recording", "none"
        if not isinstance(sample.text, str) or is_broken(sample.text):
            return "a text", shorten(sample.text)
        if isinstance(sample.audio, (str, Path)) and not os.path.isfile(sample.audio):
            return "an audio file", f"{'a folder' if os.path.isdir(sample.audio) else 'no such file'}: {sample.audio}"
        return None

    def decode(self, sample: ASRSample, where: str) -> None:
        sample.read(8_000, where)

    def _checked(self, found: Iterable[Row[ASRSample]]) -> Iterator[Row[ASRSample]]:
        """The samples with their durations, read from the files if unknown."""
        for where, sample in super()._checked(found):
            try:
                duration = sample.seconds(where)
            except DataError as error:
                self.problems.take(where, error)
            else:
                yield where, sample if sample.duration else dataclasses.replace(sample, duration=duration)

    def identity(self, sample: ASRSample) -> tuple[list[Any], list[Any]]:
        audio = str(getattr(sample.audio, "name", "")) if hasattr(sample.audio, "read") else sample.audio
        return [sample.id, sample.text, sample.segment], [audio]

    def inputs(self, sample: ASRSample) -> tuple[list[Any], list[Any]]:
        return [sample.segment], self.identity(sample)[1]

    def facts(self, sample: ASRSample, files: bool = True) -> dict[str, Any]:
        found = {"seconds": round(sample.duration, 2), "words": len(normalize_text(sample.text).split())}
        return found | ({"speaker": sample.speaker} if sample.speaker else {})

    def leave_out_longer(self, seconds: float) -> Self:
        """The data set without samples longer than that; logs how many were excluded.

        Raises:
            DataError: No sample remains.
        """
        kept = self.filter(lambda sample: sample.duration <= seconds)
        longer = [sample.duration for sample in self.samples if sample.duration > seconds]
        if longer:
            count = (len(longer), sum(longer) / 3600)
            logger.warning("%s: excluded %d clips (%.2f hours) longer than %s s", self.name, *count, seconds)
        if not len(kept):
            shortest = min(sample.duration for sample in self.samples)
            raise DataError(self.name, f"clips of at most {seconds} s", f"none; the shortest has {shortest:.1f} s")
        return kept

    def preload(self, sample_rate: int, max_bytes: int = 1 << 30) -> bool:
        """Decode all recordings into memory at a sample rate in Hz, so that batches read no files.

        Returns:
            Whether they were preloaded: False if they need more than max_bytes at four bytes a sample (by default, 9
            hours at 8 kHz fit).

        Raises:
            DataError: A recording cannot be read; names its line.
        """

        def load(sample: ASRSample, where: str) -> ASRSample:
            wave = sample.read(sample_rate, where)
            seconds = len(wave) / sample_rate
            return dataclasses.replace(sample, audio=(wave, sample_rate), duration=seconds, segment=None)

        fits = sum(sample.duration for sample in self.samples) * sample_rate * 4 <= max_bytes
        if fits:
            self.preloaded(load)
        return fits


def read_recordings(
    path: str | Path | Table, problems: Problems, require_text: bool = True
) -> Iterator[Row[ASRSample]]:
    """Read the samples of a path in any of the formats, or of a table in memory, each with its location in the file.

    Raises:
        DataError: The path as a whole cannot be read. `problems` collects invalid lines, such as those without a
            required text.
    """
    if isinstance(path, Table):
        return _table(path, problems, require_text)
    path = Path(path)
    if path.is_dir():
        return _librispeech(path, problems)
    if path.suffix.lower() not in TABLES:
        raise DataError(str(path), "a manifest .jsonl, a .csv or .tsv, or LibriSpeech's folder", shorten(path.name))
    return _table(path, problems, require_text)


def _table(path: Path | Table, problems: Problems, require_text: bool) -> Iterator[Row[ASRSample]]:
    taken: set[str] = set()
    for where, line, row in read_rows(path, problems):
        missing = [] if row.keys() & set(AUDIO_KEYS) else ["audio"]
        missing += ["text"] if require_text and "text" not in row else []
        if missing:
            report_missing(path, where, row, missing, KEYS, problems)
            continue
        try:
            sample = _row(row, path, where, line, require_text)
        except DataError as error:
            problems.take(where, error)
            continue
        if row.get("id") in (None, "") and sample.id in taken:
            sample.id = f"{sample.id} line {line}"  # the same file again; only explicit ids must be unique
        taken.add(sample.id)
        yield where, sample


def _row(row: Mapping[str, Any], path: Path | Table, where: str, line: int, require_text: bool) -> ASRSample:
    key = next((key for key in AUDIO_KEYS if is_media(row.get(key)) or row.get(key)), "audio")
    audio, text = row.get(key), row.get("text")
    sound = audio if isinstance(path, Table) and is_media(audio) else None
    audio = str(line) if sound is not None else str(audio) if isinstance(audio, Path) else audio or None
    for name, value, optional in ((f"{key}: a path", audio, False), ("text: a text", text, not require_text)):
        if not isinstance(value, str) and not (optional and value is None):
            raise DataError(where, name, "nothing" if value is None else shorten(value))
    duration, offset = (_seconds(row, name, where) for name in ("duration", "offset"))
    if offset is not None and not duration:
        raise DataError(where, "a duration beside the offset", shorten(row.get("duration")))
    return ASRSample(
        id=(str(audio) if offset is None else f"{audio}@{offset:g}") if row.get("id") in (None, "") else str(row["id"]),
        audio=str(find_file(path.parent / str(audio))) if sound is None else sound,
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
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 <= (seconds := float(value)) < math.inf:
            return seconds
    raise DataError(where, f"{key}: seconds", shorten(value))


def _words(given: Any, where: str) -> list[tuple[str, float, float]]:
    with suppress(TypeError, ValueError):
        if isinstance(given, str) and given.strip():  # a CSV's cell
            given = parse_json(given)
        rows = [] if given in (None, "") else given
        words = [(str(word), float(start), float(end)) for word, start, end in rows]
        if all(0 <= start <= end < math.inf for _, start, end in words):
            return words
    raise DataError(where, WORDS, shorten(given))


def _librispeech(folder: Path, problems: Problems) -> Iterator[Row[ASRSample]]:
    files = [file for _, file in files_below(folder, (TRANSCRIPTS,))]
    if not files:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise DataError(str(folder), f"LibriSpeech's *{TRANSCRIPTS} somewhere in it", inside or "an empty folder")
    for file in files:
        beside = {nfc(p.stem): p for p in file.parent.iterdir() if p.suffix.lower() in (".flac", ".wav")}
        for line, content in enumerate(read_text(file).split("\n"), start=1):
            if not content.strip():
                continue
            where = f"{file}, line {line}"
            name, _, text = content.strip().partition(" ")
            if nfc(name) in beside:
                yield where, ASRSample(name, str(beside[nfc(name)]), text.strip(), speaker=name.partition("-")[0])
            else:
                problems.add(where, f"{name}.flac or {name}.wav beside it", "no such file")
