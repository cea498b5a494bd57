"""Word timings: overlapping windows, CTC forced alignment, sound detection and the emission delay."""

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

QUIET = 0.1  # seconds: the border between windows is the middle of the quietest segment of this length
STEP = 0.01  # seconds for each level
RANGE, LOUD = 50.0, 0.15  # dynamic range in dB, and the fraction of it that is the threshold of sound
BRIDGE = 0.05  # seconds: longest silence within a word, such as a stop consonant's
PAUSE = 0.07  # seconds: shortest silence that separates two words
BLANK_BIAS = -100.0  # suppresses blanks, so that words have their greatest extent before silence is trimmed
CLIPS, TOKENS = 40, 6  # clips, and tokens of each, that measure the emission delay
BETTER = 0.01  # minimum gain in overlap with the sound for a delay to be accepted
NEAR = 0.08  # seconds: tolerance of both borders of a word in the pointing game
Span = tuple[int, int]  # a first and a last frame


@dataclass
class Word:
    """A word, with start and end in seconds from the start of the recording."""

    word: str
    start: float
    end: float

    def moved(self, seconds: float, low: float, high: float) -> Word:
        """The word shifted by some seconds, clipped to a recording that lasts from low to high."""
        start, end = (round(min(max(time + seconds, low), high), 3) for time in (self.start, self.end))
        return Word(self.word, start, end)


@dataclass
class Window:
    """A segment of a recording. Words from `low` to `high` belong to it, the others to its neighbors."""

    wave: Tensor  # (n,)
    start: float  # seconds from the start of the recording
    low: float  # seconds, likewise
    high: float
    end: float
    prediction: Any = None  # of the window, if finding the next window required it
    so_far: str | None = None  # the transcript up to the window's end, if it is not that of the windows joined

    @property
    def whole(self) -> bool:
        """Whether the window is the whole recording."""
        return self.low == 0.0 and self.high == math.inf


