"""The built-in questions: stories of a village, each question about one of its people, who is not named in it.

A story tells of three or four people, one after another: where they live, which animal they keep, what they carry and
on what they work, a fact in each sentence, in any order, with sentences about no one between them. A person is named at
first, later often "he" or "she". A question describes a person by one fact ("the one who lives by the old mill") and
asks for another, so that it takes both: the sentence that fits the description, and another one about the same person.
The other people have such facts, too, with some of the same words, so that words shared with the question do not tell
the answer.

A third of the questions has no answer: that fact about the person is missing, or nobody fits the description.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_texts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from mmattn.data.seeds import pick
from mmattn.tasks.qa.data import Answer, QASample

GENERATOR_VERSION = 1
NUM_QUESTIONS = {"train": 30_000, "val": 600, "test": 1200}

WOMEN = ["Ada", "Clara", "Edith", "Greta", "Irma", "Karin", "Marta", "Olga", "Rosa", "Tilda"]
MEN = ["Bruno", "Dario", "Felix", "Hugo", "Jonas", "Leo", "Nils", "Pavel", "Stefan", "Viktor"]
ADJECTIVES = ["old", "new", "small", "large", "white", "black", "grey", "brown", "green", "yellow"]


class Relation(NamedTuple):
    """A property that people have: {a} is its adjective and noun, {p} the person, {d} a description of one."""

    nouns: tuple[str, ...]
    facts: tuple[str, ...]
    described: tuple[str, ...]
    asked: tuple[str, ...]


RELATIONS = {
    "home": Relation(
        ("mill", "bridge", "church", "market", "orchard", "station", "tower", "well"),
        ("{p} lives by the {a}.", "{p} has a house next to the {a}.", "{p} can see the {a} from the window."),
        ("lives by the {a}", "has a house next to the {a}"),
        ("Where does the one who {d} live?", "What is next to the house of the one who {d}?"),
    ),
    "animal": Relation(
        ("cat", "dog", "goat", "goose", "horse", "pig", "rabbit", "sheep"),
        ("{p} keeps the {a}.", "{p} feeds the {a} every morning.", "{p} looks after the {a}."),
        ("keeps the {a}", "feeds the {a} every morning"),
        ("Which animal does the one who {d} keep?", "What does the one who {d} feed every morning?"),
    ),
    "load": Relation(
        ("basket", "box", "bucket", "ladder", "lamp", "rope", "sack", "umbrella"),
        ("{p} carries the {a}.", "{p} walks home with the {a}.", "{p} has the {a} in one hand."),
        ("carries the {a}", "walks home with the {a}"),
        ("What does the one who {d} carry?", "What is in the hand of the one who {d}?"),
    ),
    "work": Relation(
        ("boat", "cart", "clock", "fence", "gate", "oven", "pump", "wheel"),
        ("{p} repairs the {a}.", "{p} works on the {a} all day.", "{p} is busy with the {a}."),
        ("repairs the {a}", "works on the {a} all day"),
        ("What does the one who {d} repair?", "On what does the one who {d} work all day?"),
    ),
}
REMARKS = (
    "Nobody has seen the {a} today.",
    "It rains, and the street is empty.",
    "The {a} that was sold last year was better.",
    "The bells ring at noon.",
    "There was once a fire in the village.",
)


class _Fact(NamedTuple):
    sentence: str  # with {p} for the person
    relation: str
    value: str


def make(split: str, size: int | None = None) -> list[QASample]:
    """Make the samples of a split.

    Args:
        split: "train", "val" or "test".
        size: Number of samples; None: all.

    Raises:
        ValueError: There is no such split.
    """
    if split not in NUM_QUESTIONS:
        raise ValueError(f"split: expected one of {', '.join(NUM_QUESTIONS)}, found {split!r}")
    count = NUM_QUESTIONS[split] if size is None else min(size, NUM_QUESTIONS[split])
    return [_sample(split, number) for number in range(count)]


def _sample(split: str, number: int) -> QASample:
    random = Random(f"{GENERATOR_VERSION} {split} {number}")
    people = _some(random, WOMEN + MEN, 3 + int(random.random() * 2))
    relations = _some(random, list(RELATIONS), 3)
    known, asked = relations[:2]
    values = {
        relation: _some(random, [f"{a} {n}" for a in ADJECTIVES for n in RELATIONS[relation].nouns], len(people))
        for relation in relations
    }
    one = int(random.random() * len(people))
    draw = random.random()  # two thirds have an answer, a fifth lacks it, the others the description
    missing = None if draw < 2 / 3 else asked if draw < 0.867 else known
    told: list[str] = []
    places: dict[tuple[int, str], int] = {}
    for index, name in enumerate(people):
        facts = [
            _Fact(pick(random, RELATIONS[relation].facts), relation, values[relation][index])
            for relation in _some(random, relations, 3)
            if not (index == one and relation == missing) and (index == one or random.random() < 0.85)
        ]
        for place, fact in enumerate(facts):
            pronoun = "She" if name in WOMEN else "He"
            person = name if place == 0 or random.random() < 0.25 else pronoun
            sentence = fact.sentence.format(p=person, a=fact.value)
            places[index, fact.relation] = len(told)
            told.append(sentence)
            if random.random() < 0.12:
                other = pick(random, RELATIONS[pick(random, relations)].nouns)
                told.append(pick(random, REMARKS).format(a=f"{pick(random, ADJECTIVES)} {other}"))
    starts = [0]
    for sentence in told:
        starts.append(starts[-1] + len(sentence) + 1)
    context = " ".join(told)
    description = pick(random, RELATIONS[known].described).format(a=values[known][one])
    question = pick(random, RELATIONS[asked].asked).format(d=description)
    facts_used = [places[one, relation] for relation in (known, asked) if (one, relation) in places]
    evidence = [(starts[n], starts[n] + len(told[n])) for n in sorted(facts_used)] if missing is None else []
    answers = []
    if missing is None:
        value = values[asked][one]
        answers = [Answer(value, context.index(value, starts[places[one, asked]]))]
    return QASample(f"{split}-{number}", question, context, answers, kind=f"{known} to {asked}", evidence=evidence)


def _some(random: Random, items: Sequence[Any], count: int) -> list[Any]:
    """Draw different items, in random order."""
    rest = list(items)
    return [rest.pop(int(random.random() * len(rest))) for _ in range(count)]
