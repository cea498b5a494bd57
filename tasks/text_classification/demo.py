"""The built-in reviews: visitors of an inn, whose verdict depends on the order of clauses and on negation.

Three fifths of the reviews have a sentence with two opinions, of which one counts: behind "but", or before or behind
"although". The other opinion is the opposite, so that both verdicts have the same words: "the soup was good, but the
room was not fine" and "the soup was not good, but the room was fine". The others have one opinion. Sentences around it
tell what happened, or what somebody else thinks.

For tagging, things that are praised and blamed are entities (BIO), whichever opinion counts.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_texts.py`.
"""

from __future__ import annotations

from random import Random

from mmattn.data.seeds import pick
from mmattn.tasks.text_classification.data import TextSample

GENERATOR_VERSION = 1
NUM_SAMPLES = {"train": 8000, "val": 500, "test": 1000}
POSITIVE, NEGATIVE = "positive", "negative"

THINGS = ("soup", "bread", "room", "waiter", "garden", "bed", "coffee", "price", "view", "kitchen", "cheese", "window")
ADJECTIVES = ("old", "new", "small", "large", "first", "last")
GOOD = ("good", "pleasant", "excellent", "charming", "splendid", "lovely", "fine", "wonderful")
BAD = ("bad", "awful", "dreadful", "poor", "terrible", "nasty", "horrible", "dull")
NEGATIONS = ("not", "never", "hardly", "by no means")
VERBS = ("was", "seemed")
JOINED = (  # how the clause that counts (A) and the other one (B) are joined
    "{B}, but {A}.",
    "Although {B}, {A}.",
    "{A}, although {B}.",
    "{B}; however, {A}.",
    "Even if {B}, {A}.",
    "{A}, even if {B}.",
)
REMARKS = (
    "We came on a rainy day.",
    "The bus left at noon.",
    "There were two other guests.",
    "We paid in the morning.",
    "A dog slept by the door.",
    "It was the end of the summer.",
)
OTHERS = ("my friend", "the driver", "her brother", "an old guest", "our neighbor")


def make(split: str, size: int | None = None) -> list[TextSample]:
    """Make the samples of a split.

    Args:
        split: "train", "val" or "test".
        size: Number of samples; None: all.

    Raises:
        ValueError: There is no such split.
    """
    return [_Review(split, number).sample() for number in _numbers(split, size)]


def make_tagged(split: str, size: int | None = None) -> list[TextSample]:
    """Make the same reviews as words with BIO tags of what is praised and blamed; see `make`."""
    return [_Review(split, number).tagged() for number in _numbers(split, size)]


def _numbers(split: str, size: int | None) -> range:
    if split not in NUM_SAMPLES:
        raise ValueError(f"split: expected one of {', '.join(NUM_SAMPLES)}, found {split!r}")
    return range(NUM_SAMPLES[split] if size is None else min(size, NUM_SAMPLES[split]))


class _Review:
    """A review as words with marks: of entities, and of the words that decide."""

    def __init__(self, split: str, number: int) -> None:
        self.id = f"{split}-{number}"
        random = Random(f"{GENERATOR_VERSION} {split} {number}")
        self.verdict = pick(random, (POSITIVE, NEGATIVE))
        self.words: list[tuple[str, str, bool]] = []  # word, tag, whether it decides
        things = _some(random, THINGS, 3)
        before, after = int(random.random() * 2), int(random.random() * 2)
        for _ in range(before):
            self._add(pick(random, REMARKS))
        if random.random() < 0.4:
            self._hearsay(random, things[2])
        other = NEGATIVE if self.verdict == POSITIVE else POSITIVE
        is_pair = random.random() < 0.6
        joined, negated = (pick(random, JOINED), 0.4) if is_pair else ("{A}.", 0.2)
        clauses = {
            "A": _clause(random, things[0], self.verdict, True, negated),
            "B": _clause(random, things[1], other, False, negated),
        }
        start = len(self.words)
        for part in joined.replace(",", " ,").replace(";", " ;").replace(".", " .").split():
            self.words += clauses[part[1]] if part[0] == "{" else [(part, "O", False)]
        first = self.words[start]
        self.words[start] = (first[0].capitalize(), *first[1:])
        if random.random() < 0.2:
            self._hearsay(random, things[2])
        for _ in range(after):
            self._add(pick(random, REMARKS))

    def _add(self, sentence: str) -> None:
        self.words += [(word, "O", False) for word in sentence.replace(".", " .").split()]

    def _hearsay(self, random: Random, thing: str) -> None:
        """What somebody else thinks, which neither counts nor praises."""
        view = pick(random, (POSITIVE, NEGATIVE))
        clause = [(word, "O", False) for word, *_ in _clause(random, thing, view, False, 0.4)]
        start = [(word, "O", False) for word in f"{pick(random, OTHERS).capitalize()} said that".split()]
        self.words += [*start, *clause, (".", "O", False)]

    def sample(self) -> TextSample:
        """The review as a text, without spaces before punctuation marks."""
        text, evidence = "", []
        for word, _, decides in self.words:
            text += "" if not text or word in ",;." else " "
            if decides:
                evidence.append((len(text), len(text) + len(word)))
            text += word
        return TextSample(self.id, text, labels=[self.verdict], evidence=evidence)

    def tagged(self) -> TextSample:
        """The review as words with tags."""
        words = [word for word, *_ in self.words]
        return TextSample(self.id, " ".join(words), labels=[tag for _, tag, _ in self.words], words=words)


def _clause(random: Random, thing: str, view: str, decides: bool, negated: float) -> list[tuple[str, str, bool]]:
    """An opinion, with a negation in a share of them."""
    is_negated = random.random() < negated
    adjective = pick(random, GOOD if (view == POSITIVE) != is_negated else BAD)
    tag = "PRAISED" if view == POSITIVE else "BLAMED"
    words = [("the", "O", False)]
    if random.random() < 0.3:
        words += [(pick(random, ADJECTIVES), f"B-{tag}", False), (thing, f"I-{tag}", False)]
    else:
        words.append((thing, f"B-{tag}", False))
    words.append((pick(random, VERBS), "O", False))
    if is_negated:
        words += [(word, "O", decides) for word in pick(random, NEGATIONS).split()]
    return [*words, (adjective, "O", decides)]


def _some(random: Random, items: tuple[str, ...], count: int) -> list[str]:
    """Draw different items."""
    rest = list(items)
    return [rest.pop(int(random.random() * len(rest))) for _ in range(count)]
