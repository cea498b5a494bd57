"""Entities of BIO tags: their spans and types, and F1 as the package seqeval counts it."""

from __future__ import annotations

import re
from collections.abc import Sequence

Entity = tuple[str, int, int]  # type, first word, and the word behind the last
OUTSIDE = "O"
_TAG = re.compile(r"[BIESU]-.+")
_STARTS, _ENDS = "BSU", "ESU"


def is_scheme(names: Sequence[str]) -> bool:
    """Whether labels are BIO tags (or BIOES), of entities, rather than parts of speech.

    >>> is_scheme(["O", "B-place", "I-place"]), is_scheme(["NOUN", "VERB"])
    (True, False)
    """
    others = [name for name in names if name != OUTSIDE]
    return bool(others) and all(_TAG.fullmatch(name) for name in others)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence's tags, as conlleval and seqeval find them: an I without a B begins one, too.

    >>> entities(["B-place", "I-place", "O", "I-person", "I-place"])
    [('place', 0, 2), ('person', 3, 4), ('place', 4, 5)]
    """
    found: list[Entity] = []
    start: int | None = None
    before, kind = OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, own = (tag[0], tag[2:]) if tag != OUTSIDE else (OUTSIDE, "")
        inside = before != OUTSIDE
        if start is not None and (mark == OUTSIDE or mark in _STARTS or before in _ENDS or own != kind):
            found.append((kind, start, place))
            start = None
        if mark != OUTSIDE and (mark in _STARTS or not inside or before in _ENDS or own != kind):
            start = place
        before, kind = mark, own
    return found


def entity_counts(predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
    """Numbers of predicted entities, of true ones, and of those that are both, with equal words and type."""
    found, wanted = set(entities(predicted)), set(entities(true))
    return len(found), len(wanted), len(found & wanted)


def f1_of(found: float, wanted: float, both: float) -> tuple[float, float, float]:
    """Precision, recall and F1 from numbers of entities; zero without any."""
    precision, recall = both / found if found else 0.0, both / wanted if wanted else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0
