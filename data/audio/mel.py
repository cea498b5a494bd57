"""Signals: another sample rate, and the log-mel features that training and serving share; plain torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_RATE, MAX_RATE = 1_000, 1_000_000  # Hz: a header that says anything else is damaged
WIDTH, ROLLOFF = 6, 0.99  # of the resampling filter: zero crossings on a side, and its edge as a share of Nyquist


class Resampler:
    """Another sample rate, by a Hann-windowed sinc; pieces of any length in, the same samples out as of the whole.

    y(t) = sum_i x(i) g(t - i), g(t) = sinc(2 f t) cos^2(pi f t / w) within w zero crossings, f the lower of both
    Nyquist frequencies times a roll-off. Equal to ``torchaudio.functional.resample``.

    Args:
        source_rate: Of what comes in, in Hz.
        target_rate: Of what goes out. Where both share no factor, the ratio is rounded (by less than a millionth).

    >>> resampler = Resampler(16_000, 8_000)
    >>> len(resampler(torch.zeros(300))) + len(resampler(torch.zeros(20))) + len(resampler.finish())
    160
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        ratio = Fraction(target_rate, source_rate).limit_denominator(1000)
        self.source, self.target = ratio.denominator, ratio.numerator  # this many samples in for that many out
        base = min(self.source, self.target) * ROLLOFF
        self.width = math.ceil(WIDTH * self.source / base)
        places = torch.arange(-self.width, self.width + self.source, dtype=torch.float64) / self.source
        time = torch.arange(0, -self.target, -1, dtype=torch.float64)[:, None] / self.target + places
        time = (time * base).clamp(-WIDTH, WIDTH)
        window = torch.cos(time * math.pi / WIDTH / 2) ** 2
        kernel = torch.sinc(time) * window * base / self.source
        self.kernel = kernel.float()[:, None]  # (target, 1, 2 width + source)
        self.waiting = torch.zeros(self.width)
        self.taken = self.given = 0

    def __call__(self, piece: Tensor) -> Tensor:
        """The samples that can be told once this piece is known."""
        if self.source == self.target:
            return piece
        self.taken += len(piece)
        return self._run(piece)

    def finish(self) -> Tensor:
        """The last ones."""
        if self.source == self.target:
            return self.waiting[:0]
        missing = math.ceil(self.target * self.taken / self.source) - self.given
        return self._run(self.waiting.new_zeros(self.width + self.source))[:missing]

    def _run(self, piece: Tensor) -> Tensor:
        known = torch.cat([self.waiting, piece])
        steps = (len(known) - 2 * self.width) // self.source
        if steps < 1:
            self.waiting = known
            return known[:0]
        out = F.conv1d(known[None, None], self.kernel, stride=self.source)[0, :, :steps].T.reshape(
            -1
        )  # (steps * target)
        self.waiting = known[steps * self.source :].clone()
        self.given += len(out)
        return out


class LogMel:
    """The logarithm of a mel spectrogram, in frames that are centred on every ``hop``-th sample.

    log(eps + M |STFT(x)|^2), M triangles evenly spaced on the mel scale 2595 log10(1 + f / 700) (Davis and Mermelstein
    1980). What lies beyond the clip counts as silence, so that a clip in a padded batch equals itself. Equal to the
    logarithm of ``torchaudio.transforms.MelSpectrogram(pad_mode="constant")``.

    Args:
        sample_rate: In Hz.
        n_mels: Bands, M.
        n_fft: Samples a frame; None: 32 ms.
        hop: Samples from frame to frame; None: 10 ms.
        f_min: Lowest frequency in Hz.
        f_max: Highest; None: half the sample rate.
        eps: Added before the logarithm: of samples within -1..1, what counts as silence.

    >>> LogMel()(torch.zeros(8_000)).shape
    torch.Size([101, 40])
    """

    def __init__(
        self,
        sample_rate: int = 8_000,
        n_mels: int = 40,
        n_fft: int | None = None,
        hop: int | None = None,
        f_min: float = 0.0,
        f_max: float | None = None,
        eps: float = 1e-6,
    ) -> None:
        self.sample_rate, self.n_mels = int(sample_rate), int(n_mels)
        self.n_fft = round(0.032 * sample_rate) if n_fft is None else int(n_fft)
        self.hop = round(0.01 * sample_rate) if hop is None else int(hop)
        self.f_min, self.f_max = float(f_min), sample_rate / 2 if f_max is None else float(f_max)
        self.eps = float(eps)
        least = {"sample_rate": MIN_RATE, "n_mels": 1, "n_fft": 2, "hop": 1}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key}: expected at least {value}, found {getattr(self, key)}")
        if not 0 <= self.f_min < self.f_max <= sample_rate / 2 or self.eps <= 0:
            raise ValueError(f"expected 0 <= f_min < f_max <= {sample_rate / 2} and eps > 0, found {self.config()}")
        self.window = torch.hann_window(self.n_fft)
        self.bands = mel_bands(sample_rate, self.n_fft, n_mels, self.f_min, self.f_max).float()
        empty = int((self.bands.amax(0) <= 0).sum())
        if empty:
            raise ValueError(f"n_mels: {empty} of {n_mels} bands hold no frequency of an n_fft of {self.n_fft}")

    def config(self) -> dict[str, Any]:
        """What the constructor takes, as JSON has it."""
        keys = ("sample_rate", "n_mels", "n_fft", "hop", "f_min", "f_max", "eps")
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LogMel:
        """The one that ``config`` describes."""
        return cls(**config)

    def num_frames(self, num_samples: int) -> int:
        """Frames of so many samples."""
        return num_samples // self.hop + 1

    def __call__(self, wave: Tensor) -> Tensor:
        """Samples (..., n), n at least 1 -> (..., T, M)."""
        spectrum = torch.stft(
            wave, self.n_fft, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        ).transpose(-1, -2)  # (..., T, n_fft / 2 + 1), which is how it lies in memory
        power = spectrum.real.square().add_(spectrum.imag.square())
        return torch.log(power @ self.bands + self.eps)


def mel_bands(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangles (n_fft / 2 + 1, M) that are evenly spaced on the mel scale."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (f_min, f_max))
    edges = 700 * (10 ** (torch.linspace(low, high, n_mels + 2, dtype=torch.float64) / 2595) - 1)
    return triangles(edges, sample_rate, n_fft)


def triangles(edges: Tensor, sample_rate: int, n_fft: int) -> Tensor:
    """Of edges (M + 2,) in Hz, (n_fft / 2 + 1, M): 1 at their middle, 0 at their neighbours' middles."""
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)
