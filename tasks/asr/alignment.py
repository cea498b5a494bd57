"""When words are said: recordings in windows, CTC's best path through a known text, and where there is sound."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mmattn.generate.ctc import ctc_align
from mmattn.tasks.asr.data import ASRDataset, ASRSample
from mmattn.tasks.asr.model import BLANK, ASRModel
from mmattn.tasks.asr.processor import SpeechProcessor
from mmattn.tasks.common.pointing import PointingGame

QUIET = 0.1  # seconds: a border between windows lies amid the quietest so many
STEP = 0.01  # seconds of a level
RANGE, LOUD = 50.0, 0.15  # dB below the loudest that are looked at, and the share of what is left of them that is sound
BRIDGE = 0.05  # seconds: a silence inside a word, such as of a stop, is no longer
PAUSE = 0.07  # seconds: a silence between the characters of two words, no shorter, parts them
BLANK_BIAS = -100.0  # no blanks: to be cut off where there is no sound, a word begins with all that it may last
CLIPS, TOKENS = 40, 6  # that are looked at for a delay, and of each clip
BETTER = 0.01  # by which what is said must lie better on the sound, so that a delay is believed
NEAR = 0.08  # seconds by which both borders of a word may be off, for the pointing game
Span = tuple[int, int]  # a first and a last frame


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


@dataclass
class Window:
    """A piece of a recording. Words that are said from `low` to `high` are its own; the rest is its neighbours'."""

    wave: Tensor  # (n,)
    start: float  # seconds from the recording's beginning
    low: float  # seconds, likewise
    high: float
    end: float
    said: Any = None  # what it says, where that had to be known to find the next one

    @property
    def whole(self) -> bool:
        """Whether it is all of the recording."""
        return self.low == 0.0 and self.high == math.inf


