"""The built-in captioning data: frozen, true, unambiguous, with unseen combinations in the test split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mmattn.data.image.shapes import COLORS, SHAPES, SIZES, plural
from mmattn.tasks.captioning import demo as captioning
from mmattn.tasks.captioning.demo import NUMBERS, unseen
from mmattn.tasks.captioning.facts import check_facts
from mmattn.tasks.captioning.metrics import tokenize
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Any]]:
    return {split: captioning.make(split, size=200) for split in ("train", "val", "test")}


class TestFrozen(DemoTests):
    demo, first = captioning, 20
    digests = (
        "6fe289ed165dc79c55d556e2922f75f73f31fdb7bad524678b7ccc58f44c2361",
        "4ba316f3b2215636e71cb394b2c5a6bd03cffefb946899ed3f37e79a140c0e19",
        "31ff2797a269bef45be34960a94c5abbf3db92648c20919049d99b9db3647006",
    )

    def content(self, s: Any) -> bytes:
        return s.image.tobytes() + repr((s.id, s.captions, s.objects, s.groundings)).encode()


def looks(sample: Any) -> list[bool]:
    """Whether the two objects, which come first, are combinations that training does not have."""
    return [
        unseen(SIZES.index(size), (COLORS.index(color), SHAPES.index(shape)))
        for _, (shape, color, size) in sample.objects[:2]
    ]


def test_test_scenes_have_unseen_combinations(parts: dict[str, list[Any]]) -> None:
    assert not any(any(looks(sample)) for sample in parts["train"])
    assert all(any(looks(sample)) for sample in parts["test"])
    assert sum(any(looks(sample)) for sample in parts["val"]) == 100
    said = {
        split: {word for s in samples for t in s.captions for word in tokenize(t)} for split, samples in parts.items()
    }
    assert said["test"] <= said["train"], "no unseen words"


def test_captions_are_true_and_whole(parts: dict[str, list[Any]]) -> None:
    for samples in parts.values():
        for sample in samples:
            assert len(set(sample.captions)) == 5
            assert sample.image.shape == (64, 64, 3)
            assert sample.image.dtype == np.uint8
            for text in sample.captions:
                true, total = check_facts(text, sample.objects)
                assert true == total


def test_groundings_are_the_boxes_of_what_words_name(parts: dict[str, list[Any]]) -> None:
    for sample in parts["train"]:
        of_box = dict(sample.objects)
        for text, groundings in zip(sample.captions, sample.groundings, strict=True):
            content = Counter(text[slice(*span)] for span, _ in groundings)
            assert sum(content.values()) == 6 + len(content.keys() & {"left", "right", "above", "below"}) + (
                ("of" in content) + 3 * (len(sample.objects) > 2)
            )
            for (start, end), boxes in groundings:
                word = text[start:end]
                if word in COLORS or word in SIZES:
                    assert all(word in of_box[box] for box in boxes)
                elif word in SHAPES or word in map(plural, SHAPES):
                    assert all(word in (of_box[box][0], plural(of_box[box][0])) for box in boxes)
                elif word in NUMBERS:
                    assert len(boxes) == NUMBERS.index(word)
                else:
                    name = " ".join(of_box[boxes[0]][::-1])  # of the object to which the relation leads
                    assert text[end:].removeprefix(" of").startswith(f" a {name}")


def test_numbers_and_relations_are_balanced(parts: dict[str, list[Any]]) -> None:
    samples = parts["train"]
    numbers = Counter(len(sample.objects) for sample in samples)
    assert set(numbers) == {2, 4, 5}
    for number, words in enumerate((("left", "above"), ("right", "below"))):
        relations = Counter(word for s in samples for word in words if f" {word} " in s.captions[number])
        assert relations.total() == len(samples)
        assert min(relations.values()) > 60
    shapes = Counter(labels[0] for sample in samples for _, labels in sample.objects[:2])
    assert min(shapes[shape] for shape in SHAPES) > 30
