"""The built-in pair of languages: frozen, and as its description says."""

from __future__ import annotations

import hashlib
import json

import pytest

from mmattn.tasks.translation import demo
from mmattn.tasks.translation.demo import GENERATOR_VERSION, LANGUAGE, NOUNS, SIZES, make, part_of, word_kind

DIGESTS = {  # of version 1; another generator is another version, with every figure measured anew
    "train": "a55511a793b29a49d6a2caa179378828627ed32384f33f710ef05b6a750ae48e",
    "val": "ad60de4360abaa2fbd30db6ee967ef3d4c81dc04c5860d98422142bdc1030158",
    "test": "c725b4ef09a041316d7761a32b08c12eda9387f55d47282da40bd200ee4e2740",
}


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return {split: make(split) for split in SIZES}


@pytest.mark.parametrize("split", DIGESTS)
def test_the_generator_is_frozen(split: str, parts: dict[str, list]) -> None:
    digest = hashlib.sha256()
    for x in parts[split]:
        digest.update(json.dumps([x.id, x.source, x.target, x.alignment]).encode())
    assert (GENERATOR_VERSION, digest.hexdigest()) == (1, DIGESTS[split])
    assert len(parts[split]) == SIZES[split]


def test_no_sentence_of_one_part_stands_in_another(parts: dict[str, list]) -> None:
    sources = {split: {sample.source for sample in samples} for split, samples in parts.items()}
    assert all(len(sources[split]) == SIZES[split] for split in SIZES)
    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["val"]
    assert not sources["val"] & sources["test"]


def test_the_first_pairs_are_the_first_of_more() -> None:
    assert make("test", 5) == make("test", 20)[:5]


def combinations(sample: object) -> set[tuple[str, str]]:
    """Adjectives with their noun, read from the English: each adjective's noun is the next one."""
    words, found, waiting = sample.source.split(), set(), []  # type: ignore[attr-defined]
    for word in words:
        noun = word if word in NOUNS else word.removesuffix("s")
        if word in demo.ADJECTIVES:
            waiting.append(word)
        elif noun in NOUNS:
            found |= {(adjective, noun) for adjective in waiting}
            waiting = []
    return found


def test_combinations_of_the_test_part_are_new(parts: dict[str, list]) -> None:
    seen = {pair for sample in parts["train"] for pair in combinations(sample)}
    assert all(part_of(pair) == "train" for pair in seen)
    new = {pair for sample in parts["test"] for pair in combinations(sample)} - seen
    assert len(new) > 50
    assert all(part_of(pair) == "test" for pair in new)


def test_words_agree_with_their_noun() -> None:
    """A sentence by hand, from the tables alone."""
    for sample in make("val", 200):
        source, target = sample.source.split(), sample.target.split()
        subject = source[1] if source[1].removesuffix("s") in LANGUAGE.nouns else None
        if subject is None or source[0] not in ("the", "two"):
            continue
        stem, gender = LANGUAGE.nouns[subject.removesuffix("s")]
        plural = subject.endswith("s")
        place = next(t for t, s in sample.alignment if s == 1)
        assert target[place] == stem + demo.NOUN_ENDINGS[gender][plural][0]
        ending = demo.ADJECTIVE_ENDINGS[gender][plural][0]
        assert target[place + 1] == LANGUAGE.determiners[source[0]] + ending
        assert target[-1].endswith(demo.VERB_ENDINGS[gender][plural])


def test_every_content_word_is_aligned(parts: dict[str, list]) -> None:
    for sample in parts["val"]:
        source, target = sample.source.split(), sample.target.split()
        assert all(0 <= t < len(target) and 0 <= s < len(source) for t, s in sample.alignment)
        content = [
            n for n, word in enumerate(source) if word_kind(word) in ("noun", "adjective", "adverb", "preposition")
        ]
        assert set(content) <= {s for _, s in sample.alignment}
        assert len({t for t, _ in sample.alignment}) == len(sample.alignment), "a word has one source"


def test_copying_word_by_word_fails(parts: dict[str, list]) -> None:
    """Even with a perfect dictionary: the English order with the right words is far from right."""
    sacrebleu = pytest.importorskip("sacrebleu")
    copied = []
    for sample in parts["test"]:
        target, source_of = sample.target.split(), dict(sample.alignment)
        words = sorted(range(len(target)), key=lambda t, source_of=source_of: source_of.get(t, t))
        copied.append(" ".join(target[t] for t in words))
    score = sacrebleu.corpus_bleu(copied, [[sample.target for sample in parts["test"]]]).score
    assert score < 40


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="expected one of train, val, test, found 'dev'"):
        make("dev")
