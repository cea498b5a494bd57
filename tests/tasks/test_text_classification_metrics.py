"""Metrics of text classification: entities as seqeval counts them, thresholds, and the figures of each kind."""

from __future__ import annotations

import pytest
import torch

from mmattn.tasks.text_classification.entities import entities, entity_counts, f1_of, is_scheme
from mmattn.tasks.text_classification.labels import IGNORED, Labels
from mmattn.tasks.text_classification.metrics import LabelMetric, TextMetric, main_metric
from mmattn.tasks.text_classification.thresholds import best_thresholds

# True and predicted tags of three sentences, and seqeval 1.2.2's precision, recall and F1.
SEQEVAL = [
    (
        "I-y B-x I-y O B-x I-y O B-x | I-y I-y O I-x B-y B-x I-y O | I-x B-y I-y I-x I-x O B-y B-x",
        "B-y I-x I-y O B-x I-y O B-x | I-x I-y I-y I-x B-y I-x I-x I-y | O I-y I-y B-y O B-x B-y B-x",
        (0.647059, 0.6875, 0.666667),
    ),
    (
        "O I-x I-y B-x B-y B-y I-y B-y | I-y B-x I-y I-y B-x I-x B-x I-y | I-y I-y I-x I-x I-y B-x I-x O",
        "O O I-y B-x B-x B-y I-x O | B-x B-x B-y B-x B-x B-y I-y I-y | I-y I-y B-x B-y I-y B-x I-x O",
        (0.333333, 0.3125, 0.322581),
    ),
    (
        "I-x B-y O I-y B-x O I-y I-y | I-x I-x B-y B-x O I-y O B-y | O I-x O O B-y B-x O O",
        "I-x B-x O I-y B-x I-y I-y I-y | I-x B-x B-y I-x O I-y I-y B-x | B-y I-x O I-y B-y I-x O O",
        (0.5, 0.615385, 0.551724),
    ),
]


@pytest.mark.parametrize(("true", "predicted", "expected"), SEQEVAL)
def test_entities_equal_seqeval(true: str, predicted: str, expected: tuple[float, ...]) -> None:
    pairs = zip(predicted.split(" | "), true.split(" | "), strict=True)
    counts = [entity_counts(mine.split(), theirs.split()) for mine, theirs in pairs]
    assert f1_of(*map(sum, zip(*counts, strict=True))) == pytest.approx(expected, abs=1e-6)


def test_random_entities_equal_seqeval() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    generator = torch.Generator().manual_seed(0)
    tags = ["O", "B-x", "I-x", "E-x", "S-x", "B-y", "I-y"]
    for _ in range(200):
        drawn = torch.randint(len(tags), (2, 4, 7), generator=generator).tolist()
        true, predicted = ([[tags[k] for k in row] for row in some] for some in drawn)
        counts = [entity_counts(mine, theirs) for mine, theirs in zip(predicted, true, strict=True)]
        f1 = f1_of(*map(sum, zip(*counts, strict=True)))[2]
        assert f1 == pytest.approx(seqeval.f1_score(true, predicted), abs=1e-9)


def test_entities() -> None:
    assert entities(["B-x", "I-x", "S-y", "B-x", "E-x"]) == [("x", 0, 2), ("y", 2, 3), ("x", 3, 5)]
    assert entities([]) == []
    assert f1_of(0, 3, 0) == f1_of(0, 0, 0) == (0.0, 0.0, 0.0)
    assert not is_scheme(["O"])


def test_thresholds_are_the_best() -> None:
    """Compared with every threshold between two probabilities."""
    generator = torch.Generator().manual_seed(0)
    scores, true = (
        torch.rand(40, 5, generator=generator).round(decimals=1),
        torch.rand(40, 5, generator=generator) < 0.3,
    )
    true[:, 4] = False
    found = best_thresholds(scores, true)
    assert found[4] == 0.5
    for k in range(4):

        def f1(threshold: float, k: int = k) -> float:
            chosen = scores[:, k] >= threshold
            return float(2 * (chosen & true[:, k]).sum() / (chosen.sum() + true[:, k].sum()))

        assert f1(float(found[k])) == pytest.approx(max(f1(t / 100 + 0.005) for t in range(100)))


def test_figures_of_classes() -> None:
    metric = LabelMetric(Labels("single_label", ["a", "b", "c"]))
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [3, 0, 0]])
    metric.update(logits[:2], torch.tensor([0, 1]))
    metric.update(logits[2:], torch.tensor([0, 0]))
    found = metric.compute()
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2), "of the classes that occur"
    assert metric.confusion is not None
    assert metric.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert 0 <= found["ece"] <= 1
    assert found["mcc"] == pytest.approx(0.5773, abs=1e-3)


def test_figures_of_sets_and_chosen_thresholds() -> None:
    labels = Labels("multi_label", ["a", "b"])
    logits = torch.tensor([[-1.0, 4], [-2, 4], [-3, -4], [-4, -4]])
    targets = torch.tensor([[1.0, 1], [1, 1], [0, 0], [0, 0]])
    plain, chosen = LabelMetric(labels), LabelMetric(labels, chooses=True)
    for metric in (plain, chosen):
        metric.update(logits, targets)
    assert plain.compute()["f1_macro"] == pytest.approx(0.5)
    found = chosen.compute()
    assert found["f1_macro"] == found["f1_micro"] == found["accuracy"] == found["map"] == 1.0
    assert 0.05 < found["threshold/a"] < 0.12
    labels.thresholds = [float(found["threshold/a"]), float(found["threshold/b"])]
    plain.reset()
    plain.update(logits, targets)
    assert plain.compute()["f1_macro"] == 1.0


def test_figures_of_scores_and_tags() -> None:
    labels = Labels("regression", mean=3.0, std=2.0)
    metric = LabelMetric(labels)
    metric.update(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 1.0, 3.0]))
    found = metric.compute()
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["pearson"] == pytest.approx(0.98198, abs=1e-4)
    assert found["spearman"] == pytest.approx(1.0, abs=1e-5)
    alone = LabelMetric(labels)
    alone.update(torch.tensor([[0.5]]), torch.tensor([0.5]))
    assert alone.compute()["pearson"] == 0.0, "one score has no correlation"
    tags = LabelMetric(Labels("tagging", ["B-x", "I-x", "O"]))
    tags.update(torch.eye(3)[None], torch.tensor([[0, 1, IGNORED]]))
    tags.add_sentences([["B-x", "I-x"]], [["B-x", "I-x"]])
    assert tags.compute()["f1"] == tags.compute()["accuracy"] == 1.0
    assert main_metric({"": tags.labels}) == "f1"
    assert main_metric({"": Labels("tagging", ["NOUN", "VERB"])}) == "accuracy"
    assert main_metric({}) == "token_accuracy"


def test_figures_of_several_tasks_and_tokens() -> None:
    metric = TextMetric({"x": Labels("single_label", ["a", "b"]), "y": Labels("regression")}, language=True)
    metric.part("x").update(torch.eye(2), torch.tensor([0, 0]))
    assert metric.tokens is not None
    metric.tokens.update(torch.eye(3)[:2] * 50, torch.tensor([0, 1]))
    found = metric.compute()
    assert found["mean"] == found["x/accuracy"] == 0.5, "of the tasks that were measured"
    assert found["token_accuracy"] == 1.0
    assert found["token_perplexity"] == pytest.approx(1.0)
    metric.reset()
    for kind in ("single_label", "multi_label", "tagging", "regression"):
        none = LabelMetric(Labels(kind, [] if kind == "regression" else ["a", "b"]))
        none.add_nothing()
        assert none.compute() == {}, "of no sample"