def windows(blocks: Iterable[Tensor], rate: int, seconds: float, overlap: float) -> Iterator[Window]:
    """Split a stream into windows that share `overlap` seconds; at most a window and a block are in memory.

    The border between the words of two windows is the quietest point of their overlap, so that no word is split or
    transcribed twice.

    Args:
        blocks: The recording, in pieces (n,) of any length.
        rate: Sample rate in Hz.
        seconds: Length of a window.
        overlap: Seconds that neighbors share.

    Raises:
        ValueError: The overlap is more than half a window.

    >>> [(w.start, w.end) for w in windows([torch.zeros(50)], rate=10, seconds=2.0, overlap=0.5)]
    [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    size, shared = round(seconds * rate), round(overlap * rate)
    if not 0 < 2 * shared <= size:
        raise ValueError(f"windows of {seconds} s cannot share {overlap} s: expected more than 0, at most half")
    kept, first, low = torch.empty(0), 0, 0.0  # buffer, its first sample, start of the window's own words
    for block in blocks:
        kept = torch.cat([kept, block])
        while len(kept) > size:
            high = (first + size - shared + _quietest(kept[size - shared : size], rate)) / rate
            yield Window(kept[:size], first / rate, low, high, (first + size) / rate)
            kept, first, low = kept[size - shared :], first + size - shared, high
    yield Window(kept, first / rate, low, math.inf, (first + len(kept)) / rate)


def _quietest(wave: Tensor, rate: int) -> int:
    """Middle of the quietest QUIET seconds of a wave (n,), in samples."""
    width = max(1, min(round(QUIET * rate), len(wave)))
    energy = wave.double().square().cumsum(0)
    sums = energy[width - 1 :] - torch.cat([energy.new_zeros(1), energy[: len(energy) - width]])
    return int(sums.argmin()) + width // 2


def align(log_p: Tensor, ids: list[int], blank: int = BLANK) -> list[Span]:
    """CTC forced alignment (Viterbi): first and last frame of each id on the most probable path.

    log_p, (S, V), has CTC's log-probabilities of one clip without padding. The result is empty if it has too few
    frames.
    """
    try:
        return ctc_align(log_p, ids, blank=blank)
    except ValueError:
        return []


def widened(log_p: Tensor, ids: list[int], spans: Sequence[Span], blank: int = BLANK) -> list[Span]:
    """Spans of `align` on a path without blanks between the first and the last span.

    CTC emits a token on few frames and blanks in between. Without these blanks each frame goes to its more probable
    token, and words regain their length. Before the first and after the last span there is silence, where blanks are
    correct: a repeated id, which requires a blank, must not be penalized there.
    """
    if not spans:
        return []
    first, last = spans[0][0], spans[-1][1]
    log_p = log_p[first : last + 1].clone()
    log_p[:, blank] += BLANK_BIAS
    return [(first + begin, first + end) for begin, end in ctc_align(log_p, ids, blank=blank)]


def surest(scores: Tensor, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """The frame of each span in which its id has its highest score of scores (S, V); empty without spans."""
    return [first + int(scores[first : last + 1, i].argmax()) for i, (first, last) in zip(ids, spans, strict=False)]


def words_in_frames(text: str, log_p: Tensor, processor: SpeechProcessor) -> list[tuple[str, int, int, list[float]]]:
    """Words of a transcript (`SpeechProcessor.detokenize`) by CTC's log-probabilities of a clip, log_p (S, V).

    Returns:
        For each word its first frame (see `widened`), the frame after its last, and the middles of the frames in which
        its ids peak. The median of the peaks decides to which of two windows a word belongs, and a pause between the
        peaks of two words separates them: peaks are far more precise than durations. If there are too few frames, or
        the tokenizer has other spans, the words share the clip evenly with one peak each.
    """
    ids, blank, S = processor.encode(text), processor.tokenizer.pad_id, len(log_p)
    spans, places = align(log_p, ids, blank), processor.tokenizer.spans(text)
    wide, peaks = widened(log_p, ids, spans, blank), surest(log_p, ids, spans)
    words, found = list(re.finditer(r"\S+", text)), []
    for n, word in enumerate(words):
        own = [k for k, (low, high) in enumerate(places) if max(low, word.start()) < min(high, word.end())]
        if own and len(places) == len(spans):
            found.append((word.group(), wide[own[0]][0], wide[own[-1]][1] + 1, [peaks[k] + 0.5 for k in own]))
        else:
            found.append((word.group(), n * S // len(words), (n + 1) * S // len(words), [(n + 0.5) * S / len(words)]))
    return found


def place_words(
    text: str, log_p: Tensor, wave: Tensor, processor: SpeechProcessor, seconds: float, start: float = 0.0
) -> tuple[list[Word], list[list[float]]]:
    """Word timings of a text, fitted to the sound, and the seconds at which the ids of each word peak.

    See `words_in_frames`.

    Args:
        text: The transcript.
        log_p: (S, V), CTC's log-probabilities.
        wave: (n,), the clip.
        processor: Of the model.
        seconds: Duration of an encoded frame.
        start: Seconds before the clip.
    """
    rate, delay, rows = processor.sample_rate, processor.delay, words_in_frames(text, log_p, processor)
    words = [Word(word, *(round(start + n * seconds, 3) for n in (first, end))) for word, first, end, _ in rows]
    words = [word.moved(-delay, start, start + len(wave) / rate) for word in words]
    peaks = [[start + max(0.0, n * seconds - delay) for n in own] for *_, own in rows]
    return fit_to_sound(words, wave, rate, start, peaks), peaks


def fit_to_sound(
    words: Sequence[Word], wave: Tensor, rate: int, start: float = 0.0, sure: Sequence[Sequence[float]] = ()
) -> list[Word]:
    """Trim silence from the ends of words, or extend words to the sound around them.

    CTC emits a token on few frames near its sound, not for its whole duration. A pause between the peaks of two words
    separates them, wherever the path changes from one to the other. A word starts with the first sound that is
    connected to its frames, after the midpoint between it and the previous word, and ends likewise.

    Args:
        words: In order.
        wave: (n,), the clip.
        rate: Sample rate in Hz.
        start: Seconds before the clip.
        sure: For each word the seconds at which its ids peak, on the same time axis; empty: pauses separate no words.
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
        own = [t for t in range(first, end) if loud[t]]
        around = [t for t in range(low, high) if loud[t]]
        if not own and not around:
            found.append(word)
            continue
        # A word that CTC places in silence takes the nearest sound that belongs to no other word.
        own = own or [min(around, key=lambda t: max(first - t, t - end))]
        begin = _last_linked(loud, range(own[0], low - 1, -1))
        last = _last_linked(loud, range(own[-1], high))
        found.append(Word(word.word, round(start + begin * STEP, 3), round(start + (last + 1) * STEP, 3)))
    return found


