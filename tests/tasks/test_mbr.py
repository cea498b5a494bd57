"""Minimum Bayes risk selection of a hypothesis."""

import math

from mmattn.tasks.common.seq2seq.model import mbr_select


def test_selects_the_minimum_bayes_risk_hypothesis() -> None:
    texts = ["pump", "old ship sailed", "ship sailed", "the ship sailed"]
    assert mbr_select(texts, [-0.5, -1.0, -1.0, -1.0]) == 2
    assert mbr_select(["a b", "a c", "d e"], [-1.0, -1.0, -1.0]) in (0, 1)
    assert mbr_select(["a b", "a c", "d e"], [-50.0, -50.0, 0.0], temperature=1.0) == 2, "weights are a softmax"
    assert mbr_select(["Ship Sailed", "ship sailed", "pump"], [-1.0, -1.0, -0.9]) == 0, "case is ignored"
    assert mbr_select(["only"], [-9.0]) == 0
    assert mbr_select(["新计划", "政府宣布计划", "政府宣布了计划"], [-1.0, -1.1, -1.1]) != 0, "each letter is a word"


def test_equals_the_definition() -> None:
    texts, log_p = ["x y z", "x y", "y z w", ""], [-1.0, -2.0, -1.5, -3.0]

    def f1(a: str, b: str) -> float:
        common = sum(min(a.split().count(w), b.split().count(w)) for w in set(a.split()))
        return 2 * common / ((len(a.split()) + len(b.split())) or 1)

    gains = [sum(math.exp(p / 4) * f1(a, b) for b, p in zip(texts, log_p, strict=True)) for a in texts]
    assert mbr_select(texts, log_p) == gains.index(max(gains))
