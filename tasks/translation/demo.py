"""Built-in parallel data: English and an invented language with its own word order and agreement.

The invented language differs from English as far as real ones do, so that copying word by word fails:

- the verb stands last, and agrees with the subject's gender and number, which may be far away;
- some verbs are separable: their particle stands behind the subject;
- nouns have a gender that English does not show, and endings for number and case (nominative, accusative, dative);
- adjectives and the article follow their noun and agree with it in gender, number and case;
- prepositions stand behind what they govern, adverbs come first, negation stands before the verb;
- a relative clause follows its noun, opened by a pronoun that agrees with it, the verb last again.

A share of the combinations of adjective and noun, and of verb and object, are kept out of training: each sentence of
the other parts has at least one such combination of its own. Which words mean the same is known.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mmattn.data.seeds import pick, seed_of
from mmattn.tasks.translation.data import TranslationSample

GENERATOR_VERSION = 1
SEED = 20_250_704
SIZES = {"train": 20_000, "val": 500, "test": 1_000}
_PARTS = {"train": 0, "val": 1, "test": 2}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    """baker farmer girl boy king queen teacher singer horse goat bird rabbit lion owl spider pilot
    lamp stone river basket bottle hammer ladder mirror pillow ribbon bucket candle carpet door flower garden letter
    map pencil picture table window wagon coin"""
)
ANIMATE = 16  # the first 16 nouns can be subjects
ADJECTIVES = _words(
    "old young red green small large quiet proud clever tired heavy soft round dark bright wet strange brave"
)
VERBS = _words(
    """paint lift push pull clean follow guard help open order pack want hunt collect count cover lock mend move admire
    chase describe like measure"""
)
ADVERBS = _words("often slowly gladly quickly secretly calmly again today")
PREPOSITIONS = _words("near behind under beside above with")
DETERMINERS = ("the", "a", "this", "every")  # singular; plural: the, some, these, two

# The invented language. Its words are drawn once from syllables; these tables are its grammar.
GENDERS, CASES = 3, ("nominative", "accusative", "dative")
NOUN_ENDINGS = (  # by gender, number and case
    (("o", "om", "os"), ("ori", "orim", "oris")),
    (("a", "an", "al"), ("eti", "etin", "etil")),
    (("u", "uk", "ut"), ("uva", "uvak", "uvat")),
)
ADJECTIVE_ENDINGS = (  # by gender and number; nominative, other cases
    (("en", "emo"), ("eni", "enimo")),
    (("is", "isa"), ("ira", "irasa")),
    (("ul", "ulke"), ("ulo", "uloke")),
)
VERB_ENDINGS = (("ta", "tis"), ("sha", "shis"), ("ka", "kis"))  # by gender and number
PAST = "av"  # between a verb's stem and its ending
NEGATION = "ne"
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "st", "tr")
_VOWELS, _CODAS = ("a", "e", "i", "o", "u"), ("", "l", "n", "r", "s", "m")


@dataclass
class Language:
    """The invented language's words, drawn once."""

    nouns: dict[str, tuple[str, int]]  # stem and gender
    adjectives: dict[str, str]
    verbs: dict[str, tuple[str, str]]  # stem and particle; no particle where it is not separable
    adverbs: dict[str, str]
    prepositions: dict[str, str]
    determiners: dict[str, str]
    relative: str


