"""Answer normalization and VQA accuracy against values derived by hand from the rules."""

from __future__ import annotations

import itertools
import random

import pytest

from mmattn.tasks.vqa.metrics import normalize_answer, soft_scores, vqa_accuracy
from tests.conftest import refused

GOLDEN = {
    # case, articles, white space
    "Yes": "yes",
    "  The  Dog ": "dog",
    "a an the": "a an the",
    "an apple\nand\ta pear": "apple and pear",
    "theatre": "theatre",
    # numbers up to ten, as separate words
    "two": "2",
    "Ten dogs": "10 dogs",
    "none": "0",
    "zero": "0",
    "eleven": "eleven",
    "someone": "someone",
    # contractions
    "dont know": "don't know",
    "isnt": "isn't",
    "couldntve": "couldntve",  # only one apostrophe may be missing
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "im": "im",  # listed with a capital and looked up in lower case: never matched
    "well": "well",
    "were": "were",
    "somebody'd": "somebodyd",  # an error of the official table
    "yall'd've": "y'all'd've",
    "it's": "it's",
    # punctuation: replaced by a space unless it touches one, else deleted
    "t-shirt": "t shirt",
    "black/white": "black white",
    "black / white": "black white",
    "book, scissor, papers": "book scissor papers",
    "red,white": "red white",
    "garbage_bin": "garbage bin",
    "what?": "what",
    "(left)": "left",
    "left) side": "left side",
    '"stop"': "stop",
    # a comma between digits causes every punctuation character to be deleted
    "1,000": "1000",
    "1,000-piece": "1000piece",
    "1,000 t-shirts": "1000 tshirts",
    # a punctuation character next to a space anywhere is deleted everywhere
    "t-shirt - blue": "tshirt blue",
    # periods are deleted unless a digit follows
    "2.5": "2.5",
    "yes.": "yes",
    "5.": "5",
    ".5": ".5",
    "u.s.a.": "usa",
    "a.5": "a.5",
    # articles and numbers are processed after punctuation
    "the-two": "2",
    # what stripping would empty stays
    "A.": "a",
    "The": "the",
    "+": "+",
    " - ": "-",
    "...": "...",
    "C++": "c++",
    "the A+.": "a+",
    "c++, c and 20+": "c++ c and 20",
    # unchanged
    "10:30": "10:30",
    "50%": "50%",
    "$5": "$5",
    "m&m's": "m&m's",
    "": "",
}


@pytest.mark.parametrize(("answer", "expected"), list(GOLDEN.items()), ids=repr)
def test_normalization(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(("matches", "expected"), list(enumerate([0.0, 0.3, 0.6, 0.9] + [1.0] * 7)))
def test_ten_answers_give_the_official_accuracy(matches: int, expected: float) -> None:
    assert vqa_accuracy("yes", ["Yes."] * matches + ["no"] * (10 - matches)) == expected


def test_leave_one_out_definition() -> None:
    draw = random.Random(0)
    for _ in range(300):
        answers = [draw.choice(["a1", "b1", "c1"]) for _ in range(draw.randint(4, 12))]
        rest = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
        expected = sum(min(1.0, others.count("a1") / 3) for others in rest) / len(answers)
        assert vqa_accuracy("a1", answers) == pytest.approx(expected, abs=1e-9)


def test_few_answers_give_the_fraction_that_agrees() -> None:
    for total, matches in itertools.product(range(1, 5), range(5)):
        if matches <= total:
            answers = ["red"] * matches + ["blue"] * (total - matches)
            assert vqa_accuracy("RED", answers) == pytest.approx(matches / total)


def test_one_answer_is_exact_match_on_the_whole_string() -> None:
    assert vqa_accuracy("book scissor", ["book, scissor"]) == 1.0
    assert vqa_accuracy("book", ["book, scissor"]) == 0.0
    assert vqa_accuracy("scissor, book", ["book, scissor"]) == 0.0


def test_no_answers_raises() -> None:
    refused("at least one", vqa_accuracy, "yes", [])
    assert soft_scores([]) == {}


def test_soft_scores_are_the_accuracy_of_each_answer() -> None:
    answers = ["Two", "2", "two dogs", "3", "3", "3", "three", "dog", "the dog", "cat"]
    assert soft_scores(["A", "+", "C", "C++"]) == dict.fromkeys(["a", "+", "c", "c++"], 0.25)
    scores = soft_scores(answers)
    assert scores == {"2": 0.6, "2 dogs": 0.3, "3": 1.0, "dog": 0.6, "cat": 0.3}
    assert all(vqa_accuracy(answer, answers) == score for answer, score in scores.items())