def windows(blocks: Iterable[Tensor], rate: int, seconds: float, overlap: float) -> Iterator[Window]:
    """Cuts a stream into windows that share `overlap` seconds; never more than a window and a block are in memory.

    The border between the words of two windows is the quietest place of what they share, so that no word is cut in two
    or said twice.

    Args:
        blocks: the recording, in pieces (n,) of any length.
        rate: samples a second.
        seconds: of a window.
        overlap: seconds that neighbours share.

    Raises:
        ValueError: they share more than half a window.

    >>> [(w.start, w.end) for w in windows([torch.zeros(50)], rate=10, seconds=2.0, overlap=0.5)]
    [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    size, shared = round(seconds * rate), round(overlap * rate)
    if not 0 < 2 * shared <= size:
        raise ValueError(f"windows of {seconds} s cannot share {overlap} s: expected more than 0, at most half")
    kept, first, low = torch.empty(0), 0, 0.0  # what is not done with, where it begins, where the words begin
    for block in blocks:
        kept = torch.cat([kept, block])
        while len(kept) > size:
            high = (first + size - shared + _quietest(kept[size - shared : size], rate)) / rate
            yield Window(kept[:size], first / rate, low, high, (first + size) / rate)
            kept, first, low = kept[size - shared :], first + size - shared, high
    yield Window(kept, first / rate, low, math.inf, (first + len(kept)) / rate)


def _quietest(wave: Tensor, rate: int) -> int:
    """The middle of the quietest QUIET seconds of a wave (n,)."""
    width = max(1, min(round(QUIET * rate), len(wave)))
    energy = wave.double().square().cumsum(0)
    sums = energy[width - 1 :] - torch.cat([energy.new_zeros(1), energy[: len(energy) - width]])
    return int(sums.argmin()) + width // 2


def align(log_p: Tensor, ids: list[int], blank: int = BLANK) -> list[Span]:
    """The first and the last frame of each id on the likeliest path (Viterbi) that writes them.

    There are none where log_p, (S, V), CTC's log-probabilities of one clip without padding, has too few frames.
    """
    try:
        return ctc_align(log_p, ids, blank=blank)
    except ValueError:
        return []


def widened(log_p: Tensor, ids: list[int], spans: Sequence[Span], blank: int = BLANK) -> list[Span]:
    """The spans that `align` gave, on a path without blanks between the first and the last of them.

    CTC puts a token on few frames and blanks between; without them, frames go to the token that is the likelier one
    there, and words get their length back. Before and behind nothing is said, and blanks are right: an id that is
    repeated and needs one must not pay for it there.
    """
    if not spans:
        return []
    first, last = spans[0][0], spans[-1][1]
    log_p = log_p[first : last + 1].clone()
    log_p[:, blank] += BLANK_BIAS
    return [(first + begin, first + end) for begin, end in ctc_align(log_p, ids, blank=blank)]


def surest(scores: Tensor, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """The frame of each span in which its id scores highest, scores being (S, V); none where there are no spans."""
    return [first + int(scores[first : last + 1, i].argmax()) for i, (first, last) in zip(ids, spans, strict=False)]


def words_in_frames(text: str, log_p: Tensor, processor: SpeechProcessor) -> list[tuple[str, int, int, list[float]]]:
    """The words of a text, as the processor's `said` has it, by log_p (S, V), CTC's log-probabilities of a clip.

    Returns:
        Of each word its first frame (see `widened`), the one behind its last, and the middles of the frames in which
        CTC is surest of its ids. The median of these tells to which of two windows a word belongs, and between those of
        two words a pause parts them: they are known far better than how long a word lasts. Where there are too few
        frames, or the tokenizer counts otherwise, the words share the clip evenly, and each has one.
    """
    ids, blank, S = processor.encode(text), processor.tokenizer.pad_id, len(log_p)
    spans, places = align(log_p, ids, blank), processor.tokenizer.spans(text)
    wide, sure = widened(log_p, ids, spans, blank), surest(log_p, ids, spans)
    words, found = list(re.finditer(r"\S+", text)), []
    for n, word in enumerate(words):
        own = [k for k, (low, high) in enumerate(places) if max(low, word.start()) < min(high, word.end())]
        if own and len(places) == len(spans):
            found.append((word.group(), wide[own[0]][0], wide[own[-1]][1] + 1, [sure[k] + 0.5 for k in own]))
        else:
            found.append((word.group(), n * S // len(words), (n + 1) * S // len(words), [(n + 0.5) * S / len(words)]))
    return found


def place_words(
    text: str, log_p: Tensor, wave: Tensor, processor: SpeechProcessor, seconds: float, start: float = 0.0
) -> tuple[list[Word], list[list[float]]]:
    """When each word of a text was said, fitted to the sound, and when CTC is surest of its ids.

    Of a clip, wave (n,) with so many seconds before it, whose encoded frames last `seconds`; see `words_in_frames`.
    """
    rate, late, rows = processor.sample_rate, processor.delay, words_in_frames(text, log_p, processor)
    words = [Word(word, *(round(start + n * seconds, 3) for n in (first, end))) for word, first, end, _ in rows]
    words = [word.moved(-late, start, start + len(wave) / rate) for word in words]
    sure = [[start + max(0.0, n * seconds - late) for n in own] for *_, own in rows]
    return fit_to_sound(words, wave, rate, start, sure), sure


def fit_to_sound(
    words: Sequence[Word], wave: Tensor, rate: int, start: float = 0.0, sure: Sequence[Sequence[float]] = ()
) -> list[Word]:
    """The words with the silence at their ends cut off, or the sound around them taken in.

    CTC puts a token on few frames, anywhere near what it stands for, and not on all that it lasts. A pause between the
    tokens of two words parts them, wherever its path goes from one to the other. A word begins with the first sound
    that hangs together with what CTC points at, after the middle between it and the word before, and ends likewise.

    Args:
        words: in order.
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

    It is what is louder than ``floor + LOUD (top - floor)``, top and floor being the levels in dB that 5 % and 90 % of
    the time exceed.
    """
    size = round(STEP * rate)
    pieces = torch.nn.functional.pad(wave.double(), (0, -len(wave) % size)).unflatten(0, (-1, size))  # (T, size)
    level = 10 * pieces.square().mean(1).clamp_min(1e-12).log10()  # (T,)
    top, floor = level.quantile(0.95), level.quantile(0.1)
    floor = torch.maximum(floor, top - RANGE)
    return level > floor + LOUD * (top - floor)


@torch.enable_grad()
def measure_delay(model: ASRModel, processor: SpeechProcessor, samples: Sequence[ASRSample]) -> float:
    """Median seconds from what a token rests on to the frame that says it; below 0 where that is earlier.

    CTC's loss is the same whenever a token is said. Frames that see their neighbours learn to say it some frames late
    or early, much the same everywhere in a recording, and word times would be off by that. What a token rests on lies
    where its score changes with the input: the time of frame t, averaged with weights ``|d score / d x_t|^2``.

    That is an estimate, and is believed where the clips agree with it: where what is said, moved by it, covers more of
    the sound and less of the silence before and behind. In clips without silence nothing can be told, and it is 0.

    The weights are final; the samples are recordings with their texts, such as the model was trained on.
    """
    model = copy.deepcopy(model).float().eval()  # whatever it was trained in, slopes need the digits
    device, seconds = next(model.parameters()).device, model.subsampling * processor.frame_seconds
    found: list[float] = []
    spoken: list[tuple[float, float, Tensor]] = []  # from and to, in seconds, and where there is sound
    for sample in samples[:: max(1, -(-len(samples) // CLIPS))]:
        ids = processor.encode(sample.text)
        wave = sample.read(processor.sample_rate)
        features = processor.features(wave)[None].to(device).requires_grad_()  # (1, T, M)
        memory, _ = model.encode(features, torch.ones_like(features[:, :, 0], dtype=torch.bool))
        scores = model.head.ctc(memory)[0]  # (S, V)
        spans = align(scores.detach().log_softmax(-1), ids)
        if spans:
            places = (spans[0][0] * seconds, (spans[-1][1] + 1) * seconds)
            spoken.append((*places, sounding(wave, processor.sample_rate)))
        times = torch.arange(features.shape[1], device=device) * processor.frame_seconds
        frames = surest(scores, ids, spans)
        for token, frame in list(zip(ids, frames, strict=False))[:: max(1, -(-len(frames) // TOKENS))]:
            (slope,) = torch.autograd.grad(scores[frame, token] - scores[frame, BLANK], features, retain_graph=True)
            weights = slope[0].double().square().sum(-1)  # (T,)
            if float(weights.sum()) > 0.0:  # a model that hears nothing has no delay
                rests_on = float((weights * times).sum() / weights.sum())
                found.append((frame + 0.5) * seconds - rests_on)
    delay = round(median(found), 3) if found else 0.0
    return delay if _covered(spoken, delay) > _covered(spoken, 0.0) + BETTER else 0.0


def _covered(spoken: Sequence[tuple[float, float, Tensor]], delay: float) -> float:
    """What is said and sounds, of what is said or sounds: the mean share over clips, all said so much earlier."""
    shares = []
    for first, last, loud in spoken:
        times = torch.arange(len(loud)) * STEP
        said = (times >= first - delay) & (times < last - delay)
        shares.append(float((said & loud).sum() / (said | loud).sum().clamp_min(1)))
    return sum(shares) / max(len(shares), 1)


def localisation(predictor: Any, limit: int | None = None, path: str | None = None) -> PointingGame:
    """Per voice: words of the true texts, by forced alignment; a hit has its middle within the true word.

    A path names recordings with their words' true borders; None: the built-in test part.
    """
    from mmattn.tasks.asr.demo import make

    samples = make("test", limit) if path is None else ASRDataset(path).samples[:limit]
    game, errors = PointingGame(f"borders within {1000 * NEAR:.0f} ms"), list[float]()
    for sample, words in zip(samples, predictor.aligned(samples), strict=True):
        for word, (_, start, end) in zip(words, sample.words, strict=True):
            off = (abs(word.start - start), abs(word.end - end))
            errors += off
            game.add(sample.speaker, start <= (word.start + word.end) / 2 < end, max(off) <= NEAR)
    game.notes.append(f"asr: median error of starts and ends {1000 * median(errors):.0f} ms")
    return game
