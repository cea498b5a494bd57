"""Acoustic front ends: log-mel features, those of Whisper, and the normalized waveforms of wav2vec 2.0.

A front end takes one recording when it is called, and several by ``batch``, which also returns a mask (True = real,
False = padding). Plain torch; the settings of public models are read from their ``preprocessor_config.json``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmattn.data.errors import DataError, shorten
from mmattn.data.readers import read_settings

MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz: a header with any other rate is damaged
UNIT = 0.01  # seconds: the unit of lengths of front ends whose features are samples
SIZES = {"sample_rate": (MIN_RATE, MAX_RATE), "n_mels": (1, 4096), "n_fft": (2, 1 << 16), "hop": (1, MAX_RATE)}
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
# Keys by which other extractors of transformers compute: Whisper's and wav2vec 2.0's would ignore them, like all that
# they don't know, but a file that has them is of another network.
OF_OTHERS = frozenset(
    {"pre_emphasis", "preemphasis", "win_length", "win_function", "num_mel_bins", "mel_floor", "fmin", "fmax", "top_db"}
    | {"do_ceptral_normalize", "normalize_means", "normalize_vars", "frame_signal_scale", "reduction_factor"}
)
BREAK = 1000.0  # Hz: Slaney's mel scale is linear below, logarithmic above
STEP = 27 / math.log(6.4)  # mels a factor e above it


class FrontEnd(ABC):
    """Computes a network's input features from samples; a subclass is a dataclass of its settings."""

    KEYS: ClassVar[Mapping[str, str]] = {}  # key in preprocessor_config.json to field; empty: the same names
    KIND: ClassVar[str | None] = None  # feature_extractor_type in preprocessor_config.json
    sample_rate: int  # in Hz
    hop: Any  # int: samples between feature steps

    def config(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        kind = {} if self.KIND is None else {"feature_extractor_type": self.KIND}
        keys = self.KEYS or {field.name: field.name for field in fields(self)}  # type: ignore[arg-type]
        return kind | {key: getattr(self, name) for key, name in keys.items()}

    @property
    def frame_seconds(self) -> float:
        """Seconds between feature steps."""
        return float(self.hop / self.sample_rate)

    @property
    def length_seconds(self) -> float:
        """Seconds of one unit of ``num_frames``."""
        return self.frame_seconds

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Returns the length of a recording in a batch, constant padding included, in units of ``length_seconds``."""

    @abstractmethod
    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps recordings (n,), n at least 1, to features (B, T, ...) and mask (B, T)."""


@dataclass(eq=False)
class LogMel(FrontEnd):
    """Log-mel spectrogram in frames centerd on every ``hop``-th sample.

    ``log(eps + M |STFT(x)|^2)``, M triangles evenly spaced on the mel scale 2595 log10(1 + f / 700) (Davis and
    Mermelstein 1980). A clip is padded with zeros, so its features do not depend on the batch. Equal to the logarithm
    of ``torchaudio.transforms.MelSpectrogram(pad_mode="constant")``.

    >>> LogMel()(torch.zeros(8_000)).shape
    torch.Size([101, 40])
    """

    sample_rate: int = 8_000  # in Hz
    n_mels: int = 40  # bands, M
    n_fft: Any = None  # samples per frame; None: 32 ms
    hop: Any = None  # samples between frames; None: 10 ms
    f_min: float = 0.0  # lowest frequency in Hz
    f_max: Any = None  # highest frequency in Hz; None: half the sample rate
    eps: float = 1e-6  # added before the logarithm: the energy floor, for samples within -1..1

    def __post_init__(self) -> None:
        rate = self.sample_rate = int(self.sample_rate)
        self.n_mels, self.f_min, self.eps = int(self.n_mels), float(self.f_min), float(self.eps)
        self.n_fft = round(0.032 * rate) if self.n_fft is None else int(self.n_fft)
        self.hop = round(0.01 * rate) if self.hop is None else int(self.hop)
        self.f_max = rate / 2 if self.f_max is None else float(self.f_max)
        check_sizes(self)
        if not 0 <= self.f_min < self.f_max <= rate / 2 or self.eps <= 0:
            raise ValueError(f"expected 0 <= f_min < f_max <= {rate / 2} and eps > 0, found {self.config()}")
        self.window = torch.hann_window(self.n_fft)
        self.bands = mel_bands(rate, self.n_fft, self.n_mels, self.f_min, self.f_max).float()
        empty = int((self.bands.amax(0) <= 0).sum())
        if empty:
            raise ValueError(f"n_mels: {empty} of {self.n_mels} bands contain no frequency of an n_fft of {self.n_fft}")

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.hop + 1

    def __call__(self, wave: Tensor) -> Tensor:
        """Maps samples (..., n), n at least 1, to features (..., T, M)."""
        return torch.log(energies(wave, self, center=True, pad_mode="constant") + self.eps)

    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        frames = self(pad_sequence(list(waves), batch_first=True))  # (B, T, M)
        return frames, up_to([self.num_frames(len(wave)) for wave in waves], frames.shape[1])


@dataclass(eq=False)
class WhisperFeatures(FrontEnd):
    """Log-mel features of Whisper (Radford et al. 2022, section 2.2).

    ``x = log10(max(M |STFT|^2, 1e-10))``, then ``(max(x, max(x) - 8) + 4) / 4``: a range of 80 dB, about -1 .. 1.

    >>> WhisperFeatures()(torch.zeros(16_000)).shape
    torch.Size([3000, 80])
    """

    KIND: ClassVar = "WhisperFeatureExtractor"
    KEYS: ClassVar = {
        "sampling_rate": "sample_rate",
        "feature_size": "n_mels",
        "n_fft": "n_fft",
        "hop_length": "hop",
        "chunk_length": "seconds",
        "padding_value": "padding",
    }
    # Keys that must be absent or have one of these values. Whisper's encoder takes no mask, so that key has no effect.
    NEUTRAL: ClassVar = {
        "dither": (0.0,),
        "do_normalize": (False,),
        "padding_side": ("right",),
        "return_attention_mask": (False, True),
    }
    sample_rate: int = 16_000  # in Hz
    n_mels: int = 80  # bands, M
    n_fft: int = 400  # samples per frame
    hop: int = 160  # samples between frames
    seconds: int = 30  # length of a window; recordings are truncated or padded to it
    padding: float = 0.0  # value of padding

    def __post_init__(self) -> None:
        check_sizes(self)
        self.window = torch.hann_window(self.n_fft)
        self.bands = slaney_bands(self.sample_rate, self.n_fft, self.n_mels, 0.0, 8000.0).float()

    @property
    def window_frames(self) -> int:
        """Frames of a window."""
        return self.seconds * self.sample_rate // self.hop

    def num_frames(self, num_samples: int) -> int:
        return self.window_frames  # regardless of its content

    def real_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a window that contain samples of a recording of num_samples."""
        return min(self.window_frames, -(-num_samples // self.hop))

    def __call__(self, wave: Tensor, whole: bool = False) -> Tensor:
        """Maps samples (n,) to the features (T, M) of one window; with whole, to n // hop frames if n is longer.

        Raises:
            DataError: The samples are not (n,) floating point, or not finite.
        """
        wave = _checked(wave)
        room = self.seconds * self.sample_rate
        if not whole:
            wave = wave[:room]
        if len(wave) < room:
            wave = F.pad(wave, (0, room - len(wave)), value=self.padding)
        half = self.n_fft // 2
        log = self.log_mel(F.pad(wave[None], (half, half), mode="reflect")[0])[:-1]  # (T, M)
        return self.scaled(log, float(log.max()))

    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps recordings to windows (B, T, M) and their mask (B, T); the network's input includes the padding."""
        counts = [self.real_frames(len(wave)) for wave in waves]
        return torch.stack([self(wave) for wave in waves]), up_to(counts, self.window_frames)

    def log_mel(self, wave: Tensor) -> Tensor:
        """Returns log10 of the mel energies (T, M) of the frames within samples (n,), the first one at sample 0."""
        return energies(wave, self, center=False).clamp_min_(1e-10).log10_()

    @staticmethod
    def scaled(log: Tensor, peak: float) -> Tensor:
        """Scales the result of ``log_mel`` in place to the network's input range: 80 dB below the peak."""
        return log.clamp_min_(peak - 8.0).add_(4.0).div_(4.0)


@dataclass(eq=False)
class WaveFeatures(FrontEnd):
    """Waveforms for wav2vec 2.0 and HuBERT, each recording normalized to mean 0 and variance 1.

    >>> features, mask = WaveFeatures().batch([torch.randn(500), torch.randn(400)])
    >>> features.shape, mask.sum(1).tolist()
    (torch.Size([2, 500]), [500, 400])
    """

    KIND: ClassVar = "Wav2Vec2FeatureExtractor"
    KEYS: ClassVar = {
        "sampling_rate": "sample_rate",
        "do_normalize": "normalize",
        "return_attention_mask": "masked",
        "padding_value": "padding",
    }
    NEUTRAL: ClassVar = {"feature_size": (1,), "padding_side": ("right",)}
    sample_rate: int = 16_000  # in Hz
    normalize: bool = True  # off: samples are unchanged
    masked: bool = False  # the network was trained with masks (the large models); off: without (the base models)
    padding: float = 0.0  # value of padding
    hop: int = field(default=1, init=False)

    @property
    def length_seconds(self) -> float:
        return UNIT

    def num_frames(self, num_samples: int) -> int:
        return -(-num_samples // round(UNIT * self.sample_rate))

    def __call__(self, wave: Tensor) -> Tensor:
        """Maps samples (n,) to (n,).

        Raises:
            DataError: The samples are not (n,) floating point, or not finite.
        """
        wave = _checked(wave)
        if not self.normalize:
            return wave
        return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()

    def batch(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pads recordings to (B, n) and returns their mask (B, n), also for networks trained without one.

        Each recording is normalized alone, so its features do not depend on the batch. Without masks, transformers
        includes the padding in the normalization and in the input of base models.
        """
        rows = [self(wave) for wave in waves]
        out = pad_sequence(rows, batch_first=True, padding_value=self.padding)
        return out, up_to(list(map(len, rows)), out.shape[1])


Features = WhisperFeatures | WaveFeatures
EXTRACTORS: dict[str, type[Features]] = {kind.KIND: kind for kind in (WhisperFeatures, WaveFeatures)}


def read_features(directory: str | Path, default: str | None = None) -> Features:
    """Reads the feature extractor of a public model's folder.

    Args:
        directory: The folder.
        default: feature_extractor_type of a file that has none, such as those of the first versions.

    Raises:
        DataError: A missing file, or an unsupported extractor or setting, which the message names.
    """
    path, whole = Path(directory, PREPROCESSOR), Path(directory, PROCESSOR)
    if path.is_file() or not whole.is_file():
        return features_from_config(read_settings(path), str(path), default)
    values = read_settings(whole)  # format of transformers 5
    front = values.get("feature_extractor") if isinstance(values, Mapping) else None
    return features_from_config(front, str(whole), default)


def features_from_config(
    values: Mapping[str, Any] | None, where: str = PREPROCESSOR, default: str | None = None
) -> Features:
    """Makes a feature extractor from ``config()`` or the content of a ``preprocessor_config.json``.

    Args:
        values: The content.
        where: The file's name in messages.
        default: See ``read_features``.

    Raises:
        DataError: An unsupported extractor or setting, which the message names.
    """
    name = values.get("feature_extractor_type", default) if isinstance(values, Mapping) else None
    if name not in EXTRACTORS or not isinstance(values, Mapping):
        raise DataError(where, f"a feature_extractor_type of {', '.join(EXTRACTORS)}", shorten(name))
    kind: Any = EXTRACTORS[name]
    known = kind.KEYS | kind.NEUTRAL
    for key, value in values.items():
        if key in OF_OTHERS and key not in known:
            raise DataError(where, f"keys of {', '.join(sorted(known))}", repr(key))
        if value not in kind.NEUTRAL.get(key, (value,)):
            raise DataError(where, f"{key} = {' or '.join(map(repr, kind.NEUTRAL[key]))}", repr(value))
    try:
        return kind(**{name: values[key] for key, name in kind.KEYS.items() if values.get(key) is not None})
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(where, "settings of a feature extractor", shorten(str(error), 200)) from error


def _checked(wave: Tensor) -> Tensor:
    if wave.dim() != 1 or not len(wave) or not wave.is_floating_point():
        raise DataError("wave", "samples (n,), floating point, at least one", f"{tuple(wave.shape)} {wave.dtype}")
    if not wave.isfinite().all():
        raise DataError("wave", "finite samples", f"sample {int((~wave.isfinite()).nonzero()[0])} is NaN or infinite")
    return wave.float()


def up_to(counts: Sequence[int], size: int) -> Tensor:
    """Returns a mask (B, size) bool that is True for the first counts[b] positions of row b."""
    return torch.arange(size) < torch.tensor(counts)[:, None]


def level(wave: Tensor) -> Tensor:
    """Removes the mean of a wave (n,) and scales its peak to one; a silent wave becomes zeros."""
    wave = wave - wave.mean()
    peak = wave.abs().amax()
    return wave / peak if float(peak) > 1e-7 else torch.zeros_like(wave)


def check_sizes(front: LogMel | WhisperFeatures) -> None:
    """Raises a ValueError for settings of a spectrogram beyond those of any recording."""
    for key, (least, most) in SIZES.items():
        value = getattr(front, key)
        if not isinstance(value, int) or not least <= value <= most:
            limit = f"at most {most:,}" if isinstance(value, int) and value > most else f"at least {least}"
            raise ValueError(f"{key}: expected {limit}, found {value!r:.40}")


def energies(wave: Tensor, front: LogMel | WhisperFeatures, **options: Any) -> Tensor:
    """Returns the mel energies (..., T, M) of samples (..., n); options are those of ``torch.stft``."""
    spectrum = torch.stft(wave, front.n_fft, front.hop, window=front.window, return_complex=True, **options)
    spectrum = spectrum.transpose(-1, -2)  # (..., T, n_fft / 2 + 1), the order in memory
    return spectrum.real.square().add_(spectrum.imag.square()) @ front.bands


def mel_bands(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Returns triangular filters (n_fft / 2 + 1, M) that are evenly spaced on the mel scale."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (f_min, f_max))
    edges = 700 * (10 ** (torch.linspace(low, high, n_mels + 2, dtype=torch.float64) / 2595) - 1)
    return triangles(edges, sample_rate, n_fft)


def slaney_bands(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Returns triangular filters (n_fft / 2 + 1, M) of equal area on Slaney's mel scale (Auditory Toolbox, 1998).

    The scale is 3 f / 200 up to 1000 Hz, and 15 + 27 log(f / 1000) / log(6.4) above.
    """
    low, high = (3 * f / 200 if f < BREAK else 15 + STEP * math.log(f / BREAK) for f in (f_min, f_max))
    mels = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, 200 * mels / 3, BREAK * torch.exp((mels - 15) / STEP))
    return triangles(edges, sample_rate, n_fft) * (2 / (edges[2:] - edges[:-2]))


def triangles(edges: Tensor, sample_rate: int, n_fft: int) -> Tensor:
    """Returns triangular filters (n_fft / 2 + 1, M) from edges (M + 2,) in Hz: 1 at an edge, 0 at its neighbors."""
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
