"""BLEU, ROUGE-L and CIDEr-D against coco-caption's values, values by hand and naive loops; true statements."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from mmattn.tasks.captioning import metrics
from mmattn.tasks.captioning.demo import make
from mmattn.tasks.captioning.facts import check_facts

WRITTEN = ["a brown dog runs on the grass", "two men ride a red bike", "a cat", "the boy jumps into the pool pool"]
RIGHT = [
    ["a dog runs on green grass", "the brown dog is running across the grass", "a dog plays"],
    ["two men are riding a bike", "a man rides a red bike on the street"],
    ["a black cat sits on the sofa"],
    ["a boy jumps into a swimming pool", "the boy jumps into the water"],
]
# Of pycocoevalcap 1.2 (the classes Bleu, Rouge and Cider), on these texts.
COCO = {
    "bleu1": 0.7579572,
    "bleu2": 0.6214427,
    "bleu3": 0.4862883,
    "bleu4": 0.3633616,
    "rouge_l": 0.6576856,
    "cider_d": 2.4180236,
}


def test_figures_equal_those_of_coco_caption() -> None:
    assert metrics.score(WRITTEN, RIGHT) == pytest.approx(COCO, abs=1e-6)


def test_bleu_by_hand() -> None:
    """Clipped counts 3 of 4 and 2 of 3; of two references that are equally close in length, the shorter counts."""
    written, right = [["a", "a", "b", "c"]], [["a", "b", "c"], ["x", "a", "b", "c", "d"]]
    found = metrics.bleu(written, [right])
    assert found[:2] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3)])
    assert found[3] == 0
    short = metrics.bleu([["a", "b"]], [[["a", "b", "c"]]])
    assert short[0] == pytest.approx(math.exp(1 - 3 / 2))


def test_rouge_l_by_hand() -> None:
    found = metrics.rouge_l(["a", "b", "c", "d"], [["a", "c"], ["a", "b", "c", "x", "y", "z"]])
    precision, recall = 3 / 4, 1.0  # of different references
    assert found == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))
    assert metrics.rouge_l([], [["a"]]) == metrics.rouge_l(["b"], [["a"]]) == 0


def naive_cider_d(written: list[list[str]], right: list[list[list[str]]]) -> list[float]:
    """The formula, written out."""

    def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram: tuple[str, ...], words: list[str]) -> float:
        n = len(gram)
        images = sum(any(gram in grams(text, n) for text in texts) for texts in right)
        return grams(words, n).count(gram) * math.log(len(right) / max(images, 1))

    found = []
    for words, texts in zip(written, right, strict=True):
        total = 0.0
        for text in texts:
            for n in (1, 2, 3, 4):
                every = set(grams(words, n)) | set(grams(text, n))
                shared = sum(min(weight(g, words), weight(g, text)) * weight(g, text) for g in every)
                norms = [math.sqrt(sum(weight(g, one) ** 2 for g in every)) for one in (words, text)]
                penalty = math.exp(-((len(words) - len(text)) ** 2) / (2 * 6.0**2))
                total += penalty * shared / (norms[0] * norms[1] or 1.0)
        found.append(10 * total / 4 / len(texts))
    return found


def test_cider_d_equals_a_naive_loop() -> None:
    written, right = [text.split() for text in WRITTEN], [[text.split() for text in given] for given in RIGHT]
    assert metrics.cider_d(written, right) == pytest.approx(naive_cider_d(written, right), abs=1e-9)


def test_cider_d_by_hand() -> None:
    """Two images: words that both have weigh nothing; the length differs by one."""
    found = metrics.cider_d([["a", "dog"], ["a"]], [[["a", "dog", "x"]], [["a", "cat"]]])
    log = math.log(2)
    unigrams = log * log / (log * math.sqrt(2 * log * log))  # dog of dog, x
    bigrams = log * log / (log * math.sqrt(2 * log * log))  # "a dog" of "a dog", "dog x"
    assert found == pytest.approx([10 / 4 * (unigrams + bigrams) * math.exp(-1 / 72), 0.0])


def test_frequencies_of_other_images() -> None:
    written, right = [["a", "dog"]], [[["a", "dog", "runs"]]]
    assert metrics.cider_d(written, right) == [0.0], "every n-gram is in every image"
    other = metrics.Frequencies.of([*right, [["two", "cats"]]])
    assert metrics.cider_d(written, right, other) == metrics.cider_d([*written, ["x"]], [*right, [["two", "cats"]]])[:1]


def test_tokenizer() -> None:
    found = metrics.tokenize("Two men's T-shirts (red), 3.5 m high... don’t they're -- here!")
    assert found == ["two", "men", "'s", "t-shirts", "red", "3.5", "m", "high", "do", "n't", "they", "'re", "here"]
    assert metrics.tokenize("dog 's , .") == ["dog", "'s"]
    assert metrics.score(["狗在草地上跑"], [["狗在草地上跑步"]])["bleu1"] > 0.8
    assert "PTB" in metrics.signature()["tokenizer"]


def test_facts_of_the_demo_captions_are_true() -> None:
    for sample in make("test", 30):
        counts = [check_facts(text, sample.objects) for text in sample.captions]
        assert all(true == total == 3 + (2 if len(sample.objects) > 2 else 1) for true, total in counts)


SCENE = [
    ((0.1, 0.4, 0.2, 0.5), ("star", "red", "small")),
    ((0.7, 0.4, 0.9, 0.6), ("ring", "blue", "large")),
    *([((0.4, 0.8, 0.5, 0.9), ("cross", "white", "small"))] * 2),
]


@pytest.mark.parametrize(
    ("caption", "true", "total"),
    [
        ("a small red star is left of a large blue ring, and there are two white crosses.", 5, 5),
        ("a large blue ring is right of a small red star, and there are two white crosses.", 5, 5),
        ("a small red star is right of a large blue ring, and there are two white crosses.", 4, 5),
        ("a small red star is left of a large green ring, and there are three white crosses.", 3, 5),
        ("a small blue star is left of a large red ring, and there are two white crosses.", 3, 5),
        ("two white crosses and a large blue ring left of a large red star", 3, 5),
        ("a small red star is left of a large blue ring, and there are no other things.", 3, 5),
        ("a small red star is left of a large blue ring", 3, 5),
        ("two white crosses", 2, 5),
        ("a dog", 0, 5),
        ("", 0, 5),
    ],
)
def test_facts(caption: str, true: int, total: int) -> None:
    assert check_facts(caption, SCENE) == (true, total)


def test_facts_are_varied() -> None:
    """No statement is usual."""
    samples = make("test", 200)
    kinds = Counter(len(sample.objects) for sample in samples)
    assert set(kinds) == {2, 4, 5}
    guess = "a small red star is left of a large blue ring, and there are two white crosses."
    found = [check_facts(guess, sample.objects) for sample in samples]
    assert sum(true for true, _ in found) / sum(total for _, total in found) < 0.5
