"""The built-in speech: sentences of a small vocabulary, read by synthesized voices in noisy rooms, in memory.

A sentence is a thing ("the red pen", "coat nine"), a command ("take the red pen"), two things ("the dog near coat
nine", "blue duck and white goat") or a number said digit by digit. Words run into each other: the resonances of the
vocal tract move on from one word's last sound to the next one's first, and a stop before a stop is not released. Many
words differ in one sound alone (ten, den, hen and pen; cat, cap and mat; goat and coat; sheep and ship; big and pig;
bed and red; need and feed), and the same words stand in other orders, so that which sounds there are does not tell the
sentence.

A sentence stands in one part alone. Six voices speak in all parts; half of the clips of val, and half of those of test,
are by a voice of their own, which training has not. Each clip has its own rate of speaking, pitch, pauses, room, noise
(10 to 30 dB below the speech) and level.

The generator is frozen: `GENERATOR_VERSION` and the digests in `tests/data/test_demo_asr.py` hold it. Random numbers
come from `numpy.random.RandomState`, which NumPy promises never to change; the sound is computed in double precision
and rounded to 16 bits, as in a file, so that the last bit of a machine's sine is not heard.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mmattn.data.seeds import seed_of
from mmattn.tasks.asr.data import ASRSample
from mmattn.tasks.asr.voices import RATE, Voice, speak

GENERATOR_VERSION = 1
SEED = 20_261_121
NUM_CLIPS = {"train": 3000, "val": 250, "test": 500}

VOICES = (
    Voice("anna", pitch=205, scale=1.14, rate=0.88, breath=0.10, tilt=0.5),
    Voice("bruno", pitch=108, scale=0.98, rate=0.93, breath=0.05, tilt=0.3),
    Voice("carla", pitch=178, scale=1.08, rate=0.80, breath=0.16, tilt=0.7),
    Voice("dario", pitch=92, scale=0.93, rate=0.82, breath=0.08, tilt=0.5),
    Voice("elsa", pitch=232, scale=1.20, rate=0.98, breath=0.06, tilt=0.4),
    Voice("fabio", pitch=132, scale=1.03, rate=0.96, breath=0.12, tilt=0.2),
)
UNSEEN = {  # by training: who else speaks in a part
    "val": Voice("gina", pitch=192, scale=1.11, rate=0.94, breath=0.13, tilt=0.3),
    "test": Voice("hugo", pitch=118, scale=1.005, rate=0.86, breath=0.09, tilt=0.6),
}

_SPELT = """
    zero Z IH R OW, one W AH N, two T UW, three TH R IY, four F AO R, five F AY V, six S IH K S, seven S EH V AH N,
    eight EY T, nine N AY N, ten T EH N, red R EH D, green G R IY N, blue B L UW, black B L AE K, white W AY T,
    brown B R AW N, big B IH G, cat K AE T, cap K AE P, dog D AO G, duck D AH K, bird B ER D, pig P IH G,
    goat G OW T, coat K OW T, mat M AE T, bed B EH D, hen HH EH N, pen P EH N, den D EH N, sheep SH IY P,
    ship SH IH P, take T EY K, find F AY N D, feed F IY D, need N IY D, bring B R IH NG, wash W AA SH, the DH AH,
    and AE N D, near N IH R
