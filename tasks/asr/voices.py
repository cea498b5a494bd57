"""Voices: a source-filter synthesizer that reads phonemes aloud at 8 kHz, in NumPy alone.

The source is a train of glottal pulses (its pitch with declination, accents and jitter) and noise; the filter is a
cascade of four resonators and a nasal pole and zero for what passes the whole vocal tract, and one resonator for noise
that is made in the mouth (Klatt, 1980, Software for a cascade/parallel formant synthesizer, J. Acoust. Soc. Am. 67).
Loudness changes from sample to sample, the filters from frame to frame: each frame of the source is multiplied by its
response in the frequency domain, and the frames overlap and add.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE = 8000  # samples a second
_HOP, _WINDOW, _FFT = 80, 160, 384  # samples; what the window leaves of the transform is room for the ringing
_REACH = 120  # samples


@dataclass(frozen=True)
class Voice:
    """A speaker."""

    name: str
    pitch: float  # Hz
    scale: float  # of all resonances: the shorter the vocal tract, the higher
    rate: float  # of speaking: more is faster
    breath: float  # noise in the voice
    tilt: float  # 0 to 1: how much duller than a pressed voice


@dataclass(frozen=True)
class Phone:
    """A phoneme: where the resonances of the vocal tract move to, and what sounds there."""

    kind: str  # vowel, glide, nasal, fricative, stop, aspirate
    length: float  # milliseconds; of a stop: its closure
    formants: tuple[tuple[float, ...], ...]  # Hz, of a man; two where it glides
    voiced: float = 1.0  # loudness of the voice
    noise: float = 0.0  # loudness of the noise made in the mouth
    center: float = 2000.0  # Hz, of that noise
    width: float = 2000.0  # Hz
    pull: float = 0.3  # 0 to 1: how far the second resonance follows the vowel's beside it


# Vowels: milliseconds, and resonances in Hz; two of them where it glides.
_VOWELS = """
    IY 125 280 2250 2950, IH 85 400 1920 2560, EH 95 550 1770 2490, AE 130 690 1660 2430, AA 130 740 1130 2440,
    AO 130 570 850 2410, AH 90 630 1210 2450, ER 125 480 1320 1680, UW 120 310 900 2240,
    EY 140 500 1820 2500 330 2150 2700, AY 165 720 1180 2440 400 1950 2560, OW 145 560 1030 2380 380 780 2280,
    AW 165 720 1260 2440 420 900 2280
"""
# Others: kind, milliseconds, resonances, and the other fields of a phone, from `voiced` to `pull`.
_CONSONANTS = """
    W glide 60 300 620 2200 0.6 0 2000 2000 0.1, L glide 60 350 1080 2750 0.55 0 2000 2000 0.2,
    R glide 65 330 1120 1480 0.6 0 2000 2000 0.1, M nasal 65 270 1000 2150 0.5 0 2000 2000 0.3,
    N nasal 65 270 1550 2550 0.5 0 2000 2000 0.3, NG nasal 80 270 2050 2400 0.5 0 2000 2000 0.3,
    F fricative 90 320 1050 2100 0 0.4 2300 3500 0.3, TH fricative 85 320 1400 2600 0 0.38 3300 1500 0.3,
    S fricative 100 320 1650 2550 0 0.8 3750 500 0.3, SH fricative 105 320 1850 2450 0 0.9 2550 600 0.3,
    V fricative 60 300 1050 2100 0.4 0.2 2300 3500 0.3, DH fricative 55 300 1400 2600 0.45 0.16 3300 1500 0.3,
    Z fricative 80 300 1650 2550 0.35 0.4 3750 500 0.3, HH aspirate 60 500 1500 2500 0 0 2000 2000 1,
    P stop 58 250 850 2150 0 1 600 900 0.4, B stop 50 250 850 2150 0.09 0.65 600 900 0.4,
    T stop 58 250 1750 2700 0 1.3 3400 1000 0.25, D stop 50 250 1750 2700 0.09 0.8 3400 1000 0.25,
    K stop 58 250 1900 2200 0 1.3 1900 450 0.75, G stop 50 250 1900 2200 0.09 0.85 1900 450 0.75
