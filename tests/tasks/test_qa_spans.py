"""Answers from scores: the semantics of transformers 4's pipeline, windows, thresholds, whole words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmattn.data.text.pair import windows
from mmattn.tasks.qa.data import Answer, QASample, Window
from mmattn.tasks.qa.metrics import best_threshold, exact_match, f1, normalize_answer
from mmattn.tasks.qa.processor import QAProcessor, target
from mmattn.tasks.qa.spans import candidates, log_normalizers, whole_words
from mmattn.tasks.qa.squad import SquadMetric
from tests.conftest import refused

TEXT = "zero one two three four five six seven"
SPANS = [(m, m + len(word)) for word, m in zip(TEXT.split(), (0, 5, 9, 13, 19, 24, 29, 33), strict=True)]


def by_pipeline(
    start: np.ndarray, end: np.ndarray, first: list[int], size: list[int], top_k: int, longest: int
) -> tuple[list[tuple[float, int, int, int]], float]:
    """Reference: `select_starts_ends` and `decode_spans` of transformers 4, window by window, then the best of all."""
    found, null = [], 1e6
    for w in range(len(start)):
        allowed = np.zeros(start.shape[1], bool)
        allowed[first[w] : first[w] + size[w]] = allowed[0] = True
        p, q = (np.where(allowed, x[w], -10000.0) for x in (start, end))
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (p, q))
        null = min(null, p[0] * q[0])
        p[0] = q[0] = 0.0
        outer = np.tril(np.triu(np.outer(p, q)), longest - 1)
        order = np.argsort(-outer.flatten(), kind="stable")[:top_k]
        for a, b in zip(*np.unravel_index(order, outer.shape), strict=True):
            if allowed[a] and allowed[b] and outer[a, b] > 0:
                found.append((float(outer[a, b]), w, int(a) - first[w], int(b) - first[w]))
    return sorted(found, key=lambda row: -row[0])[:top_k], null


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("top_k", [1, 3])
def test_spans_equal_the_pipeline(seed: int, top_k: int) -> None:
    random = np.random.default_rng(seed)
    start, end = random.normal(size=(2, 2, 12)) * 3
    first, size = [4, 4], [5, 6]
    placed = [Window(0, 4, SPANS[:5]), Window(0, 4, SPANS[2:])]
    wanted, null = by_pipeline(start, end, first, size, 12, 3)
    found = candidates(TEXT, torch.tensor(start), torch.tensor(end), placed, top_k, 3)
    unique: dict[tuple[int, int], float] = {}
    for score, w, a, b in wanted:
        unique.setdefault((placed[w].spans[a][0], placed[w].spans[b][1]), score)
    assert [(s.start, s.end) for s in found.spans] == list(unique)[:top_k]
    assert [s.score for s in found.spans] == pytest.approx(list(unique.values())[:top_k], rel=1e-4)
    assert found.null_score == pytest.approx(null, rel=1e-4)


def test_all_windows_are_searched_before_the_best_are_taken() -> None:
    """transformers#38984: two of the three best spans are in one window."""
    start, end = torch.full((2, 8), -9.0), torch.full((2, 8), -9.0)
    start[0, 3], end[0, 3], start[0, 5], end[0, 5] = 5.0, 5.0, 4.9, 4.9
    start[1, 2], end[1, 2], start[1, 0], end[1, 0] = 1.0, 1.0, 1.5, 1.5
    placed = [Window(0, 2, SPANS[:5]), Window(0, 2, SPANS[3:])]
    found = candidates(TEXT, start, end, placed, 3, 1)
    assert [TEXT[span.start : span.end] for span in found.spans[:2]] == ["one", "three"]
    assert found.spans[0].window == found.spans[1].window == 0


def test_no_answer_is_the_least_of_the_windows() -> None:
    start = end = torch.tensor([[4.0, 0, 0, 1.0], [-2.0, 0, 0, 3.0]])
    placed = [Window(0, 3, SPANS[:1]), Window(0, 3, SPANS[1:2])]
    found = candidates(TEXT, start, end, placed)
    assert found.null_logit == -4.0
    assert found.null_difference == pytest.approx(-10.0)
    assert TEXT[found.spans[0].start : found.spans[0].end] == "one"


def test_texts_are_compared_by_common_probabilities() -> None:
    one, other = torch.tensor([[0.0, 0, 2.0]]), torch.tensor([[0.0, 0, 5.0]])
    placed = [Window(0, 2, SPANS[:1])]
    total = log_normalizers([(one, one, placed), (other, other, placed)])
    assert total[0] == pytest.approx(math.log(2 + math.exp(2) + math.exp(5)))
    scores = [candidates(TEXT, x, x, placed, log_total=total).spans[0].score for x in (one, other)]
    alone = [candidates(TEXT, x, x, placed).spans[0].score for x in (one, other)]
    assert scores[0] < 0.01 < scores[1] < alone[1]
    assert alone[0] > 0.7


