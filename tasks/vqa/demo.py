"""The built-in VQA data: small textured scenes and nine families of questions, drawn from a seed, in memory.

A scene is a 64x64 image of three to five objects that do not touch, each with a shape, a colour and a size. A scene has
18 questions, two of each family, with answers balanced so that the words alone are a weak predictor. The splits differ
in their scenes *and* in their wordings: `val` mixes the wordings of training with additional ones, `test` uses only
templates that neither of them has, composed of words of the training questions.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_vqa.py`.

Margins exclude ambiguous questions: there are none about the half of an object near the middle line, for example.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

from mmattn.data.image.shapes import (
    COLORS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    SIZES,
    SceneObject,
    apart,
    dress,
    paint,
    place,
    plural,
)
from mmattn.data.seeds import pick
from mmattn.tasks.vqa.data import VQASample

GENERATOR_VERSION = 1
ANSWERS = (*COLORS, *SHAPES, *SIZES, "yes", "no", *"012345", "left", "right", "top", "bottom")
NUM_SCENES = {"train": 3000, "val": 200, "test": 400}

# Templates by family: (training and half of val, the other half of val, test). {d}, {a}, {b}: one object ("large red
# star"); {p}, {q}: several ("red things"); {r}: "left of"; {x}, {y}: two halves. Words in capitals have synonyms.
_ATTRIBUTE = (
    "what {w} is the {d}? | which {w} does the {d} have? | tell me the {w} of the {d}. | the {d} is of what {w}? | "
    "what is the {w} of the {d}? | look at the {d}: which {w} is it? | in this PICTURE, what {w} does the {d} have? | "
    "can you say what {w} the {d} is?",
    "which {w} is the {d} in the PICTURE? | can you tell me what {w} the {d} has?",
    "in the PICTURE, which {w} is the {d}? | tell me which {w} the {d} has. | "
    "look at the PICTURE: what is the {w} of the {d}? | can you say the {w} of the {d}?",
)
_WORDINGS = {
    "colour": _ATTRIBUTE,
    "shape": _ATTRIBUTE,
    "size": (
        "what size is the {d}? | is the {d} small or large? | how big is the {d}? | tell me the size of the {d}. | "
        "which size does the {d} have? | is the {d} a large or a small one? | look at the {d}: is it large or small? | "
        "in this PICTURE, how large is the {d}?",
        "what is the size of the {d}? | how big does the {d} look in the PICTURE?",
        "tell me how large the {d} is. | in the PICTURE, which size is the {d}? | does the {d} look large or small? | "
        "can you say what size the {d} has?",
    ),
    "existence": (
        "is there {n} {d}? | do you see {n} {d}? | can {n} {d} be seen in this PICTURE? | "
        "does the PICTURE show {n} {d}? | is {n} {d} in the PICTURE? | does the PICTURE have {n} {d} in it? | "
        "look at the PICTURE: is there {n} {d}? | would you say that there is {n} {d}?",
        "can you see {n} {d} in the PICTURE? | does this PICTURE have {n} {d}?",
        "in this PICTURE, is there {n} {d}? | do you see {n} {d} in it? | "
        "would you say that the PICTURE has {n} {d}? | can you tell me: is {n} {d} in this PICTURE?",
    ),
    "count": (
        "how many {p} are there? | how many {p} do you see? | what is the number of {p}? | count the {p}. | "
        "how many {p} can be seen in the PICTURE? | tell me the number of {p} in the PICTURE. | "
        "how many {p} does the PICTURE show? | in this PICTURE, how many {p} are there?",
        "what number of {p} do you see? | tell me how many {p} there are.",
        "can you count the {p} in this PICTURE? | how many {p} does the PICTURE have in it? | "
        "look at the PICTURE: how many {p} do you see? | can you say what the number of {p} is?",
    ),
    "comparison": (
        "are there {m} {p} {t} {q}? | do you see {m} {p} {t} {q}? | does the PICTURE show {m} {p} {t} {q}? | "
        "in this PICTURE, are there {m} {p} {t} {q}? | would you count {m} {p} {t} {q}? | "
        "is the number of {p} {g} the number of {q}? | can {m} {p} be seen {t} {q}? | "
        "is it true that the number of {p} is {g} the number of {q}? | {m} {p} {t} {q}: yes or no?",
        "does this PICTURE have {m} {p} {t} {q} in it? | is it true that you see {m} {p} {t} {q}?",
        "can you see {m} {p} {t} {q} in this PICTURE? | would you say that there are {m} {p} {t} {q}? | "
        "yes or no: are there {m} {p} {t} {q}? | in the PICTURE, is the number of {p} {g} the number of {q}?",
    ),
    "relation_query": (
        "what {w} is the THING {r} the {d}? | which {w} does the THING {r} the {d} have? | "
        "tell me the {w} of the THING {r} the {d}. | {r} the {d} is a THING: what {w} is it? | "
        "what is the {w} of the THING that is {r} the {d}? | the THING {r} the {d} is of what {w}? | "
        "say which {w} the THING {r} the {d} has. | can you say what {w} the THING {r} the {d} is?",
        "which {w} is the THING seen {r} the {d}? | in this PICTURE, what {w} does the THING {r} the {d} have?",
        "in the PICTURE, which {w} is the THING {r} the {d}? | tell me which {w} the THING that is {r} the {d} has. | "
        "look at the THING {r} the {d}: what {w} is it? | there is a THING {r} the {d}: what is the {w} of it?",
    ),
    "relation_yes_no": (
        "is the {a} {r} the {b}? | does the {a} lie {r} the {b}? | do you see the {a} {r} the {b}? | "
        "is it true that the {a} is {r} the {b}? | the {a} is {r} the {b}: yes or no? | "
        "in this PICTURE, is the {a} {r} the {b}? | would you say that the {a} is {r} the {b}? | "
        "the {a} lies {r} the {b}: is it true?",
        "can the {a} be seen {r} the {b}? | look at the {a}: is it {r} the {b}?",
        "can you see the {a} {r} the {b}? | in the PICTURE, does the {a} lie {r} the {b}? | "
        "yes or no: is the {a} {r} the {b}? | would you say that you see the {a} {r} the {b}?",
    ),
    "half": (
        "is the {d} in the {x} or the {y} half of the PICTURE? | where is the {d}, {x} or {y}? | "
        "which half of the PICTURE is the {d} in, {x} or {y}? | {x} or {y}: where do you see the {d}? | "
        "does the {d} lie in the {x} or in the {y} half? | tell me the half that has the {d} in it: {x} or {y}? | "
        "look at the {d}: is it in the {x} half or in the {y} half? | "
        "what half of this PICTURE shows the {d}, {x} or {y}?",
        "in which half do you see the {d}, {x} or {y}? | where does the {d} lie, {x} or {y}?",
        "which half of the PICTURE has the {d} in it, {x} or {y}? | tell me where the {d} is: {x} or {y}? | "
        "do you see the {d} in the {x} or in the {y} half? | in this PICTURE, is the {d} in the {x} or the {y} half?",
    ),
}
FAMILIES = tuple(_WORDINGS)
TEMPLATES = {family: tuple(tuple(part.split(" | ")) for part in parts) for family, parts in _WORDINGS.items()}
_SYNONYMS = {
    "COLOUR": ("colour", "color"),
    "PICTURE": ("picture", "image", "scene"),
    "THING": ("thing", "object"),
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "small": ("small", "little"),
    "large": ("large", "big"),
}
_COMPARISONS = {  # by the sign of the difference of the two counts
    1: {"m": "more", "t": "than", "g": "greater than"},
    -1: {"m": "fewer", "t": "than", "g": "smaller than"},
    0: {"m": "as many", "t": "as", "g": "the same as"},
}

_HALVES = (("left", "right"), ("top", "bottom"))
_OFF_MIDDLE = 4.0  # minimum distance from the middle line in pixels for an object to be in one half
_COUNT_WEIGHT = (3.0, 3.0, 4.0, 6.0, 8.0, 10.0)  # sampling weights of counts; large counts are rare
_KINDS = ((2,), (1,), (1, 2), (0, 2), (0, 1), (0, 1, 2), (0,))  # attributes of a description: size 0, colour 1, shape 2

What = tuple[int | None, int | None, int | None]  # a description: size, colour, shape; None: not mentioned


class Question(NamedTuple):
    """A question before its wording is chosen."""

    slots: dict[str, str]  # values of the template's slots
    answer: str
    about: tuple[int, ...]  # indices of the objects that determine the answer
    second: tuple[int, ...] = ()  # those that are named by the second phrase: "is the {a} left of the {b}?"


def _keep(values: tuple, kind: tuple[int, ...]) -> What:
    """The attributes at the indices in `kind`; the others are None."""
    return (values[0] if 0 in kind else None, values[1] if 1 in kind else None, values[2] if 2 in kind else None)


def _find(things: list[SceneObject], what: What) -> tuple[int, ...]:
    """The indices of the objects that match a description."""
    kind = [k for k in range(3) if what[k] is not None]
    return tuple(i for i, thing in enumerate(things) if all(thing[k] == what[k] for k in kind))


def _names(things: list[SceneObject]) -> list[list[What]]:
    """For each object the descriptions that match no other."""
    names: list[list[What]] = [[] for _ in things]
    for kind in _KINDS:
        whats = [_keep(thing, kind) for thing in things]
        for i, what in enumerate(whats):
            if whats.count(what) == 1:
                names[i].append(what)
    return names


def _say(rng: Random, what: What, many: bool = False) -> str:
    """A description in words: "large red star", "little THINGs"."""
    size, colour, shape = what
    words = [] if size is None else [pick(rng, _SYNONYMS[SIZES[size]])]
    words += [] if colour is None else [COLORS[colour]]
    noun = "THING" if shape is None else SHAPES[shape]
    return " ".join((*words, plural(noun) if many else noun))


def _two(rng: Random, choices: list[Question]) -> list[Question]:
    """Two of the choices, with different answers if possible; empty if there are fewer than two."""
    if len(choices) < 2:
        return []
    first = pick(rng, choices)
    others = [other for other in choices if other.answer != first.answer] or [
        other for other in choices if other is not first
    ]
    return [first, pick(rng, others)]


def _attribute(rng: Random, things: list[SceneObject], names: list[list[What]], k: int) -> list[Question]:
    choices: list[Question] = []
    for i, thing in enumerate(things):
        whats = [what for what in names[i] if what[k] is None]
        if whats:
            slots = {"w": ("size", "COLOUR", "shape")[k], "d": _say(rng, pick(rng, whats))}
            choices.append(Question(slots, thing.word(k), (i,)))
    return _two(rng, choices)


def _absent(rng: Random, things: list[SceneObject], kind: tuple[int, ...]) -> What:
    """A description that matches no object; often a near miss, with the colour and the shape of different objects."""
    while True:
        values = [int(rng.random() * len(table)) for table in (SIZES, COLORS, SHAPES)]
        mixed = tuple(pick(rng, things)[k] if rng.random() < 0.6 else values[k] for k in range(3))
        if not _find(things, what := _keep(mixed, kind)):
            return what


def _existence(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    questions: list[Question] = []
    for answer in ("yes", "no"):
        kind = pick(rng, _KINDS[:6])
        what = _keep(pick(rng, things), kind) if answer == "yes" else _absent(rng, things, kind)
        words = _say(rng, what)
        slots = {"d": words, "n": "an" if words[0] == "o" else "a"}
        questions.append(Question(slots, answer, _find(things, what)))
    return questions


def _count(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    by_count: dict[int, list[What]] = {0: [_absent(rng, things, pick(rng, _KINDS[:5]))]}
    for kind in ((), *_KINDS[:5], (0,)):
        for what in dict.fromkeys(_keep(thing, kind) for thing in things):
            by_count.setdefault(len(_find(things, what)), []).append(what)
    questions: list[Question] = []
    for _ in range(2):
        point = rng.random() * sum(_COUNT_WEIGHT[count] for count in by_count)
        for count in sorted(by_count):
            point -= _COUNT_WEIGHT[count]
            if point < 0:
                break
        what = pick(rng, by_count.pop(count))
        questions.append(Question({"p": _say(rng, what, many=True)}, str(count), _find(things, what)))
    return questions


def _comparison(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    """Comparisons of the counts of two colours, shapes or sizes; one with the answer yes, one with no."""
    questions: list[Question] = []
    for answer in ("yes", "no"):
        sign = pick(rng, (1, -1, 0))
        for _ in range(8):
            k = pick(rng, (0, 1, 1, 2, 2))
            here = [thing[k] for thing in things]
            values = range(len((SIZES, COLORS, SHAPES)[k])) if rng.random() < 0.3 else sorted(set(here))
            pairs = []
            for a, b in itertools.permutations(values, 2):
                na, nb = here.count(a), here.count(b)
                if (na or nb) and ((na > nb) - (na < nb) == sign) == (answer == "yes"):
                    pairs.append((a, b))
            if pairs:
                p, q = (_keep((value,) * 3, (k,)) for value in pick(rng, pairs))
                slots = {"p": _say(rng, p, many=True), "q": _say(rng, q, many=True), **_COMPARISONS[sign]}
                first, second = _find(things, p), _find(things, q)
                questions.append(Question(slots, answer, tuple(sorted(first + second)), second))
                break
    return questions


def _outermost(centers: list[tuple[float, float]], axis: int, sign: int) -> tuple[int, int] | None:
    """The second outermost and the outermost object on a side; None if objects are too close to be unambiguous."""
    *_, second, first = sorted(range(len(centers)), key=lambda i: sign * centers[i][axis])
    (x, y), (beyond_x, beyond_y) = centers[second], centers[first]
    third_is_apart = all(
        sign * (centers[second][axis] - centers[i][axis]) >= 1.0
        for i in range(len(centers))
        if i not in (first, second)
    )
    return (second, first) if third_is_apart and apart(beyond_x - x, beyond_y - y, axis) else None


def _relation_query(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    """Questions about the only object on a side of another one."""
    choices: list[Question] = []
    for word, axis, sign in RELATIONS:
        pair = _outermost([(thing.x, thing.y) for thing in things], axis, sign)
        if pair is None or not names[pair[0]]:
            continue
        target, k, what = things[pair[1]], pick(rng, (1, 2)), pick(rng, names[pair[0]])
        if what[k] == target[k] and rng.random() < 0.3:  # otherwise the answer would be in the question too often
            continue
        slots = {"w": ("", "COLOUR", "shape")[k], "d": _say(rng, what), "r": pick(rng, _SYNONYMS[word])}
        # "what colour is the thing left of the star?" names the object of the answer first
        choices.append(Question(slots, target.word(k), pair, (pair[0],)))
    return _two(rng, choices)


def _relation_yes_no(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    choices: list[Question] = []
    for i, j in itertools.permutations(range(len(things)), 2):
        for word, axis, sign in RELATIONS:
            distance = apart(things[i].x - things[j].x, things[i].y - things[j].y, axis)
            if names[i] and names[j] and distance:
                slots = {"a": _say(rng, pick(rng, names[i])), "b": _say(rng, pick(rng, names[j]))}
                slots["r"] = pick(rng, _SYNONYMS[word])
                choices.append(Question(slots, "yes" if distance * sign > 0 else "no", (i, j), (j,)))
    return _two(rng, choices)


def _half(rng: Random, things: list[SceneObject], names: list[list[What]]) -> list[Question]:
    choices: list[Question] = []
    for i, axis in itertools.product(range(len(things)), (0, 1)):
        off = things[i][3 + axis] - IMAGE_SIZE / 2
        if names[i] and abs(off) >= _OFF_MIDDLE:
            x, y = _HALVES[axis][:: pick(rng, (1, -1))]
            slots = {"d": _say(rng, pick(rng, names[i])), "x": x, "y": y}
            choices.append(Question(slots, _HALVES[axis][off > 0], (i,)))
    return _two(rng, choices)


_ASK: dict[str, Callable[[Random, list[SceneObject], list[list[What]]], list[Question]]] = {
    "colour": partial(_attribute, k=1),
    "shape": partial(_attribute, k=2),
    "size": partial(_attribute, k=0),
    "existence": _existence,
    "count": _count,
    "comparison": _comparison,
    "relation_query": _relation_query,
    "relation_yes_no": _relation_yes_no,
    "half": _half,
}


def _scene(rng: Random) -> tuple[list[SceneObject], dict[str, list[Question]]]:
    """A scene that admits two questions of every family, and its questions."""
    number = 3 + int(rng.random() * 3)
    while True:
        places = place(rng, number)
        if sum(_outermost([p[1:3] for p in places], axis, sign) is not None for _, axis, sign in RELATIONS) < 2:
            continue
        for _ in range(6):
            things = dress(rng, places)
            names = _names(things)
            asked: dict[str, list[Question]] = {}
            for family in ("relation_query", *_ASK):  # the family that fails most often first
                if family not in asked:
                    asked[family] = _ASK[family](rng, things, names)
                    if len(asked[family]) < 2:
                        break
            else:
                return things, asked


def _word(rng: Random, family: str, slots: dict[str, str], split: str) -> str:
    known, others, unseen = TEMPLATES[family]
    templates = unseen if split == "test" else others if split == "val" and rng.random() < 0.5 else known
    text = pick(rng, templates).format(**slots)
    for word in ("PICTURE", "THING", "COLOUR"):
        if word in text:
            text = text.replace(word, pick(rng, _SYNONYMS[word]))
    return text.replace(" a object", " an object")


def make(split: str, size: int | None = None, seed: int = 0) -> list[VQASample]:
    """Make one split of the built-in data.

    Args:
        split: "train", "val" or "test".
        size: Number of scenes; None: that of `NUM_SCENES`. Smaller sizes are prefixes of larger ones.
        seed: Seed of scenes and questions; all reported figures are for 0.

    Returns:
        Eighteen consecutive samples per scene, which share its image and `image_id`.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in NUM_SCENES:
        raise ValueError(f"split: expected one of {', '.join(NUM_SCENES)}, found {split!r}")
    number = NUM_SCENES[split] if size is None else size
    scenes = []
    for i in range(number):
        rng = Random(f"mmattn vqa {GENERATOR_VERSION} {seed} {split} {i}")
        scenes.append((rng, *_scene(rng)))
    pictures = paint([things for _, things, _ in scenes], [GENERATOR_VERSION, seed, list(NUM_SCENES).index(split)])
    samples: list[VQASample] = []
    for i, (rng, things, asked) in enumerate(scenes):
        image_id = f"{split}-{seed}-{i:05d}"
        boxes = [thing.box() for thing in things]
        objects = [(box, thing.labels()) for box, thing in zip(boxes, things, strict=True)]
        for n, (family, (slots, answer, about, second)) in enumerate((f, q) for f in FAMILIES for q in asked[f]):
            samples.append(
                VQASample(
                    id=f"{image_id}-{n:02d}",
                    image=pictures[i],
                    question=_word(rng, family, slots, split),
                    answers=[answer],
                    image_id=image_id,
                    question_type=family,
                    answer_type="yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other",
                    regions=[boxes[k] for k in about],
                    phrases=[int(k in second) for k in about],
                    objects=objects,
                )
            )
    return samples