def language() -> Language:
    """The invented language, deterministic."""
    dice, taken = random.Random(SEED), {NEGATION}

    def word(syllables: int) -> str:
        while True:
            parts = [pick(dice, _ONSETS) + pick(dice, _VOWELS) for _ in range(syllables - 1)]
            made = "".join(parts) + pick(dice, _ONSETS) + (pick(dice, _VOWELS) if syllables == 1 else "")
            made += pick(dice, _CODAS) if syllables == 1 else ""
            if made not in taken:
                taken.add(made)
                return made

    particles = [word(1) for _ in range(4)]
    return Language(
        nouns={noun: (word(2 + index % 2), int(dice.random() * GENDERS)) for index, noun in enumerate(NOUNS)},
        adjectives={adjective: word(2) for adjective in ADJECTIVES},
        verbs={
            verb: (word(2), particles[index // 3 % 4] if index % 3 == 0 else "") for index, verb in enumerate(VERBS)
        },
        adverbs={adverb: word(3) for adverb in ADVERBS},
        prepositions={preposition: word(1) for preposition in PREPOSITIONS},
        determiners={name: word(1) for name in ("the", "this", "every", "some", "two")},
        relative=word(1),
    )


LANGUAGE = language()


Words = list[tuple[str, int | None]]  # of the invented language, each with the index of its aligned source word


@dataclass
class Noun:
    """A noun phrase."""

    name: str
    plural: bool
    determiner: str
    adjectives: list[str]


def _append(source: list[str], word: str) -> int:
    """Append a source word and return its index."""
    source.append(word)
    return len(source) - 1


def _noun(dice: random.Random, names: tuple[str, ...]) -> Noun:
    plural = dice.random() < 0.35
    determiner = pick(dice, ("the", "some", "these", "two") if plural else DETERMINERS)
    count = 0 if dice.random() < 0.45 else 1 if dice.random() < 0.8 else 2
    adjectives: list[str] = []
    while len(adjectives) < count:
        adjective = pick(dice, ADJECTIVES)
        if adjective not in adjectives:
            adjectives.append(adjective)
    return Noun(pick(dice, names), plural, determiner, adjectives)


def _noun_phrase(source: list[str], noun: Noun, case: int) -> Words:
    """Append a noun phrase to the English source; return its translation."""
    first = (noun.adjectives or [noun.name])[0]
    _append(source, "an" if noun.determiner == "a" and first[0] in "aeiou" else noun.determiner)
    places = [(_append(source, adjective), adjective) for adjective in noun.adjectives]
    place = _append(source, noun.name + ("s" if noun.plural else ""))
    stem, gender = LANGUAGE.nouns[noun.name]
    ending = ADJECTIVE_ENDINGS[gender][noun.plural][min(case, 1)]
    words: Words = [(stem + NOUN_ENDINGS[gender][noun.plural][case], place)]
    words += [(LANGUAGE.adjectives[adjective] + ending, where) for where, adjective in places]
    name = {"these": "this", "a": ""}.get(noun.determiner, noun.determiner)
    return words + ([(LANGUAGE.determiners[name] + ending, None)] if name else [])


def _verb_phrase(source: list[str], verb: str, subject: Noun, past: bool, negated: bool) -> Words:
    """Append a verb to the English source; return its translation: particle, negation ("" without one) and verb."""
    if negated:
        _append(source, "did" if past else "do" if subject.plural else "does")
        _append(source, "not")
        place = _append(source, verb)
    elif past:
        place = _append(source, verb + ("d" if verb.endswith("e") else "ed"))
    else:
        place = _append(source, verb if subject.plural else verb + "s")
    stem, particle = LANGUAGE.verbs[verb]
    _, gender = LANGUAGE.nouns[subject.name]
    word = stem + (PAST if past else "") + VERB_ENDINGS[gender][subject.plural]
    return [(particle, place), (NEGATION if negated else "", None), (word, place)]


def _sentence(dice: random.Random) -> tuple[list[str], Words, set[tuple[str, str]]]:
    """A sentence in both languages, and its word combinations, which may be held out of training."""
    source: list[str] = []
    subject, thing, verb = _noun(dice, NOUNS[:ANIMATE]), _noun(dice, NOUNS), pick(dice, VERBS)
    past, negated = dice.random() < 0.4, dice.random() < 0.2
    pairs = {(adjective, noun.name) for noun in (subject, thing) for adjective in noun.adjectives}
    pairs.add((verb, thing.name))
    words = _noun_phrase(source, subject, 0)
    if dice.random() < 0.2:  # a relative clause about the subject
        other, inner = _noun(dice, NOUNS), pick(dice, VERBS)
        pairs |= {(adjective, other.name) for adjective in other.adjectives} | {(inner, other.name)}
        _append(source, "that")
        particle, _, last = _verb_phrase(source, inner, subject, dice.random() < 0.4, False)
        gender = LANGUAGE.nouns[subject.name][1]
        pronoun = LANGUAGE.relative + ADJECTIVE_ENDINGS[gender][subject.plural][0]
        words += [(pronoun, None), particle, *_noun_phrase(source, other, 1), last]
    particle, negation, last = _verb_phrase(source, verb, subject, past, negated)
    words += [particle, *_noun_phrase(source, thing, 1)]
    if dice.random() < 0.3:
        preposition, place_noun = pick(dice, PREPOSITIONS), _noun(dice, NOUNS)
        pairs |= {(adjective, place_noun.name) for adjective in place_noun.adjectives}
        place = _append(source, preposition)
        words += [*_noun_phrase(source, place_noun, 2), (LANGUAGE.prepositions[preposition], place)]
    words += [negation, last]
    if dice.random() < 0.35:
        adverb = pick(dice, ADVERBS)
        words.insert(0, (LANGUAGE.adverbs[adverb], _append(source, adverb)))
    return source, [(word, place) for word, place in words if word], pairs


def part_of(pair: tuple[str, str]) -> str:
    """The only split with this combination of adjective or verb and noun; "train": all splits may have it."""
    drawn = seed_of(SEED, 0, sum(ord(char) * 31**n for n, char in enumerate(" ".join(pair)))) % 100
    return "test" if drawn < 12 else "val" if drawn < 20 else "train"


def word_kind(word: str) -> str:
    """Part of speech of an English content word: noun, adjective, verb, adverb, preposition.

    >>> [word_kind(word) for word in ("kings", "old", "moved", "paints", "near")]
    ['noun', 'adjective', 'verb', 'verb', 'preposition']
    """
    kinds = {"noun": NOUNS, "adjective": ADJECTIVES, "adverb": ADVERBS, "preposition": PREPOSITIONS}
    return next((kind for kind, words in kinds.items() if word in words or word.removesuffix("s") in words), "verb")


def make(split: str, size: int | None = None) -> list[TranslationSample]:
    """The sentence pairs of a split.

    Args:
        split: ``train``, ``val`` or ``test``.
        size: Number of pairs; None: the full size of the split.

    >>> make("test", 1)[0].source.split()[0] in ("the", "a", "an", "this", "every", "some", "these", "two")
    True
    """
    if split not in SIZES:
        raise ValueError(f"split: expected one of {', '.join(SIZES)}, found {split!r}")
    dice, seen = random.Random(seed_of(SEED, 1, _PARTS[split])), set()
    samples: list[TranslationSample] = []
    wanted = SIZES[split] if size is None else size
    while len(samples) < wanted:
        source, words, pairs = _sentence(dice)
        parts, text = {part_of(pair) for pair in pairs}, " ".join(source)
        if not parts <= {"train", split} or (split != "train" and split not in parts) or text in seen:
            continue
        seen.add(text)
        target = " ".join(word for word, _ in words)
        alignment = [(n, place) for n, (_, place) in enumerate(words) if place is not None]
        samples.append(TranslationSample(f"{split}-{len(samples)}", text, target, alignment=alignment))
    return samples