"""
PHONES: dict[str, Phone] = {}
for _name, *_numbers in map(str.split, _VOWELS.split(",")):
    _length, *_hertz = map(float, _numbers)
    PHONES[_name] = Phone("vowel", _length, tuple(tuple(_hertz[n : n + 3]) for n in range(0, len(_hertz), 3)))
for _name, _kind, *_numbers in map(str.split, _CONSONANTS.split(",")):
    _length, *_hertz = map(float, _numbers)
    PHONES[_name] = Phone(_kind, _length, (tuple(_hertz[:3]),), *_hertz[3:])
_COLUMNS = ("f1", "f2", "f3", "nasal", "center", "width", "voice", "breath", "noise", "pitch")  # of a piece's row


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian over the frames of values (T, P), its ends held."""
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(values)
    for n, weight in enumerate(kernel / kernel.sum()):  # in this order on every machine
        total += weight * padded[n : n + len(values)]
    return total


def _ramp(values: np.ndarray, width: int) -> np.ndarray:
    """A moving average over so many samples of values (n,)."""
    total = np.concatenate([np.zeros(width), values, np.full(width, values[-1])]).cumsum()
    begin = width // 2
    return (total[width:] - total[:-width])[begin : begin + len(values)] / width


@cache
def _pulses() -> np.ndarray:
    """One period of the voice by number of harmonics: (64, 2049), harmonic n at 1/n of the first's amplitude."""
    phase = np.arange(2049) / 2048
    harmonics = np.arange(1, 64)[:, None]
    waves = np.cos(2 * np.pi * (harmonics * phase % 1.0)) / harmonics
    return np.concatenate([np.zeros((1, 2049)), waves.cumsum(0)])


