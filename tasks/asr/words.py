"""When each word was said: CTC's best path through a text that is known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from data.asr import ASRProcessor
from mmattn.generate.ctc import ctc_align
from tasks.asr.model import BLANK


@dataclass
class Word:
    """A word and its seconds from the recording's beginning."""

    word: str
    start: float
    end: float


def align(log_p: Tensor, ids: Sequence[int], blank_bias: float = 0.0) -> list[tuple[int, int]]:
    """The first and the last frame of each id on the likeliest path (Viterbi) that writes them.

    Args:
        log_p: (S, V), CTC's log-probabilities of one clip, without padding.
        ids: what is said.
        blank_bias: added to the blank's log-probability. CTC puts a token on few frames and blanks between; below zero,
            frames go to the token that is the likelier one there, and words get their length back.

    Returns:
        A pair an id; none where the clip has too few frames for them.
    """
    if blank_bias:
        log_p = log_p.clone()
        log_p[:, BLANK] += blank_bias
    try:
        return ctc_align(log_p, ids, blank=BLANK)
    except ValueError:
        return []


def words_at(
    text: str, spans: Sequence[tuple[int, int]], processor: ASRProcessor, seconds: float, start: float = 0.0
) -> list[Word]:
    """The words of a text with their times.

    Args:
        text: that the processor encodes as so many ids as there are spans.
        spans: the frames of each id, see `align`; none: the words share the clip evenly.
        processor: tells which characters an id stands for.
        seconds: of one encoded frame.
        start: seconds before the clip's first frame.
    """
    places = processor.tokenizer.spans(text)
    found = []
    for match in re.finditer(r"\S+", text):
        inside = [n for n, (low, high) in enumerate(places) if low < match.end() and high > match.start() and low < high]
        if not inside or len(spans) != len(places):
            continue
        first, last = spans[inside[0]][0], spans[inside[-1]][1]
        found.append(Word(match.group(), round(start + first * seconds, 3), round(start + (last + 1) * seconds, 3)))
    return found
