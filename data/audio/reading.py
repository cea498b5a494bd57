"""Audio reading and resampling; front ends are in ``mel.py``.

Reading needs soundfile and torch alone; formats that soundfile cannot read are read by torchcodec if it is installed.
Audio is read, mixed to one channel and resampled in blocks, so half an hour of eight channels at 192 kHz takes no more
memory than the resulting mono samples.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmattn.data.audio.containers import sections
from mmattn.data.audio.mel import MAX_RATE, MIN_RATE
from mmattn.data.errors import DataError, shorten
from mmattn.data.names import find_file

AudioSource = str | Path | bytes | BinaryIO | tuple[Any, int]  # tuple: samples (n,) or (channels, n), and their rate
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".m4a", ".mp4", ".aac", ".webm")

BLOCK = 1 << 20  # samples per read, over all channels
UNKNOWN = 1 << 62  # soundfile's number of frames of a streamed file without a length
MP3_LEAD = 16 * 1152  # samples decoded before those wanted: a frame may refer to bits of several earlier ones
UNCHECKED = ("MAT4", "MAT5", "XI")  # formats of soundfile in which a file that was cut short would go unnoticed
WIDTH, ROLLOFF = 6, 0.99  # resampling filter: zero crossings per side, and cutoff as a fraction of Nyquist


def resample(pieces: Iterable[Tensor], source_rate: int, target_rate: int) -> Iterator[Tensor]:
    """Resamples a stream by a Hann-windowed sinc filter; the result does not depend on the lengths of the pieces.

    ``y(t) = sum_i x(i) g(t - i)``, ``g(t) = sinc(2 f t) cos^2(pi f t / w)`` within w zero crossings, f the lower of
    both Nyquist frequencies times a roll-off. Equal to ``torchaudio.functional.resample``.

    Pieces are samples (n,); rates are in Hz. The ratio of rates without a common factor is rounded, by less than 1e-6.

    >>> sum(map(len, resample([torch.zeros(300), torch.zeros(20)], 16_000, 8_000)))
    160
    """
    ratio = Fraction(target_rate, source_rate).limit_denominator(1000)
    source, target = ratio.denominator, ratio.numerator  # this many samples in for that many out
    if source == target:
        yield from pieces
        return
    base = min(source, target) * ROLLOFF
    width = math.ceil(WIDTH * source / base)
    places = torch.arange(-width, width + source, dtype=torch.float64) / source
    time = torch.arange(0, -target, -1, dtype=torch.float64)[:, None] / target + places
    time = (time * base).clamp(-WIDTH, WIDTH)
    window = torch.cos(time * math.pi / WIDTH / 2) ** 2
    kernel = (torch.sinc(time) * window * base / source).float()[:, None]  # (target, 1, 2 width + source)
    waiting, taken, given = torch.zeros(width), 0, 0
    end: list[Tensor | None] = [None]
    for piece in itertools.chain(pieces, end):
        taken += 0 if piece is None else len(piece)
        known = torch.cat([waiting, torch.zeros(width + source) if piece is None else piece])
        steps = max(0, (len(known) - 2 * width) // source)
        waiting = known[steps * source :].clone()
        if steps:
            out = F.conv1d(known[None, None], kernel, stride=source)[0, :, :steps].T.reshape(-1)  # (steps * target,)
            yield out if piece is not None else out[: math.ceil(target * taken / source) - given]
            given += len(out)


def read_audio(
    source: AudioSource,
    sample_rate: int,
    name: str | None = None,
    start: float = 0.0,
    seconds: float | None = None,
) -> Tensor:
    """Reads audio as one channel (the mean of all) at a given sample rate.

    Args:
        source: A path, the file's bytes, an open binary file, or (samples, rate): samples (n,) or (channels, n), float
            or integers of 8 to 32 bits.
        sample_rate: Sample rate of the result, in Hz.
        name: Location of the item, which errors name besides the file, e.g. ``"train.jsonl, line 7"``.
        start: Beginning of the segment, in seconds.
        seconds: Length of the segment, in seconds; None: to the end.

    Returns:
        Samples (n,) float32, within -1..1 if the file's samples are.

    Raises:
        DataError: The source is missing, empty, truncated or not audio, or has NaN or infinite samples.

    >>> read_audio((torch.zeros(2, 48_000), 48_000), 8_000).shape
    torch.Size([8000])
    """
    return torch.cat(list(_resampled(source, sample_rate, name, start, seconds)))


def stream_audio(
    source: AudioSource, sample_rate: int, name: str | None = None, block_seconds: float = 10.0
) -> Iterator[Tensor]:
    """Yields the samples of ``read_audio``, equal up to rounding, in blocks of ``block_seconds`` and bounded memory.

    Yields:
        (n,) float32; all but the last have ``round(block_seconds * sample_rate)`` samples.

    Raises:
        DataError: As ``read_audio``, when the defect is reached.
    """
    size = round(block_seconds * sample_rate)
    if size < 1:
        raise ValueError(f"block_seconds: expected at least one sample, found {block_seconds}")
    waiting, count = list[Tensor](), 0
    for piece in _resampled(source, sample_rate, name):
        waiting.append(piece)
        count += len(piece)
        if count >= size:
            whole, rest = torch.cat(waiting).split([count - count % size, count % size])
            yield from whole.split(size)
            waiting, count = [rest.clone()], len(rest)
    if count:
        yield torch.cat(waiting)


def audio_seconds(source: AudioSource, name: str | None = None) -> float:
    """Returns the duration in seconds, from the header if possible.

    Raises:
        DataError: As ``read_audio``.
    """
    where = _where(source, name)
    if isinstance(source, tuple):
        samples, rate = _check_array(source, where)
        if not samples.shape[1]:
            raise DataError(where, "at least one sample", "none")
        return samples.shape[1] / rate
    with _open(source, where) as stream:
        total = 0.0
        for section in sections(stream, where):
            file = _soundfile(section)
            if isinstance(file, str):
                break
            with file:
                if not 0 < file.frames < UNKNOWN:
                    break
                total += file.frames / _check_rate(file.samplerate, where)
        else:
            return total
    rate = 8_000
    return sum(map(len, _resampled(source, rate, name))) / rate


def _where(source: AudioSource, name: str | None) -> str:
    if isinstance(source, (str, Path)):
        return f"{name}: audio {source}" if name else f"audio {source}"
    kind = "bytes" if isinstance(source, bytes) else "samples" if isinstance(source, tuple) else type(source).__name__
    return f"{name}: audio" if name else f"audio ({kind})"


def _resampled(
    source: AudioSource, sample_rate: int, name: str | None, start: float = 0.0, seconds: float | None = None
) -> Iterator[Tensor]:
    """Yields validated pieces of mono float32 at the requested rate."""
    where = _where(source, name)
    with _pieces(source, where, start, seconds) as (rate, pieces):
        count = 0
        for piece in resample(pieces, rate, sample_rate):
            count += len(piece)
            yield piece
        if not count:
            raise DataError(where, "at least one sample" + (f" after {start} s" if start else ""), "none")


@contextmanager
def _pieces(
    source: AudioSource, where: str, start: float, seconds: float | None
) -> Iterator[tuple[int, Iterator[Tensor]]]:
    """Returns the source's rate, and pieces of mono float32 at that rate."""

    def span(rate: int) -> tuple[int, int | None]:
        return round(start * rate), None if seconds is None else round((start + seconds) * rate)

    if isinstance(source, tuple):
        samples, rate = _check_array(source, where)
        yield rate, iter([_mono(samples[:, slice(*span(rate))], where)])
        return
    with _open(source, where) as stream:
        files = map(_soundfile, sections(stream, where))
        first = next(files)
        if isinstance(first, str):
            yield _by_torchcodec(stream, first, where, start, seconds)
            return
        with first:
            rate = _check_rate(first.samplerate, where)
            with closing(_by_soundfile(itertools.chain([first], files), rate, where, *span(rate))) as pieces:
                yield rate, pieces