def _longest_pause(loud: Sequence[bool], first: int, end: int) -> tuple[int, int]:
    """Start and end of the longest run of silent steps from first to end."""
    found, begin = (first, first), first
    for place in range(first, end + 1):
        if place == end or loud[place]:
            found = max(found, (begin, place), key=lambda pause: pause[1] - pause[0])
            begin = place + 1
    return found


def _last_linked(loud: Sequence[bool], way: range) -> int:
    """The last loud step on a way from a loud one that no silence of BRIDGE seconds separates from the first."""
    last, silent = way.start, 0
    for place in way:
        if loud[place]:
            last, silent = place, 0
        elif (silent := silent + 1) * STEP >= BRIDGE:
            break
    return last


def sounding(wave: Tensor, rate: int) -> Tensor:
    """Detect sound in every STEP of a wave (n,): (T,) bool.

    The threshold is ``floor + LOUD (top - floor)``; top and floor are the levels in dB that 5 % and 90 % of the time
    exceed.
    """
    size = round(STEP * rate)
    pieces = torch.nn.functional.pad(wave.double(), (0, -len(wave) % size)).unflatten(0, (-1, size))  # (T, size)
    level = 10 * pieces.square().mean(1).clamp_min(1e-12).log10()  # (T,)
    top, floor = level.quantile(0.95), level.quantile(0.1)
    floor = torch.maximum(floor, top - RANGE)
    return level > floor + LOUD * (top - floor)


@torch.enable_grad()
def measure_delay(model: ASRModel, processor: SpeechProcessor, samples: Sequence[ASRSample]) -> float:
    """Emission delay of CTC: median seconds from the evidence for a token to the frame that emits it.

    CTC's loss does not depend on when a token is emitted. Frames with context learn to emit it some frames late or
    early, by about the same amount everywhere, which would shift word timings; a negative delay is early. The evidence
    for a token is where its score depends on the input: the mean time of the input frames t, with weights
    ``|d score / d x_t|^2``.

    This estimate is accepted if transcripts that are shifted by it overlap better with the sound of the clips. Clips
    without silence cannot show that, and the delay is 0.

    Args:
        model: With its final weights.
        processor: Of the model.
        samples: Recordings with texts, such as the training data.
    """
    model = copy.deepcopy(model).float().eval()  # gradients need float32, whatever the training precision
    device, seconds = next(model.parameters()).device, model.subsampling * processor.frame_seconds
    found: list[float] = []
    spoken: list[tuple[float, float, Tensor]] = []  # start and end in seconds, and where there is sound
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
            if float(weights.sum()) > 0.0:  # a model that ignores its input has no delay
                evidence = float((weights * times).sum() / weights.sum())
                found.append((frame + 0.5) * seconds - evidence)
    delay = round(median(found), 3) if found else 0.0
    return delay if _covered(spoken, delay) > _covered(spoken, 0.0) + BETTER else 0.0


def _covered(spoken: Sequence[tuple[float, float, Tensor]], delay: float) -> float:
    """Mean intersection over union of transcript and sound in time, with transcripts shifted by the delay."""
    shares = []
    for first, last, loud in spoken:
        times = torch.arange(len(loud)) * STEP
        text = (times >= first - delay) & (times < last - delay)
        shares.append(float((text & loud).sum() / (text | loud).sum().clamp_min(1)))
    return sum(shares) / max(len(shares), 1)


def localisation(predictor: Any, limit: int | None = None, path: str | None = None) -> PointingGame:
    """Pointing game for each voice, on forced alignments of the reference texts.

    A hit has the middle of the aligned word within the reference word. A path names recordings with reference word
    borders; None: the built-in test split.
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
