"""The built-in texts: frozen, and as documented."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from mmattn.data.text.sentences import split_sentences
from mmattn.tasks.qa import demo as qa
from mmattn.tasks.qa.data import QASample
from mmattn.tasks.summarization import demo as summarization
from mmattn.tasks.summarization.data import SummarySample
from mmattn.tasks.translation import demo as translation
from mmattn.tasks.translation.data import TranslationSample
from mmattn.tasks.translation.demo import LANGUAGE, NOUNS, make, part_of, word_kind
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return {split: make(split) for split in translation.SIZES}


@pytest.fixture(scope="module")
def splits() -> dict[str, list]:
    return {split: summarization.make(split, size=300) for split in summarization.NUM_DOCUMENTS}


@pytest.fixture(scope="module")
def stories() -> dict[str, list]:
    return {split: qa.make(split, size=300) for split in qa.NUM_QUESTIONS}


class TestStories(DemoTests):
    demo = qa
    digests = (
        "807a59b77a3611a4d9edbe6ead112aaf34539996284746303a2c0d141432c18b",
        "a415e7bf5470474b897513d6f2ef22b3d14764d933c1b98aa12947eee2babc51",
        "93969cf3a2141b8cdab1f98053e177e462c187aaa9d87ac24261705e3d0dd606",
    )

    @pytest.fixture
    def made(self, stories: dict[str, list]) -> dict[str, list]:
        return stories

    def content(self, x: QASample) -> bytes:
        return repr((x.id, x.question, x.context, x.answers, x.kind, x.evidence)).encode()


class TestTranslation(DemoTests):
    demo = translation
    digests = (
        "a55511a793b29a49d6a2caa179378828627ed32384f33f710ef05b6a750ae48e",
        "ad60de4360abaa2fbd30db6ee967ef3d4c81dc04c5860d98422142bdc1030158",
        "c725b4ef09a041316d7761a32b08c12eda9387f55d47282da40bd200ee4e2740",
    )

    def content(self, sample: TranslationSample) -> bytes:
        return json.dumps([sample.id, sample.source, sample.target, sample.alignment]).encode()


class TestSummarization(DemoTests):
    demo, first = summarization, 50
    digests = (
        "ad71abd301771da764d79ca3c98f1e807b0279a0611289585d9ba7fd8528a067",
        "f084424fe2509c4f8aa423528c090ae68c08f1b46129cada29c2e1aad6238f4b",
        "522ea486f5af3c351fad941827b303c281046d64fdd7fecdbedaa28e6cf3bb7f",
    )

    @pytest.fixture
    def made(self, splits: dict[str, list]) -> dict[str, list]:
        return splits

    def content(self, x: SummarySample) -> bytes:
        return repr((x.id, x.source, x.target, x.references, x.origins)).encode()


def disjoint(parts: dict[str, set[str]]) -> bool:
    """Whether the splits are pairwise disjoint."""
    return sum(map(len, parts.values())) == len(set().union(*parts.values()))


# Translation ----------------------------------------------------------------------------------------------------------


def test_splits_share_no_sentence(parts: dict[str, list]) -> None:
    sources = {split: {sample.source for sample in samples} for split, samples in parts.items()}
    assert all(len(sources[split]) == size for split, size in translation.SIZES.items())
    assert disjoint(sources)


def combinations(sample: object) -> set[tuple[str, str]]:
    """Adjectives with their noun, from the English text: each adjective's noun is the next one."""
    words, found, waiting = sample.source.split(), set(), []  # type: ignore[attr-defined]
    for word in words:
        noun = word if word in NOUNS else word.removesuffix("s")
        if word in translation.ADJECTIVES:
            waiting.append(word)
        elif noun in NOUNS:
            found |= {(adjective, noun) for adjective in waiting}
            waiting = []
    return found


def test_combinations_in_the_test_split_are_new(parts: dict[str, list]) -> None:
    seen = {pair for sample in parts["train"] for pair in combinations(sample)}
    assert all(part_of(pair) == "train" for pair in seen)
    new = {pair for sample in parts["test"] for pair in combinations(sample)} - seen
    assert len(new) > 50
    assert all(part_of(pair) == "test" for pair in new)


def test_adjectives_agree_with_their_noun() -> None:
    """A sentence composed by hand from the tables."""
    for sample in make("val", 200):
        source, target = sample.source.split(), sample.target.split()
        subject = source[1] if source[1].removesuffix("s") in LANGUAGE.nouns else None
        if subject is None or source[0] not in ("the", "two"):
            continue
        stem, gender = LANGUAGE.nouns[subject.removesuffix("s")]
        plural = subject.endswith("s")
        place = next(t for t, s in sample.alignment if s == 1)
        assert target[place] == stem + translation.NOUN_ENDINGS[gender][plural][0]
        ending = translation.ADJECTIVE_ENDINGS[gender][plural][0]
        assert target[place + 1] == LANGUAGE.determiners[source[0]] + ending
        assert target[-1].endswith(translation.VERB_ENDINGS[gender][plural])


def test_every_content_word_is_aligned(parts: dict[str, list]) -> None:
    for sample in parts["val"]:
        source, target = sample.source.split(), sample.target.split()
        assert all(0 <= t < len(target) and 0 <= s < len(source) for t, s in sample.alignment)
        content = [
            n for n, word in enumerate(source) if word_kind(word) in ("noun", "adjective", "adverb", "preposition")
        ]
        assert set(content) <= {s for _, s in sample.alignment}
        assert len({t for t, _ in sample.alignment}) == len(sample.alignment), "each word has one source"


