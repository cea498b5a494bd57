"""The built-in captioning data: small textured scenes, each told in five sentences, drawn from a seed, in memory.

A scene is a 64x64 image of two objects, of which one is left of, right of, above or below the other, and of no others,
or of two or three others that have one colour and shape. Its captions, one for each template, state the size, colour
and shape of the two, their relation, and the number, colour and shape of the others. `facts.py` checks such statements.

Some combinations of size, colour and shape are in no training caption: those of every test scene have at least one of
them, and those of half of the `val` scenes. Colours and shapes recur within a scene, so that words must be bound to the
same object.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_captioning.py`.
"""

from __future__ import annotations

import itertools
from random import Random
from string import Formatter

from mmattn.data.image.processor import Box
from mmattn.data.image.shapes import COLORS, RELATIONS, SHAPES, SceneObject, apart, paint, place, plural
from mmattn.data.seeds import pick
from mmattn.tasks.captioning.data import CaptionSample, Grounding

GENERATOR_VERSION = 1
NUM_SCENES = {"train": 4000, "val": 200, "test": 400}
# Their first words decide which of the two objects comes first, so that it is known what the next word names.
TELLINGS = (  # {a}, {b}: the two objects; {r}: the relation of a to b, {s}: of b to a; {o}: the others
    "a {a} is {r} a {b}, and there are {o}.",
    "this is a {b} {s} a {a}, and there are {o}.",
    "there are {o}, and a {a} is {r} a {b}.",
    "with {o} around, a {b} lies {s} a {a}.",
    "{o} and a {a} {r} a {b}.",
)
PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
NUMBERS = ("no", "one", "two", "three")
NO_OTHERS = "no other things"
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_CLEAR = 1.5  # minimum ratio of the distances along and across a relation
Look = tuple[int, int]  # a colour and a shape


def unseen(size: int, look: Look) -> bool:
    """Whether no training caption has a combination of size, colour and shape: one colour of each size and shape."""
    color, shape = look
    return color == (3 * shape + 4 * size + 2) % len(COLORS)


def _pairs(places: list[tuple[int, float, float, float]]) -> list[tuple[int, int, str]]:
    """Two objects and the clear relation of the first, the left or the upper one, to the second."""
    found = []
    for i, j in itertools.permutations(range(len(places)), 2):
        dx, dy = (places[i][axis] - places[j][axis] for axis in (1, 2))
        for word, axis, sign in (relation for relation in RELATIONS if relation[2] < 0):
            along, across = (dx, dy) if axis == 0 else (dy, dx)
            if apart(dx, dy, axis) * sign > 0 and abs(along) >= _CLEAR * abs(across):
                found.append((i, j, word))
    return found


def _looks(rng: Random) -> tuple[Look, Look, Look]:
    """Different looks of the two objects and of the others, of few colours and shapes."""
    while True:
        colors = [int(rng.random() * len(COLORS)) for _ in range(2 + int(rng.random() * 2))]
        shapes = [int(rng.random() * len(SHAPES)) for _ in range(2 + int(rng.random() * 2))]
        a, b, others = ((pick(rng, colors), pick(rng, shapes)) for _ in range(3))
        if len({a, b, others}) == 3:
            return a, b, others


def _scene(rng: Random, with_unseen: bool) -> tuple[list[SceneObject], str, int]:
    """The objects, the pair first; the relation of the first to the second; the number of others."""
    number = pick(rng, (0, 2, 3))
    while True:
        places = place(rng, 2 + number)
        pairs = _pairs(places)
        if not pairs:
            continue
        i, j, relation = pick(rng, pairs)
        a, b, others = _looks(rng)
        if (unseen(places[i][0], a) or unseen(places[j][0], b)) != with_unseen:
            continue
        order = [i, j, *(k for k in range(len(places)) if k not in (i, j))]
        looks = [a, b, *[others] * number]
        things = [SceneObject(places[k][0], *look, *places[k][1:]) for k, look in zip(order, looks, strict=True)]
        return things, relation, number


def _tell(template: str, things: list[SceneObject], relation: str, number: int) -> tuple[str, list[Grounding]]:
    """A caption, and the boxes of the words that name objects."""
    boxes = [thing.box() for thing in things]
    words: dict[str, tuple[str, list[Box]]] = {
        key: (f"{thing.word(0)} {thing.word(1)} {thing.word(2)}", [box])
        for key, thing, box in zip("ab", things, boxes, strict=False)
    }
    # The words of a relation have the box of the object to which they lead.
    words["r"], words["s"] = (PHRASES[relation], boxes[1:2]), (PHRASES[_OPPOSITE[relation]], boxes[:1])
    if number:
        words["o"] = f"{NUMBERS[number]} {things[2].word(1)} {plural(things[2].word(2))}", boxes[2:]
    else:
        words["o"] = NO_OTHERS, []
    text, groundings = "", list[Grounding]()
    for literal, key, *_ in Formatter().parse(template):
        text += literal
        if key is None:
            continue
        phrase, named = words[key]
        for word in phrase.split():
            if named:
                groundings.append(((len(text), len(text) + len(word)), named))
            text += f"{word} "
        text = text[:-1]
    return text, groundings


def make(split: str, size: int | None = None, seed: int = 0) -> list[CaptionSample]:
    """Make one split of the built-in data.

    Args:
        split: "train", "val" or "test".
        size: Number of scenes; None: that of `NUM_SCENES`. Smaller sizes are prefixes of larger ones.
        seed: Seed of the scenes; all reported figures are for 0.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in NUM_SCENES:
        raise ValueError(f"split: expected one of {', '.join(NUM_SCENES)}, found {split!r}")
    scenes = []
    for i in range(NUM_SCENES[split] if size is None else size):
        rng = Random(f"mmattn captioning {GENERATOR_VERSION} {seed} {split} {i}")
        scenes.append(_scene(rng, with_unseen=split == "test" or (split == "val" and i % 2 == 1)))
    stream = [GENERATOR_VERSION, seed, 7, list(NUM_SCENES).index(split)]
    images = paint([things for things, *_ in scenes], stream)
    samples = []
    for i, (things, relation, number) in enumerate(scenes):
        told = [_tell(template, things, relation, number) for template in TELLINGS]
        samples.append(
            CaptionSample(
                id=f"{split}-{seed}-{i:05d}",
                image=images[i],
                captions=[text for text, _ in told],
                objects=[(thing.box(), thing.labels()) for thing in things],
                groundings=[groundings for _, groundings in told],
            )
        )
    return samples
