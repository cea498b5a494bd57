"""The built-in summarization data: frozen, with true sources, new names in the test part, and no help from the lead."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from mmattn.data.text.sentences import split_sentences
from mmattn.tasks.summarization import demo

# Any change of these is a new GENERATOR_VERSION, and every figure stated for the built-in data has to be measured anew.
DIGESTS = {
    "train": "ad71abd301771da764d79ca3c98f1e807b0279a0611289585d9ba7fd8528a067",
    "val": "f084424fe2509c4f8aa423528c090ae68c08f1b46129cada29c2e1aad6238f4b",
    "test": "522ea486f5af3c351fad941827b303c281046d64fdd7fecdbedaa28e6cf3bb7f",
}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def splits():
    return {split: demo.make(split, size=300) for split in SPLITS}


def digest(samples) -> str:
    sha = hashlib.sha256()
    for sample in samples:
        sha.update(repr((sample.id, sample.source, sample.target, sample.references, sample.origins)).encode())
    return sha.hexdigest()


def ships(samples) -> set[str]:
    return {
        name for sample in samples for name in re.findall(r"the ([A-Z][a-z]+)\b", sample.source.replace("The", "the"))
    }


@pytest.mark.parametrize("split", SPLITS)
def test_frozen(split):
    assert demo.GENERATOR_VERSION == 1
    assert digest(demo.make(split, size=50)) == DIGESTS[split]


def test_the_beginning_does_not_depend_on_the_number(splits):
    assert digest(demo.make("val", size=3)) == digest(splits["val"][:3])
    assert digest(demo.make("val", seed=1, size=3)) != digest(splits["val"][:3])


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="split: expected one of train, val, test, found 'dev'"):
        demo.make("dev")


def test_origins_are_true(splits):
    """Each slot of the summary stands, letter for letter, at each of the places that it is said to come from."""
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
            if word in names and word not in demo.TOWNS:
                assert len(places) == everywhere[word]


def test_names_of_the_parts_have_nothing_in_common(splits):
    towns = set(demo.TOWNS) | {"Log", "Day", "Entry"}
    train, val, test = (ships(splits[split]) - towns for split in SPLITS)
    assert len(train) > 500
    assert not train & test
    assert not train & val
    assert not val & test


def test_one_to_three_events_in_order(splits):
    counts = Counter(len(split_sentences(sample.target)) for sample in splits["test"])
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 60
    for sample in splits["test"]:
        # A number, a thing, a quay is told once, where its event is; a ship may be named again.
        once = [((a, b), places[0][0]) for (a, b), places in sample.origins if not sample.target[a].isupper()]
        events = []
        for first, last in split_sentences(sample.target):
            events += [place for (a, _), place in once if first <= a < last][:1]
        assert events == sorted(events)


def test_what_matters_stands_anywhere(splits):
    """Halves of the documents hold what matters about equally often."""
    places = [places[0][0] / len(s.source) for s in splits["train"] for _, places in s.origins]
    assert 0.35 < sum(place < 0.5 for place in places) / len(places) < 0.65


def test_copying_the_lead_fails(splits):
    pytest.importorskip("rouge_score")
    from mmattn.tasks.summarization.metrics import score

    samples = splits["test"]
    for count in (1, 2, 3):
        leads = [s.source[: split_sentences(s.source)[:count][-1][1]] for s in samples]
        assert score(leads, [[s.target] for s in samples])["rougeL"] < 0.2
    mattering = []
    for sample in samples:  # even who knows the right sentences has to say it in other words
        wanted = [places[0][0] for _, places in sample.origins]
        spans = [span for span in split_sentences(sample.source) if any(span[0] <= w < span[1] for w in wanted)]
        mattering.append(" ".join(sample.source[a:b] for a, b in spans))
    assert score(mattering, [[s.target] for s in samples])["rougeL"] < 0.6


def test_the_signs_of_importance_are_balanced():
    yes, no = demo.CUES[True], demo.CUES[False]
    assert yes.keys() == no.keys()
    assert all(len(yes[place].split(" | ")) == len(no[place].split(" | ")) for place in yes)
