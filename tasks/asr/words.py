"""When each word was said: CTC's best path through a text that is known, and where there is sound."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmattn.generate.ctc import ctc_align
from mmattn.tasks.asr.model import BLANK
from mmattn.tasks.asr.speech import SpeechProcessor

STEP = 0.01  # seconds of a level
RANGE, LOUD = 50.0, 0.15  # dB below the loudest that are looked at, and the share of what is left of them that is sound
BRIDGE = 0.05  # seconds: a silence inside a word, such as of a stop, is no longer
PAUSE = 0.07  # seconds: a silence between the characters of two words, no shorter, parts them
BLANK_BIAS = -100.0  # no blanks: to be cut off where there is no sound, a word begins with all that it may last


@dataclass
class Word:
    """A word and its seconds from the recording's beginning."""

    word: str
    start: float
    end: float

    def moved(self, seconds: float, low: float, high: float) -> Word:
        """So much later, within a recording that lasts from low to high."""
        start, end = (round(min(max(time + seconds, low), high), 3) for time in (self.start, self.end))
        return Word(self.word, start, end)


def align(log_p: Tensor, ids: Sequence[int], blank: int = BLANK) -> list[tuple[int, int]]:
    """The first and the last frame of each id on the likeliest path (Viterbi) that writes them.

    Args:
        log_p: (S, V), CTC's log-probabilities of one clip, without padding.
        ids: what is said.
        blank: its id.

    Returns:
        A pair an id; none where the clip has too few frames for them.
    """
    try:
        return ctc_align(log_p, ids, blank=blank)
    except ValueError:
        return []


def widened(
    log_p: Tensor, ids: Sequence[int], spans: Sequence[tuple[int, int]], blank: int = BLANK
) -> list[tuple[int, int]]:
    """The spans on a path without blanks between the first and the last of them.

    CTC puts a token on few frames and blanks between; without them, frames go to the token that is the likelier one
    there, and words get their length back. Before and behind nothing is said, and blanks are right: an id that is
    repeated and needs one must not pay for it there.

    Args:
        log_p: (S, V), as of `align`.
        ids: what is said.
        spans: what `align` gave.
        blank: its id.

    Returns:
        A pair an id.
    """
    if not spans:
        return []
    first, last = spans[0][0], spans[-1][1]
    log_p = log_p[first : last + 1].clone()
    log_p[:, blank] += BLANK_BIAS
    return [(first + begin, first + end) for begin, end in ctc_align(log_p, ids, blank=blank)]