@pytest.mark.parametrize(
    ("text", "span", "words"),
    [
        ("the teapots", (4, 7), "teapots"),
        ("in 1999, he", (3, 5), "1999"),
        ("un café noir", (3, 6), "café"),
        ("我们去北京吧", (3, 5), "北京"),
        ("e-mail (x)", (2, 4), "mail"),
        ("a😀b", (1, 2), "😀"),
    ],
)
def test_whole_words(text: str, span: tuple[int, int], words: str) -> None:
    assert text[slice(*whole_words(text, *span))] == words


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["b " * 50 + "Größe  naïve\n\t中文 😀 x" + " c" * 40, "x", "a" * 7, "Ⅷ ﬁre"])
def test_windows_cover_the_text_with_exact_offsets(context: str) -> None:
    """Whatever the normalizer does, an answer's characters are those of the original text."""
    sample = QASample("1", "where is it ?", context, [])
    from mmattn.data.text.tokenizer import TextProcessor

    processor = QAProcessor(TextProcessor.fit([context, sample.question]), max_len=24, stride=4)
    spans = processor.encode(context)[1]
    for start, end in spans[:: max(1, len(spans) // 9)]:
        answer = Answer(context[start:end], start)
        batch = processor.collate([QASample("1", sample.question, context, [answer])])
        holding = batch.starts > 0
        assert holding.any()
        for row in holding.nonzero().flatten().tolist():
            window = batch.windows[row]
            a, b = (int(x[row]) - window.first for x in (batch.starts, batch.ends))
            assert context[window.spans[a][0] : window.spans[b][1]] == answer.text
    covered = {span for window in batch.windows for span in window.spans}
    assert covered == set(spans)
    assert batch.input_ids.shape[1] <= 24


def test_windows_overlap() -> None:
    assert list(windows(0, 4, 1)) == [(0, 0)]
    assert list(windows(9, 4, 1)) == [(0, 4), (3, 7), (6, 9)]
    refused("overlap: expected 0 to 3, found 4", lambda: list(windows(9, 4, 4)))


def test_an_answer_that_no_window_holds_is_none() -> None:
    assert target(Window(0, 3, SPANS[:3]), Answer("two three", 9)) == (0, 0)
    assert target(Window(0, 3, SPANS[1:4]), Answer("two three", 9)) == (4, 5)
    assert target(Window(0, 3, SPANS[:3]), None) == (0, 0)


# Figures --------------------------------------------------------------------------------------------------------------


def test_figures_equal_torchmetrics() -> None:
    from torchmetrics.text import SQuAD

    texts = ["The old mill.", "a goat", "", "red, green"]
    true = [["old mill", "the mill"], ["A white goat!"], ["x"], ["green"]]
    reference = SQuAD()
    reference.update(
        [{"prediction_text": t, "id": str(n)} for n, t in enumerate(texts)],
        [{"answers": {"text": a, "answer_start": [0] * len(a)}, "id": str(n)} for n, a in enumerate(true)],
    )
    metric = SquadMetric(None)
    metric.update(texts[:2], true[:2], [0.0] * 2, [""] * 2)
    metric.update(texts[2:], true[2:], [0.0] * 2, [""] * 2)
    found, wanted = metric.compute(), reference.compute()
    assert float(found["f1"]) == pytest.approx(float(wanted["f1"]) / 100)
    assert float(found["em"]) == pytest.approx(float(wanted["exact_match"]) / 100)
    assert normalize_answer("An  Apple-pie's, the") == "applepies"
    assert (exact_match("", [""]), f1("", ["x"]), f1("x", [""])) == (1.0, 0.0, 0.0)


def test_threshold_equals_an_exhaustive_search() -> None:
    """SQuAD 2's `find_best_thresh`: every threshold is tried."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 30):
        scores = torch.rand(size, generator=generator)
        has = torch.rand(size, generator=generator) < 0.6
        difference = torch.randn(size, generator=generator).round(decimals=1)

        def figure(threshold: float, scores=scores, has=has, difference=difference) -> float:
            none = difference > threshold
            return float(torch.where(none, (~has).float(), torch.where(has, scores, 0.0)).mean())

        best = max(figure(t) for t in [*(difference - 0.05).tolist(), *(difference + 0.05).tolist()])
        assert figure(best_threshold(scores, has, difference)) == pytest.approx(best)


def test_figures_of_version_2() -> None:
    metric = SquadMetric(0.0)
    metric.update(
        ["mill", "mill", "goat", "goat"], [["mill"], ["mill"], [""], [""]], [-1.0, 1.0, -1.0, 1.0], ["a", "b", "", ""]
    )
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {"f1": 0.5, "em": 0.5, "has_ans_f1": 0.5, "has_ans_em": 0.5, "no_ans_f1": 0.5, "threshold": 0.0}
    chosen = SquadMetric(0.0, chooses=True, groups=["a"])
    chosen.update(["mill", "goat"], [["mill"], [""]], [5.0, 6.0], ["a", ""])
    assert float(chosen.compute()["f1"]) == float(chosen.compute()["f1/a"]) == 1.0