@contextmanager
def _open(source: AudioSource, where: str) -> Iterator[Any]:
    """Opens a source as a binary file, at its beginning; a file that the caller opened is not closed."""
    if isinstance(source, bytes):
        stream: Any = io.BytesIO(source)
    elif isinstance(source, (str, Path)):
        try:
            stream = find_file(source).open("rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            found = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
            raise DataError(where, "an audio file", found) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise DataError(where, "a readable audio file", shorten(str(error))) from None
    elif hasattr(source, "read") and hasattr(source, "seek"):
        stream = source
    else:
        raise DataError(where, "a path, bytes, an open binary file, or (samples, rate)", shorten(source))
    try:
        stream.seek(0)  # an earlier reader may have reached its end
        if not stream.read(1):
            raise DataError(where, "audio", "an empty file")
        stream.seek(0)
        yield stream
    finally:
        if stream is not source:
            stream.close()


def _soundfile(stream: Any) -> Any:
    """Returns an open ``SoundFile``, or the reason why soundfile cannot read the file."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the wheel without its library
        return f"soundfile is not installed ({error})"
    stream.seek(0)
    try:
        file = soundfile.SoundFile(stream)
        return file if file.format not in UNCHECKED else f"{file.format}: a format without a check for truncation"
    except (soundfile.SoundFileError, TypeError) as error:
        return str(getattr(error, "error_string", error)).rstrip(".")


def _by_soundfile(files: Iterable[Any], rate: int, where: str, start: int, end: int | None) -> Generator[Tensor]:
    """Yields the samples from start to end of soundfile's files, one after the other."""
    for file in files:
        if isinstance(file, str):
            raise DataError(where, "audio", f"a damaged file ({shorten(file)})")
        with file:
            if file.samplerate != rate:
                raise DataError(where, "one sample rate", f"files joined that have {rate:,} and {file.samplerate:,} Hz")
            yield from _span(file, where, max(start, 0), end)
            start, end = start - file.frames, None if end is None else end - file.frames
        if end is not None and end <= 0:
            return


def _span(file: Any, where: str, start: int, end: int | None) -> Iterator[Tensor]:
    import soundfile

    known = file.frames < UNKNOWN
    left = min(file.frames, file.frames if end is None else end) - start
    size, done = max(1, BLOCK // file.channels), 0
    if left <= 0:
        return
    try:
        lead = min(start, MP3_LEAD) if file.format == "MP3" else 0
        if start:
            file.seek(start - lead)
        # Otherwise soundfile would seek after each read, at which an MP3's decoder loses its state, and which fails at
        # the end of a FLAC of unknown length.
        file.seekable = lambda: False
        file.read(lead)
        while done < left:
            block = file.read(min(size, left - done), dtype="float32", always_2d=True)
            if not len(block):
                break
            done += len(block)
            yield _mono(torch.from_numpy(block).T, where)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise DataError(where, "audio", f"a damaged file ({shorten(str(error))})") from None
    if known and done < left:
        raise DataError(where, f"{left:,} samples, as in its header", f"{done:,} (a truncated file?)")


def _by_torchcodec(
    stream: Any, reason: str, where: str, start: float, seconds: float | None
) -> tuple[int, Iterator[Tensor]]:
    stream.seek(0)
    head = shorten(stream.read(16))
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):  # RuntimeError: FFmpeg's libraries are missing
        codecs = "other formats need torchcodec and FFmpeg: pip install 'mmattn[codecs]'"
        expected = f"audio (WAV, FLAC, OGG, MP3 or AIFF; {codecs})"
        raise DataError(where, expected, f"a file that begins with {head} ({reason})") from None
    stream.seek(0)
    damaged = f"a file that begins with {head} (%s)"
    try:
        decoder = AudioDecoder(stream)
        rate = _check_rate(int(decoder.metadata.sample_rate), where)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(where, "audio", damaged % shorten(str(error))) from None

    def pieces() -> Iterator[Tensor]:
        # Blocks of half a minute: in containers with millisecond timestamps, a boundary is off by up to half of one.
        begin, step, end = start, 30.0, math.inf if seconds is None else start + seconds
        while begin < end:
            try:
                found = decoder.get_samples_played_in_range(begin, min(begin + step, end))
            except (RuntimeError, ValueError) as error:  # raised at the end of the stream
                if begin == start == 0:
                    raise DataError(where, "audio", damaged % shorten(str(error))) from None
                return
            if not found.data.shape[1]:
                return
            yield _mono(found.data, where)
            begin += step

    return rate, pieces()


def _check_rate(rate: Any, where: str) -> int:
    if not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(where, f"a sample rate from {MIN_RATE:,} to {MAX_RATE:,} Hz", shorten(rate))
    return int(rate)


def _check_array(source: tuple[Any, int], where: str) -> tuple[Tensor, int]:
    """Samples (channels, n) and their rate."""
    if len(source) != 2:
        raise DataError(where, "(samples, rate)", f"{len(source)} values")
    rate = _check_rate(source[1], where)
    try:
        samples = torch.as_tensor(source[0])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(where, "samples, an array", shorten(str(error))) from None
    samples = samples[None] if samples.ndim == 1 else samples
    if samples.ndim != 2 or samples.shape[0] > max(64, samples.shape[1]):
        raise DataError(where, "samples (n,) or (channels, n)", f"an array of shape {tuple(samples.shape)}")
    if samples.dtype in (torch.int8, torch.int16, torch.int32):
        samples = samples.float() / -float(torch.iinfo(samples.dtype).min)
    elif samples.dtype == torch.uint8:
        samples = (samples.float() - 128) / 128
    elif not samples.dtype.is_floating_point:
        raise DataError(where, "samples in float, or integers of 8 to 32 bits", str(samples.dtype))
    return samples.detach().float().cpu(), rate


def _mono(samples: Tensor, where: str) -> Tensor:
    """(channels, n) -> (n,)."""
    if not samples.shape[0]:
        raise DataError(where, "at least one channel", "none")
    wave = samples[0] if samples.shape[0] == 1 else samples.mean(0)
    if not torch.isfinite(wave).all():
        bad = int((~torch.isfinite(samples)).any(0).sum())
        raise DataError(where, "finite samples", f"{bad:,} that are NaN or infinite")
    return wave
