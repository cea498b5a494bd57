"""When each word was said: CTC's best path through a text that is known, and where there is sound."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.speech import SpeechProcessor
from mmattn.generate.ctc import ctc_align
from tasks.asr.model import BLANK

STEP = 0.01  # seconds of a level
RANGE, LOUD = 50.0, 0.15  # dB below the loudest that are looked at, and the share of what is left of them that is sound
BRIDGE = 0.05  # seconds: a silence inside a word, such as of a stop, is no longer
PAUSE = (
    0.07  # seconds: a silence between the last character of a word and the first of the next, no shorter, parts them
)


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


def align(log_p: Tensor, ids: Sequence[int], blank_bias: float = 0.0, blank: int = BLANK) -> list[tuple[int, int]]:
    """The first and the last frame of each id on the likeliest path (Viterbi) that writes them.

    Args:
        log_p: (S, V), CTC's log-probabilities of one clip, without padding.
        ids: what is said.
        blank_bias: added to the blank's log-probability from the first id on to the last one. CTC puts a token on few
            frames and blanks between; below zero, frames go to the token that is the likelier one there, and words get
            their length back. Before and behind nothing is said, and blanks are right.
        blank: its id.

    Returns:
        A pair an id; none where the clip has too few frames for them.
    """
    try:
        spans = ctc_align(log_p, ids, blank=blank)
    except ValueError:
        return []
    if blank_bias and spans:  # within these frames alone: an id that is repeated would else pay for its blank outside
        first, last = spans[0][0], spans[-1][1]
        log_p = log_p[first : last + 1].clone()
        log_p[:, blank] += blank_bias
        spans = [(first + begin, first + end) for begin, end in ctc_align(log_p, ids, blank=blank)]
    return spans


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
        spans: the frames of each of its ids, see `align`; none: the words share the clip evenly.
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


def sure_frames(
    text: str, log_p: Tensor, ids: Sequence[int], processor: SpeechProcessor, blank: int
) -> list[list[float]]:
    """The frames in which CTC is surest of each word's ids.

    Their median tells to which of two windows a word belongs, and between those of two words a pause parts them: they
    are known far better than how long a word lasts.

    Args:
        text: as the processor's `said` has it.
        log_p: (S, V), CTC's log-probabilities of one clip, without padding.
        ids: of the text.
        processor: tells which characters an id stands for.
        blank: its id.

    Returns:
        Of each word, the middles of frames, in order; where the clip has too few for the text, the words share it
        evenly, and each has one.
    """
    spans = align(log_p, ids, blank=blank)
    sure = [first + int(log_p[first : last + 1, i].argmax()) for i, (first, last) in zip(ids, spans, strict=False)]
    words = _written(text, processor, len(sure))
    return [
        [sure[k] + 0.5 for k in inside] or [(n + 0.5) * len(log_p) / len(words)] for n, (_, inside) in enumerate(words)
    ]


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
        heard = any(loud[places[n][0] : first]) and any(loud[end : places[n + 1][1]])  # on both sides
        if heard and (end - first) * STEP >= PAUSE:
            places[n], places[n + 1] = (places[n][0], first), (end, places[n + 1][1])
    found = []
    for n, (word, (first, end)) in enumerate(zip(words, places, strict=True)):
        low = (places[n - 1][1] + first) // 2 if n else 0
        high = (end + places[n + 1][0] + 1) // 2 if n + 1 < len(places) else len(loud)
        heard = [t for t in range(first, end) if loud[t]]
        if not heard:  # CTC says it in silence: the nearest sound that is no other word's
            heard = sorted((t for t in range(low, high) if loud[t]), key=lambda t: max(first - t, t - end))[:1]
        if not heard:
            found.append(word)
            continue
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
