"""The built-in texts: lines of a seeded grammar, whose optimal loss is known exactly.

Each document has three lines, each of one of three kinds with equal probability:

- a sentence, whose verb agrees with its subject across nested relative clauses: "the cat that the dogs chase sleeps .";
- brackets of three kinds that close in the reverse order: "( [ ] { } ) .";
- a sum of two numbers, the digits from the right to the left: "7 4 + 3 5 = 0 0 1 ." is 47 + 53 = 100.

Whatever is drawn can be read off the text, so that the probability of a text is the product of those of all draws, and
the mean negative logarithm is the least loss that any model can have.

The generator is frozen by `GENERATOR_VERSION` and the digests in `tests/data/test_demo_text_generation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from mmattn.tasks.text_generation.data import Origin, TextSample

GENERATOR_VERSION = 1
SIZES = {"train": 30_000, "val": 400, "test": 1000}
LINES = 3
NOUNS = ("cat", "dog", "king", "baker", "lion", "child", "friend", "teacher")
ADJECTIVES = ("old", "small", "happy", "tired")
ALONE = (("sleeps", "sleep"), ("sings", "sing"), ("laughs", "laugh"), ("runs", "run"))
WITH_OBJECT = (("sees", "see"), ("likes", "like"), ("follows", "follow"), ("knows", "know"))
PLURALS = {"child": "children"}
BRACKETS = ("()", "[]", "{}")
DEEPEST_CLAUSE, DEEPEST_BRACKET = 2, 4
P_ADJECTIVE, P_CLAUSE, P_PLURAL, P_OBJECT, P_OPEN, P_END = 0.3, 0.35, 0.5, 0.5, 0.5, 0.4


def make(split: str, size: int | None = None, seed: int = 0) -> list[TextSample]:
    """Make the documents of a split.

    Args:
        split: "train", "val" or "test".
        size: Number of documents; None: all.
        seed: Seed of the texts.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SIZES:
        raise ValueError(f"split: expected one of {', '.join(SIZES)}, found {split!r}")
    return [_Document(split, number, seed).sample() for number in range(SIZES[split] if size is None else size)]


class _Document:
    """A document in the making: tokens, the probability of what was drawn, and what tokens follow from."""

    def __init__(self, split: str, number: int, seed: int) -> None:
        self.name = f"{split}-{number}"
        self.stream = Random(f"text generation {split} {number} {seed}")
        self.tokens: list[str] = []
        self.origins: list[Origin] = []
        self.log_p = 0.0

    def sample(self) -> TextSample:
        for _ in range(LINES):
            self.pick((self.sentence, self.brackets, self.sum))()
            self.tokens += [".", "\n"]
        text = " ".join(self.tokens).replace(" \n ", "\n").replace(" \n", "\n")
        return TextSample(self.name, text, log_p=self.log_p, origins=self.origins)

    def pick(self, options: Sequence[Any]) -> Any:
        self.log_p -= math.log(len(options))
        return options[int(self.stream.random() * len(options))]

    def chance(self, p: float) -> bool:
        found = self.stream.random() < p
        self.log_p += math.log(p if found else 1 - p)
        return found

    def add(self, token: str, kind: str = "", *sources: int) -> int:
        """Adds a token; returns its index."""
        if kind:
            self.origins.append(Origin(len(self.tokens), sources, kind))
        self.tokens.append(token)
        return len(self.tokens) - 1

    # Sentences --------------------------------------------------------------------------------------------------------

    def sentence(self) -> None:
        plural, noun, depth = self.phrase(DEEPEST_CLAUSE)
        kind = "verb" if not depth else f"verb across {depth} clause{'s' if depth > 1 else ''}"
        if self.chance(P_OBJECT):
            self.add(self.pick(WITH_OBJECT)[plural], kind, noun)
            self.phrase(0)
        else:
            self.add(self.pick(ALONE)[plural], kind, noun)

    def phrase(self, deepest: int) -> tuple[bool, int, int]:
        """Adds a noun with what belongs to it; returns whether it is plural, its index, and the clauses behind it."""
        self.add("the")
        if self.chance(P_ADJECTIVE):
            self.add(self.pick(ADJECTIVES))
        plural = self.chance(P_PLURAL)
        word = self.pick(NOUNS)
        noun = self.add(PLURALS.get(word, f"{word}s") if plural else word)
        if not deepest or not self.chance(P_CLAUSE):
            return plural, noun, 0
        self.add("that")
        inner_plural, inner, depth = self.phrase(deepest - 1)
        kind = "verb" if not depth else f"verb across {depth} clause"
        self.add(self.pick(WITH_OBJECT)[inner_plural], kind, inner)
        return plural, noun, depth + 1

    # Brackets ---------------------------------------------------------------------------------------------------------

    def brackets(self) -> None:
        stack: list[tuple[str, int]] = []
        while True:
            if not stack:
                if self.tokens and self.tokens[-1] in ")]}" and self.chance(P_END):
                    return
                opens = True
            else:
                opens = len(stack) < DEEPEST_BRACKET and self.chance(P_OPEN)
            if opens:
                pair = self.pick(BRACKETS)
                stack.append((pair, self.add(pair[0])))
            else:
                pair, place = stack.pop()
                self.add(pair[1], "bracket", place)

    # Sums -------------------------------------------------------------------------------------------------------------

    def sum(self) -> None:
        numbers, places = [], []
        for sign in ("+", "="):
            digits = [self.pick(range(10)) for _ in range(2)]  # the last digit first
            places.append([self.add(str(digit)) for digit in digits])
            numbers.append(digits[0] + 10 * digits[1])
            self.add(sign)
        total = sum(numbers)
        for place in range(3):
            digit = str(total // 10**place % 10)
            if place < 2:
                self.add(digit, "digit", places[0][place], places[1][place])
            else:
                self.add(digit)


def tokens_of(text: str) -> list[str]:
    """The tokens of a text, as its origins count them.

    >>> tokens_of("1 0 .\\n")
    ['1', '0', '.', '\\n']
    """
    return [token for token in text.replace("\n", " \n ").split(" ") if token]


def beginning(sample: TextSample) -> TextSample:
    """A document up to its last token that follows from others, as the prompt of what comes then."""
    tokens = tokens_of(sample.whole)
    cut = sample.origins[-1].token if sample.origins else len(tokens) // 2
    texts = [" ".join(part).replace(" \n ", "\n").replace(" \n", "\n") for part in (tokens[:cut], tokens[cut:])]
    return TextSample(sample.id, texts[1], texts[0], origins=sample.origins)
