"""Speech augmentation: a pure function of the recordings and one integer seed for each."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmattn.data.seeds import SeededRandom, pick
from mmattn.tasks.asr.data import ASRSample

MOST: dict[str, float] = {
    "join": 100,
    "time_masks": 50,
    "time_width": 10_000,
    "freq_masks": 50,
    "freq_width": 1_000,
}  # maxima of the options
MOST |= {"pause": 10.0, "shift": 10.0, "gain": 60.0}
TIME_SHARE = 0.2  # maximum fraction of a clip in a time mask: p of SpecAugment
NOISE = 1 << 20  # samples in each noise table
# Lengths without a prime factor above 7, whose Fourier transform is fast.
QUICK = sorted(
    2**a * 3**b * 5**c * 7**d
    for a, b, c, d in itertools.product(range(31), range(20), range(14), range(12))
    if a + b * math.log2(3) + c * math.log2(5) + d * math.log2(7) < 31
)
FEATURES = 0x9E3779B97F4A7C15  # separates the random draws of features from those of waves


@dataclass
class SpeechAugment:
    """Concatenation, speed, silence, gain, noise and SpecAugment, in this order; each is off if its value is 0 or None.

    The draws of a recording depend on its own seed alone, except the number of concatenated recordings, which is drawn
    once per batch from its first seed, so that the lengths in a batch are similar.

    Raises:
        ValueError: A value is out of range; names it.

    >>> augment = SpeechAugment(speed=[0.9, 0.9], shift=0.1)
    >>> waves, texts = augment.waves([torch.randn(8000)], ["yes"], [""], [7], sample_rate=8000)
    >>> 8888 < len(waves[0]) < 10500, texts
    (True, ['yes'])
    """

    # Each recording is followed by up to join - 1 others of its speaker, from the ``attach``ed ones.
    join: int = 0
    pause: float = 0.3  # seconds: maximum silence between them
    speed: Sequence[float] | None = None  # minimum and maximum factor, pitch included (Ko et al. 2015, section 2)
    shift: float = 0.0  # seconds: maximum silence before and after, drawn separately
    gain: float = 0.0  # dB: the gain ramps linearly between two values drawn from -gain to gain
    noise: Sequence[float] | None = None  # minimum and maximum signal-to-noise ratio in dB, of white to pink noise
    time_masks: int = 0  # number of time masks (Park et al. 2019, section 2), each at most a fifth of the clip
    time_width: int = 20  # maximum number of frames in a mask
    freq_masks: int = 0  # number of frequency masks
    freq_width: int = 8  # maximum number of bands in a mask

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ValueError(f"{name}: expected 0 to {most:g}, found {value!r}")
            setattr(self, name, type(most)(value))
        for name, low, high in (("speed", 0.25, 4.0), ("noise", -40.0, 120.0)):
            given: Any = getattr(self, name)
            two = isinstance(given, Sequence) and len(given) == 2 and all(isinstance(x, (int, float)) for x in given)
            if given is not None and not (two and low <= given[0] <= given[1] <= high):
                expected = f"a minimum and a maximum within {low} to {high}"
                raise ValueError(f"{name}: expected {expected}, found {given!r}")
        self._pool: dict[str, list[ASRSample]] = {}

    @property
    def masks(self) -> int:
        """Number of masks per clip."""
        return self.time_masks + self.freq_masks

    def attach(self, samples: Sequence[ASRSample]) -> SpeechAugment:
        """Set the recordings that ``join`` draws from: the training data, preferably preloaded."""
        self._pool = {}
        for sample in samples:
            self._pool.setdefault(sample.speaker, []).append(sample)
        return self

    def lengths(self, lengths: Sequence[tuple[int, int]], frame_seconds: float = 0.01) -> list[tuple[int, int]]:
        """Expected ``SpeechProcessor.lengths`` after augmentation, for a token budget; a frame lasts frame_seconds."""
        others = max(self.join - 1, 0) / 2  # expected number
        frames, tokens = (sum(pair[n] for pair in lengths) / max(len(lengths), 1) for n in (0, 1))
        frames += self.pause / 2 / frame_seconds
        extra, slow = self.shift / frame_seconds, 1.0 if self.speed is None else sum(1 / s for s in self.speed) / 2
        return [(math.ceil((f + others * frames) * slow + extra), math.ceil(t + others * tokens)) for f, t in lengths]

    def waves(
        self,
        waves: Sequence[Tensor],
        texts: Sequence[str],
        speakers: Sequence[str],
        seeds: Sequence[int],
        sample_rate: int,
    ) -> tuple[list[Tensor], list[str]]:
        """Augment recordings before feature extraction.

        Args:
            waves: (n,) each, B of them, as in the result.
            texts: Their B texts.
            speakers: Their B speakers.
            seeds: B integers.
            sample_rate: In Hz.

        Returns:
            The B waves and their texts.
        """
        changed, joined = list(waves), list(texts)
        if self.join > 1:
            if not self._pool:
                raise ValueError("join: expected recordings to join with, found none; call attach() first")
            count = random.Random(seeds[0]).randrange(self.join)  # recordings to append
            for n, seed in enumerate(seeds):
                stream, pool = random.Random(seed), self._pool.get(speakers[n]) or next(iter(self._pool.values()))
                others = [pick(stream, pool) for _ in range(count)]
                pauses = [stream.random() * self.pause for _ in others]
                changed[n], _ = join_waves([waves[n], *(s.read(sample_rate) for s in others)], pauses, sample_rate)
                joined[n] = " ".join(text for text in (texts[n], *(s.text for s in others)) if text)
        draws = SeededRandom(seeds)(9).T.tolist()  # 9 a wave
        changed = [self._change(wave, draw, sample_rate) for wave, draw in zip(changed, draws, strict=True)]
        return changed, joined

    def _change(self, wave: Tensor, draws: Sequence[float], rate: int) -> Tensor:
        if self.speed is not None:
            low, high = self.speed
            wave = change_speed(wave, low + draws[0] * (high - low))
        if self.shift:
            before, after = (round(draw * self.shift * rate) for draw in draws[1:3])
            wave = torch.nn.functional.pad(wave, (before, after))
        if self.gain:
            first, last = ((2 * draw - 1) * self.gain / 20 * math.log(10) for draw in draws[3:5])
            wave = wave * torch.linspace(first, last, len(wave)).exp_()
        if self.noise is not None:
            low, high = self.noise
            wave = add_noise(wave, low + draws[5] * (high - low), draws[6:])
        return wave

    def features(self, features: Tensor, feature_mask: Tensor, seeds: Sequence[int]) -> Tensor:
        """SpecAugment on normalized features (B, T, M) with their mask (B, T): masked values become 0, the mean."""
        if not self.masks:
            return features
        draws, kept = SeededRandom([seed ^ FEATURES for seed in seeds]), torch.ones_like(features, dtype=torch.bool)
        bands, lengths = features.shape[2], feature_mask.sum(1)
        for count, width, size, dim in (
            (self.time_masks, (lengths * TIME_SHARE).clamp(max=self.time_width), lengths, 1),
            (self.freq_masks, torch.tensor(float(min(self.freq_width, bands))), torch.tensor(bands), 2),
        ):
            places = torch.arange(features.shape[dim])
            for _ in range(count):
                draw = draws(2)
                wide = (draw[0] * (width + 1)).floor().minimum(width.floor())  # (B,): uniform in 0 to width
                first = (draw[1] * (size - wide + 1)).floor()
                masked = (places >= first[:, None]) & (places < (first + wide)[:, None])  # (B, T) or (B, M)
                kept &= ~masked.unsqueeze(3 - dim)
        return features * kept


def join_waves(waves: Sequence[Tensor], pauses: Sequence[float], rate: int) -> tuple[Tensor, list[tuple[float, float]]]:
    """Concatenate recordings (n,) with silences in between, one fewer, in seconds.

    Returns:
        The whole (n,), and the start and end of each recording in seconds.
    """
    parts, borders, place = [], [], 0
    for wave, pause in zip(waves, [*pauses, 0.0], strict=True):
        borders.append((place / rate, (place + len(wave)) / rate))
        parts += [wave, wave.new_zeros(round(pause * rate))]
        place += len(parts[-1]) + len(wave)
    return torch.cat(parts), borders


def change_speed(wave: Tensor, factor: float) -> Tensor:
    """Play a wave (n,) faster or slower by truncating or zero-padding its Fourier transform.

    The factor is rounded, by less than 1 % for clips of a second, to one with fast transforms.
    """
    if factor == 1.0:
        return wave
    size = QUICK[bisect.bisect_left(QUICK, len(wave))]  # the zero padding separates its end from its start
    place = bisect.bisect_left(QUICK, size / factor)
    changed = min(QUICK[max(place - 1, 0) : place + 1], key=lambda near: abs(math.log(near * factor / size)))
    whole = torch.fft.irfft(torch.fft.rfft(wave, n=size), n=changed) * (changed / size)
    return whole[: max(1, round(len(wave) * changed / size))]


@functools.cache
def _noise_table() -> tuple[Tensor, Tensor]:
    """White noise and pink noise (power 1 / f), each of power 1, so long that a random position gives new noise."""
    stream = torch.Generator().manual_seed(0)
    white = torch.randn(NOISE, generator=stream)
    spectrum = torch.fft.rfft(torch.randn(NOISE, generator=stream))
    spectrum[0] = 0
    pink = torch.fft.irfft(spectrum * torch.arange(len(spectrum)).clamp(min=1) ** -0.5, n=NOISE)
    return white, pink / pink.std()


def add_noise(wave: Tensor, ratio: float, draws: Sequence[float]) -> Tensor:
    """Add noise to a wave (n,) at a signal-to-noise ratio in dB.

    Three draws in 0..1 select the position in the tables of white and pink noise, and the share of pink noise.
    """
    power = wave.square().mean()
    repeats = -(-len(wave) // (NOISE // 2))
    white, pink = (
        (table if repeats == 1 else table.repeat(repeats))[place : place + len(wave)]
        for table, place in zip(_noise_table(), (int(draw * NOISE / 2) for draw in draws[:2]), strict=True)
    )
    level = (power * 10 ** (-ratio / 10)).sqrt()
    return wave + white * (level * math.sqrt(1 - draws[2])) + pink * (level * math.sqrt(draws[2]))