def surest(scores: Tensor, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """The frame of each span in which its id scores highest, scores being (S, V); none where there are no spans."""
    return [first + int(scores[first : last + 1, i].argmax()) for i, (first, last) in zip(ids, spans, strict=False)]


def words_at(
    text: str,
    spans: Sequence[tuple[int, int]],
    processor: SpeechProcessor,
    seconds: float,
    start: float = 0.0,
    frames: int = 0,
) -> list[Word]:
    """The words of a text with their times.

    Args:
        text: as the processor's `said` has it.
        spans: the frames of each of its ids, see `align` and `widened`; none: the words share the clip evenly.
        processor: tells which characters an id stands for.
        seconds: of one encoded frame.
        start: seconds before the clip's first frame.
        frames: of the clip.
    """
    words, found = _written(text, processor, len(spans)), []
    for n, (word, inside) in enumerate(words):
        if inside:
            first, last = spans[inside[0]][0], spans[inside[-1]][1] + 1
        else:
            first, last = n * frames // len(words), (n + 1) * frames // len(words)
        found.append(Word(word, round(start + first * seconds, 3), round(start + last * seconds, 3)))
    return found


def sure_frames(text: str, frames: Sequence[int], processor: SpeechProcessor, S: int) -> list[list[float]]:
    """The frames in which CTC is surest of each word's ids.

    Their median tells to which of two windows a word belongs, and between those of two words a pause parts them: they
    are known far better than how long a word lasts.

    Args:
        text: as the processor's `said` has it.
        frames: of its ids, see `surest`.
        processor: tells which characters an id stands for.
        S: frames of the clip.

    Returns:
        Of each word, the middles of frames, in order; where there are none, the words share the clip evenly, and each
        has one.
    """
    words = _written(text, processor, len(frames))
    return [[frames[k] + 0.5 for k in inside] or [(n + 0.5) * S / len(words)] for n, (_, inside) in enumerate(words)]


def _written(text: str, processor: SpeechProcessor, count: int) -> list[tuple[str, list[int]]]:
    """The words of a text, and which of its `count` ids write each; none where the tokenizer counts otherwise."""
    places = processor.tokenizer.spans(text)
    if len(places) != count:
        places = []
    return [
        (word.group(), [k for k, (low, high) in enumerate(places) if max(low, word.start()) < min(high, word.end())])
        for word in re.finditer(r"\S+", text)
    ]


def fit_to_sound(
    words: Sequence[Word], wave: Tensor, rate: int, start: float = 0.0, sure: Sequence[Sequence[float]] = ()
) -> list[Word]:
    """The words with the silence at their ends cut off, or the sound around them taken in.

    CTC puts a token on few frames, anywhere near what it stands for, and not on all that it lasts. A pause between the
    tokens of two words parts them, wherever its path goes from one to the other. A word begins with the first sound
    that hangs together with what CTC points at, after the middle between it and the word before, and ends likewise.

    Args:
        words: in order, see `words_at`.
        wave: (n,), the clip.
        rate: samples a second.
        start: seconds before the clip.
        sure: of each word, when CTC says its ids, in seconds as the words' own; none: pauses part no words.
    """
    loud = sounding(wave, rate).tolist()

    def place(time: float) -> int:
        return min(len(loud), max(0, round((time - start) / STEP)))

    places = [(place(word.start), place(word.end)) for word in words]
    for n, (before, after) in enumerate(itertools.pairwise(sure)):
        first, end = _longest_pause(loud, place(before[-1]), place(after[0]))
        sounds = any(loud[places[n][0] : first]) and any(loud[end : places[n + 1][1]])  # on both sides
        if sounds and (end - first) * STEP >= PAUSE:
            places[n], places[n + 1] = (places[n][0], first), (end, places[n + 1][1])
    found = []
    for n, (word, (first, end)) in enumerate(zip(words, places, strict=True)):
        low = (places[n - 1][1] + first) // 2 if n else 0
        high = (end + places[n + 1][0] + 1) // 2 if n + 1 < len(places) else len(loud)
        heard = [t for t in range(first, end) if loud[t]]
        around = [t for t in range(low, high) if loud[t]]
        if not heard and not around:
            found.append(word)
            continue
        # What CTC says in silence is the nearest sound that is no other word's.
        heard = heard or [min(around, key=lambda t: max(first - t, t - end))]
        begin = _last_linked(loud, range(heard[0], low - 1, -1))
        last = _last_linked(loud, range(heard[-1], high))
        found.append(Word(word.word, round(start + begin * STEP, 3), round(start + (last + 1) * STEP, 3)))
    return found


def _longest_pause(loud: Sequence[bool], first: int, end: int) -> tuple[int, int]:
    """From where and up to where the longest run of silent places of a stretch is."""
    found, begin = (first, first), first
    for place in range(first, end + 1):
        if place == end or loud[place]:
            found = max(found, (begin, place), key=lambda pause: pause[1] - pause[0])
            begin = place + 1
    return found


def _last_linked(loud: Sequence[bool], way: range) -> int:
    """Of the loud places on a way that begins at one, the last that no long silence parts from the first."""
    last, silent = way.start, 0
    for place in way:
        if loud[place]:
            last, silent = place, 0
        elif (silent := silent + 1) * STEP >= BRIDGE:
            break
    return last


def sounding(wave: Tensor, rate: int) -> Tensor:
    """Where there is sound, of every STEP of a wave (n,): (T,) bool.

    It is what is louder than ``floor + LOUD (top - floor)``, top and floor being the levels that 5 % and 90 % of the
    time exceed.
    """
    level = levels(wave, rate)
    top, floor = level.quantile(0.95), level.quantile(0.1)
    floor = torch.maximum(floor, top - RANGE)
    return level > floor + LOUD * (top - floor)


def levels(wave: Tensor, rate: int) -> Tensor:
    """The level in dB of every STEP of a wave (n,): (T,)."""
    size = round(STEP * rate)
    pieces = torch.nn.functional.pad(wave.double(), (0, -len(wave) % size)).unflatten(0, (-1, size))  # (T, size)
    return 10 * pieces.square().mean(1).clamp_min(1e-12).log10()