@cache
def _turns() -> tuple[np.ndarray, np.ndarray]:
    """z^-1 and z^-2 at each frequency of the transform: (F,) each."""
    turn = np.exp(-2j * np.pi * np.arange(_FFT // 2 + 1) / _FFT)
    return turn, turn * turn


def _response(section: np.ndarray) -> np.ndarray:
    """The values of polynomials (T, 3) in z^-1, over the one at zero Hz: (T, F)."""
    section = section / section.sum(1, keepdims=True)
    once, twice = _turns()
    return section[:, :1] + section[:, 1:2] * once + section[:, 2:] * twice


def _poles(frequency: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """The resonator's denominator 1 - 2 r cos(w) z^-1 + r^2 z^-2: (T, 3)."""
    r = np.exp(-np.pi / RATE * np.broadcast_to(width, frequency.shape))
    return np.stack([np.ones_like(r), -2 * r * np.cos(2 * np.pi / RATE * frequency), r * r], -1)


def _pieces(voice: Voice, phones: list[str], at: int, last: bool, rs: np.random.RandomState) -> list[list[float]]:
    """The pieces of the phoneme at this place: rows of milliseconds and `_COLUMNS`."""
    phone = PHONES[phones[at]]
    after = phones[at + 1] if at + 1 < len(phones) else "-"
    u = rs.random_sample(6)
    stretch = (0.85 + 0.3 * u[0]) / voice.rate * (1.3 if last and phone.kind != "stop" else 1.0)
    length = phone.length * stretch
    beside = (*phones[at : at + 3], *reversed(phones[max(at - 2, 0) : at]))
    vowel = next((PHONES[p] for p in beside if p in PHONES and PHONES[p].kind == "vowel"), None)
    targets = []
    for formants in phone.formants:
        f1, f2, f3 = (f * (0.975 + 0.05 * draw) for f, draw in zip(formants, u[1:4], strict=True))
        if vowel is not None and phone.kind != "vowel":
            f2 += phone.pull * (vowel.formants[0][1] - f2)
            f1, f3 = (vowel.formants[0][0], vowel.formants[0][2]) if phone.kind == "aspirate" else (f1, f3)
        targets.append([f1 * voice.scale, f2 * voice.scale, f3 * voice.scale])
    center = phone.center if phones[at] not in ("K", "G") else 1.05 * targets[0][1] / voice.scale
    mouth, loud = [min(center * (0.5 + 0.5 * voice.scale), 3850.0), phone.width], 0.8 + 0.4 * u[4]
    nasal, accent = float(phone.kind == "nasal"), 0.02 + 0.12 * u[5] if phone.kind == "vowel" else 0.0
    pieces: list[list[float]] = []

    def piece(milliseconds: float, voiced: float, breath: float, noise: float, at: list[float] = targets[0]) -> None:
        pieces.append([milliseconds, *at, nasal, *mouth, voiced, breath, noise, accent])

    if phone.kind == "vowel":
        middle = [(a + b) / 2 for a, b in zip(targets[0], targets[-1], strict=True)]
        steps = [targets[0], middle, targets[1]] if len(targets) == 2 else targets
        for step in steps:
            piece(length / len(steps), loud, voice.breath * loud, 0.0, step)
    elif phone.kind == "aspirate":
        piece(length, 0.0, 0.16 * loud, 0.0)
    elif phone.kind == "stop":
        piece(length, phone.voiced, 0.0, 0.0)
        if after == "-" or PHONES[after].kind != "stop":  # before another stop it is not released
            release = phone.noise * loud * (0.6 if after == "-" else 1.0)
            piece(7.0 + 5.0 * u[5], phone.voiced, 0.05, release)
            if not phone.voiced:
                piece(stretch * (20.0 if after == "-" else 32.0), 0.0, 0.16 * loud, 0.15 * release)
    else:
        piece(length, phone.voiced * loud, voice.breath * phone.voiced, phone.noise * loud)
    return pieces


def speak(
    voice: Voice, words: list[tuple[str, ...]], pauses: list[float], rs: np.random.RandomState
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Reads words aloud.

    Args:
        voice: The speaker.
        words: Each word's phonemes.
        pauses: Seconds of silence before each word and behind the last.
        rs: Where chance comes from.

    Returns:
        The sound (n,) float64 at 8 kHz, and each word's first and last second.

    >>> sound, borders = speak(Voice("ann", 200, 1.1, 1, 0.1, 0.4), [("T", "EH", "N")], [0.1, 0.1],
    ...                        np.random.RandomState(0))
    >>> len(sound) % 80, borders[0][0]
    (0, 0.1)
    """
    phones: list[str] = []
    owner: list[int] = []  # each phoneme's word; of a pause, the number of the pause
    for n, word in enumerate((*words, ())):
        phones += (["-"] if pauses[n] > 0 else []) + list(word)
        owner += [n] * (len(phones) - len(owner))
    rows: list[list[float]] = []
    owners: list[int] = []  # each piece's word
    vowels: list[bool] = []
    for at, name in enumerate(phones):
        if name == "-":  # the mouth comes to rest
            rest = [500 * voice.scale, 1500 * voice.scale, 2500 * voice.scale]
            pieces = [[1000 * pauses[owner[at]], *rest, 0, 1000, 2000, 0, 0, 0, 0]]
        else:
            pieces = _pieces(voice, phones, at, owner[at] == len(words) - 1, rs)
        rows += pieces
        owners += [-1 if name == "-" else owner[at]] * len(pieces)
        vowels += [name != "-" and PHONES[name].kind == "vowel"] * len(pieces)
    table = np.array(rows)  # (pieces, 1 + columns)
    ends = np.floor(table[:, 0].cumsum() * (RATE / 1000) + 0.5).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    borders = [
        (int(starts[owners.index(n)]) / RATE, int(ends[len(owners) - 1 - owners[::-1].index(n)]) / RATE)
        for n in range(len(words))
    ]
    size = -(-int(ends[-1]) // _HOP) * _HOP
    frames = size // _HOP + 1
    ticks = np.arange(2 * frames) * (_HOP // 2)
    at_frame = np.minimum(np.searchsorted(ends, ticks, side="right"), len(rows) - 1)
    # The mouth comes from a consonant and goes to the next one within the vowel, where it is heard.
    moved = ends + _REACH * np.diff(np.array([*vowels, False], np.int64))
    in_motion = np.minimum(np.searchsorted(moved, ticks, side="right"), len(rows) - 1)
    moving = np.concatenate([_smooth(table[in_motion, 1:5], 4.0), _smooth(table[at_frame, 5:7], 1.0)], 1)[::2]
    lengths = ends - starts
    lengths[-1] += size - ends[-1]
    voiced, breath, noise = (np.repeat(table[:, n], lengths) for n in (7, 8, 9))
    accents = _smooth(table[at_frame, 10:11], 8.0)[:, 0]
    pitch = _pitch(voice, accents, size, rs)
    return _filter(voice, moving, *_sources(voiced, breath, noise, pitch, rs)), borders


def _pitch(voice: Voice, accents: np.ndarray, size: int, rs: np.random.RandomState) -> np.ndarray:
    """Hz at each sample (size,): falling to the end, higher in accents, never quite steady."""
    u = rs.random_sample(2)
    falling = np.linspace(1.12 - 0.06 * u[0], 0.82 + 0.1 * u[1], len(accents))
    jitter = 0.03 * (rs.random_sample(len(accents)) - 0.5)
    slow = _smooth(rs.random_sample((len(accents), 1)) - 0.5, 12.0)[:, 0]
    curve = voice.pitch * (falling + accents + jitter + 0.3 * slow)
    return np.interp(np.arange(size), np.arange(len(accents)) * (_HOP // 2), curve)


def _sources(
    voiced: np.ndarray, breath: np.ndarray, noise: np.ndarray, pitch: np.ndarray, rs: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """What goes through the whole vocal tract, and what is made in the mouth: (n,) each."""
    phase = (pitch / RATE).cumsum() % 1.0
    place = phase * 2048
    low = place.astype(np.int64)
    harmonics = np.minimum(3900 / pitch, 63).astype(np.int64)  # none beyond half the rate
    pulses = _pulses()
    wave = pulses[harmonics, low] * (1 - (place - low)) + pulses[harmonics, low + 1] * (place - low)
    hiss = (rs.random_sample((2, len(pitch))) - 0.5) * np.sqrt(12.0)
    gate = np.where(voiced > 0, 0.5 + (phase < 0.5), 1.0)  # a voice lets breath through in its open half
    tract = _ramp(_ramp(voiced, 80), 56) * wave + _ramp(breath, 40) * gate * hiss[0]
    return tract, _ramp(noise, 16) * gate * hiss[1]


def _filter(voice: Voice, moving: np.ndarray, tract: np.ndarray, mouth: np.ndarray) -> np.ndarray:
    """Each frame of both sources by its own response; overlapped and added: (n,)."""
    f1, f2, f3, nasal, center, width = moving.T
    still = np.ones(1)
    poles = [  # those that do not move first: one row each
        np.array([[1.0, -0.8 * voice.tilt, 0.0]]),
        _poles(270 * still, 100.0),
        _poles(min(3450 * voice.scale, 3800.0) * still, 320.0),
        _poles(f1, 65 + 60 * nasal),
        _poles(f2, 90 + 60 * nasal),
        _poles(np.minimum(f3, 3500), 170 + 60 * nasal),
    ]
    response = _response(_poles(270 + 230 * nasal, 100.0))  # (T, F)
    response /= reduce(np.multiply, map(_response, poles))
    hiss = (1 - 0.9 * _turns()[0]) / _response(_poles(center, width))  # (T, F)
    hiss /= np.sqrt((hiss.real**2 + hiss.imag**2).mean(1, keepdims=True))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    sound = np.zeros((len(moving) + 4) * _HOP)
    parts = []
    for source in (tract, mouth):
        padded = np.concatenate([np.zeros(_HOP), source, np.zeros(_HOP)])
        parts.append(np.fft.rfft(sliding_window_view(padded, _WINDOW)[::_HOP] * window, _FFT))  # (T, F)
    made = np.fft.irfft(parts[0] * response + parts[1] * hiss, _FFT)  # (T, _FFT)
    blocks = sound.reshape(-1, _HOP)
    for n in range(0, _FFT, _HOP):
        piece = made[:, n : n + _HOP]
        blocks[n // _HOP : n // _HOP + len(made), : piece.shape[1]] += piece
    return sound[_HOP : _HOP + len(tract)]