"""
WORDS = {name: tuple(sounds) for name, *sounds in map(str.split, _SPELT.split(","))}
_NAMES = list(WORDS)
DIGITS, NUMBERS = _NAMES[:10], _NAMES[:11]
ADJECTIVES, NOUNS, VERBS = _NAMES[11:18], _NAMES[18:33], _NAMES[33:39]


def _pick(options: list[str], rs: np.random.RandomState) -> str:
    return options[int(rs.random_sample() * len(options))]


def _noun(rs: np.random.RandomState) -> list[str]:
    """A noun phrase."""
    kind, noun = int(rs.random_sample() * 4), _pick(NOUNS, rs)
    if kind == 0:
        return ["the", noun]
    if kind == 1:
        return [_pick(ADJECTIVES, rs), noun]
    return ["the", _pick(ADJECTIVES, rs), noun] if kind == 2 else [noun, _pick(NUMBERS, rs)]


def _sentence(rs: np.random.RandomState) -> list[str]:
    """A sentence, as words."""
    kind = rs.random_sample()
    if kind < 0.2:
        return _noun(rs)
    if kind < 0.6:
        return [_pick(VERBS, rs), *_noun(rs)]
    if kind < 0.8:
        return [*_noun(rs), "near" if kind < 0.7 else "and", *_noun(rs)]
    return [_pick(DIGITS, rs) for _ in range(2 + int(4 * rs.random_sample()))]


def part_of(text: str) -> str:
    """Which part of the data alone may have this sentence.

    >>> part_of("feed the red hen") in ("train", "val", "test")
    True
    """
    drawn = seed_of(SEED, 0, sum(ord(sign) * 31**n for n, sign in enumerate(text))) % 100
    return "test" if drawn < 20 else "val" if drawn < 30 else "train"


def _room(sound: np.ndarray, rs: np.random.RandomState) -> np.ndarray:
    """Adds the echoes of a room, half of the time: noise that decays by 60 dB within 0.1 to 0.4 seconds."""
    u = rs.random_sample(3)
    if u[0] < 0.5:
        return sound
    decay = 0.1 + 0.3 * u[1]
    time = np.arange(1, int(0.75 * decay * RATE)) / RATE
    echo = (rs.random_sample(len(time)) - 0.5) * np.exp(-6.9 / decay * time)
    echo *= (0.2 + 0.5 * u[2]) / np.sqrt((echo * echo).sum())  # the direct sound has 1
    size = 1 << (len(sound) + len(echo)).bit_length()
    echoes = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)
    return sound + np.concatenate([[0.0], echoes[: len(sound) - 1]])


def _noise(size: int, rs: np.random.RandomState) -> np.ndarray:
    """White noise, or pink, of mean square one."""
    pink = rs.random_sample() < 0.5
    noise = rs.random_sample(size) - 0.5
    if pink:
        padded = 1 << (size - 1).bit_length()
        spectrum = np.fft.rfft(noise, padded)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 20.0), padded)[:size]
    return noise / np.sqrt((noise * noise).mean())


def _clip(name: str, words: list[str], voice: Voice, rs: np.random.RandomState) -> ASRSample:
    u = rs.random_sample(5)
    voice = replace(
        voice,
        rate=voice.rate * (0.9 + 0.2 * u[0]),
        pitch=voice.pitch * (0.92 + 0.16 * u[1]),
        breath=voice.breath * (0.7 + 0.6 * u[2]),
    )
    draws = rs.random_sample((2, len(words) + 1))
    pauses = [0.06 + 0.14 * draw if chance < 0.12 else 0.0 for chance, draw in draws.T]
    pauses[0], pauses[-1] = 0.05 + 0.2 * draws[1, 0], 0.1 + 0.2 * draws[1, -1]
    sound, borders = speak(voice, [WORDS[word] for word in words], pauses, rs)
    sound = _room(sound, rs)
    begin, end = int(borders[0][0] * RATE), int(borders[-1][1] * RATE)
    speech = np.sqrt((sound[begin:end] ** 2).mean())
    sound = sound / speech + 10.0 ** (-0.5 - u[3]) * _noise(len(sound), rs)
    level = 10.0 ** (-1.5 * u[4]) * 0.95 / np.abs(sound).max()  # of the peak: 0 to -30 dB
    audio = np.floor(sound * (level * 32767) + 0.5).astype(np.float32) / 32768
    timed = [(word, *border) for word, border in zip(words, borders, strict=True)]
    recording, seconds = (torch.from_numpy(audio), RATE), len(audio) / RATE
    return ASRSample(name, recording, " ".join(words), seconds, voice.name, timed)


def sentences(split: str, num_clips: int | None = None, seed: int = 0) -> list[list[str]]:
    """The sentences of a part, as words, or its first so many: none twice, and none of another part's.

    Raises:
        ValueError: No such part.
    """
    if split not in NUM_CLIPS:
        raise ValueError(f"split: expected one of {', '.join(NUM_CLIPS)}, found {split!r}")
    rs = np.random.RandomState([GENERATOR_VERSION, list(NUM_CLIPS).index(split), seed])
    wanted = NUM_CLIPS[split] if num_clips is None else num_clips
    made: dict[str, list[str]] = {}
    while len(made) < wanted:
        words = _sentence(rs)
        if part_of(" ".join(words)) == split:
            made.setdefault(" ".join(words), words)
    return list(made.values())


def make(split: str, size: int | None = None, seed: int = 0) -> list[ASRSample]:
    """The clips of a part; the first ones do not depend on how many follow.

    Args:
        split: ``train``, ``val`` or ``test``.
        size: How many; the part's own number where None.
        seed: Another makes other clips in the same manner; the measured figures stand for 0.

    Returns:
        Samples of 8 kHz sound, with the words' true borders in seconds.

    Raises:
        ValueError: No such part.

    >>> sample = make("test", 1)[0]
    >>> sample.audio[1], sample.text.split() == [word for word, _, _ in sample.words]
    (8000, True)
    """
    samples = []
    for n, words in enumerate(sentences(split, size, seed)):
        rs = np.random.RandomState([GENERATOR_VERSION, list(NUM_CLIPS).index(split), seed, n])
        known = VOICES[int(rs.random_sample() * len(VOICES))]
        voice = known if split == "train" or n % 2 == 0 else UNSEEN[split]
        samples.append(_clip(f"{split}-{n:04d}", words, voice, rs))
    return samples