def test_word_by_word_translation_fails(parts: dict[str, list]) -> None:
    """Even with a perfect dictionary: correct words in English order score low."""
    sacrebleu = pytest.importorskip("sacrebleu")
    copied = []
    for sample in parts["test"]:
        target, source_of = sample.target.split(), dict(sample.alignment)
        words = sorted(range(len(target)), key=lambda t, source_of=source_of: source_of.get(t, t))
        copied.append(" ".join(target[t] for t in words))
    score = sacrebleu.corpus_bleu(copied, [[sample.target for sample in parts["test"]]]).score
    assert score < 40


# Summarization --------------------------------------------------------------------------------------------------------


def ships(samples: list) -> set[str]:
    return {
        name for sample in samples for name in re.findall(r"the ([A-Z][a-z]+)\b", sample.source.replace("The", "the"))
    }


def test_summary_origins_are_correct(splits: dict[str, list]) -> None:
    """Each slot of the summary occurs verbatim at each of its recorded origins."""
    for sample in splits["train"]:
        assert len(sample.origins) >= 2
        for (start, end), places in sample.origins:
            word = sample.target[start:end]
            assert places
            assert {sample.source[a:b] for a, b in places} == {word}
        names = [sample.target[a:b] for (a, b), _ in sample.origins if sample.target[a:b][0].isupper()]
        everywhere = Counter(re.findall(r"[A-Z][a-z]+", sample.source))
        for (start, end), places in sample.origins:
            word = sample.target[start:end]
            if word in names and word not in summarization.TOWNS:
                assert len(places) == everywhere[word]


def test_splits_share_no_names(splits: dict[str, list]) -> None:
    towns = set(summarization.TOWNS) | {"Log", "Day", "Entry"}
    found = {split: ships(samples) - towns for split, samples in splits.items()}
    assert len(found["train"]) > 500
    assert disjoint(found)


def test_one_to_three_events_in_order(splits: dict[str, list]) -> None:
    counts = Counter(len(split_sentences(sample.target)) for sample in splits["test"])
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 60
    for sample in splits["test"]:
        # A number, an object and a quay are mentioned once, in their event; a ship may be mentioned again.
        once = [((a, b), places[0][0]) for (a, b), places in sample.origins if not sample.target[a].isupper()]
        events = []
        for first, last in split_sentences(sample.target):
            events += [place for (a, _), place in once if first <= a < last][:1]
        assert events == sorted(events)


def test_important_events_occur_anywhere(splits: dict[str, list]) -> None:
    """Both halves of the documents contain the important events about equally often."""
    places = [places[0][0] / len(s.source) for s in splits["train"] for _, places in s.origins]
    assert 0.35 < sum(place < 0.5 for place in places) / len(places) < 0.65


def test_lead_baseline_fails(splits: dict[str, list]) -> None:
    pytest.importorskip("rouge_score")
    from mmattn.tasks.summarization.metrics import score

    samples = splits["test"]
    for count in (1, 2, 3):
        leads = [s.source[: split_sentences(s.source)[:count][-1][1]] for s in samples]
        assert score(leads, [[s.target] for s in samples])["rougeL"] < 0.2
    mattering = []
    for sample in samples:  # even the right sentences, copied, do not match the summary
        wanted = [places[0][0] for _, places in sample.origins]
        spans = [span for span in split_sentences(sample.source) if any(span[0] <= w < span[1] for w in wanted)]
        mattering.append(" ".join(sample.source[a:b] for a, b in spans))
    assert score(mattering, [[s.target] for s in samples])["rougeL"] < 0.6


def test_importance_cues_are_balanced() -> None:
    yes, no = summarization.CUES[True], summarization.CUES[False]
    assert yes.keys() == no.keys()
    assert all(len(yes[place].split(" | ")) == len(no[place].split(" | ")) for place in yes)


# Stories --------------------------------------------------------------------------------------------------------------


def test_answers_take_two_facts(stories: dict[str, list]) -> None:
    """One fits the description and does not hold the answer; the other holds it, and not the description."""
    for sample in stories["test"]:
        assert not any(name in sample.question for name in (*qa.WOMEN, *qa.MEN))
        if not sample.answers:
            assert not sample.evidence
            continue
        (answer,) = sample.answers
        assert sample.context[answer.start : answer.end] == answer.text
        first, second = (sample.context[slice(*fact)] for fact in sample.evidence)
        assert (answer.text in first) != (answer.text in second)
        described = next(fact for fact in (first, second) if answer.text not in fact)
        assert sum(word in described for word in sample.question.replace("?", "").split()) >= 2


def test_a_third_has_no_answer_and_words_do_not_tell_which(stories: dict[str, list]) -> None:
    samples = [sample for part in stories.values() for sample in part]
    share = sum(not sample.answers for sample in samples) / len(samples)
    assert 0.28 < share < 0.39
    asked = [qa.RELATIONS[sample.kind.split(" to ")[1]].nouns for sample in samples]
    choices = [sum(noun in sample.context for noun in nouns) for sample, nouns in zip(samples, asked, strict=True)]
    assert sum(count >= 2 for count in choices) > 0.9 * len(samples), "several could be the answer"


def test_the_most_frequent_answer_is_rare(stories: dict[str, list]) -> None:
    """Without the question, any of the twelve or so things in a story could be asked for."""
    common = Counter(answer.text for sample in stories["train"] for answer in sample.answers).most_common(1)
    assert common[0][1] < 0.05 * len(stories["train"])
