"""The statements of a caption about a built-in scene, and how many of them are true."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from mmattn.data.image.objects import Objects
from mmattn.data.image.shapes import COLORS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES, apart, plural
from mmattn.tasks.captioning.demo import NO_OTHERS, NUMBERS, PHRASES
from mmattn.tasks.captioning.metrics import tokenize


def _one(words: Sequence[str]) -> str:
    return f"({'|'.join(words)})"


_THING = f"{_one(SIZES)} {_one(COLORS)} {_one(SHAPES)}"
_PAIR = re.compile(rf"\ba {_THING} (?:is |lies )?{_one(tuple(PHRASES.values()))} a {_THING}\b")
_OTHERS = re.compile(rf"\b{_one(NUMBERS[1:])} {_one(COLORS)} {_one([plural(shape) for shape in SHAPES])}\b")
_SINGULAR = {plural(shape): shape for shape in SHAPES}
_WORDS = {phrase: word for word, phrase in PHRASES.items()}
_SIGNS = {word: (axis, sign) for word, axis, sign in RELATIONS}
PAIR, OTHERS = 3, 2  # statements about the two objects and their relation; about the others, if there are any


def check_facts(caption: str, objects: Objects) -> tuple[int, int]:
    """Count the true statements of a caption, and those that it makes or should make.

    Statements are that there is each of the two objects, whose size, colour and shape must be those of one; their
    relation; and of the others that there are such objects, and how many, or that there are none. What can't be parsed
    is missing, and a missing statement isn't true.

    Args:
        caption: The caption.
        objects: The objects of the scene, labeled by shape, colour and size.

    Returns:
        The number of true statements, and the number of all: at least that of a whole caption.

    >>> scene = [((0.1, 0.4, 0.2, 0.5), ("star", "red", "small")), ((0.7, 0.4, 0.9, 0.6), ("ring", "blue", "large"))]
    >>> check_facts("a small red star is right of a large blue circle, and there are no other things.", scene)
    (2, 4)
    """
    text = " ".join(tokenize(caption))
    pair, others = _PAIR.search(text), _OTHERS.search(text)
    nothing = NO_OTHERS in text
    true = stated = 0
    if pair is not None:
        true += _true_of_pair(pair.groups(), objects)
        stated += PAIR
    if others is not None:
        number, color, shape = others.groups()
        count = sum(labels[:2] == (_SINGULAR[shape], color) for _, labels in objects)
        true += (count > 1) + (count == NUMBERS.index(number))
        stated += OTHERS
    if nothing:
        true += len(objects) == 2
        stated += 1
    return true, max(stated, PAIR + (OTHERS if len(objects) > 2 else 1))


def _true_of_pair(words: Sequence[str], objects: Objects) -> int:
    """True statements about two objects, which are those that the words describe best."""
    one, relation, other = words[:3], words[3], words[4:]
    axis, sign = _SIGNS[_WORDS[relation]]
    best = (0, 0)  # right words, true statements
    for (box, labels), (their_box, their_labels) in itertools.permutations(objects, 2):
        right = [a == b for a, b in zip((*one, *other), (*labels[::-1], *their_labels[::-1]), strict=True)]
        dx, dy = (((box[n] + box[n + 2]) - (their_box[n] + their_box[n + 2])) / 2 * IMAGE_SIZE for n in (0, 1))
        true = all(right[:3]) + all(right[3:]) + (apart(dx, dy, axis) * sign > 0)
        best = max(best, (sum(right), true))
    return best[1]
