"""Exact match and F1 of SQuAD, and the choice of the threshold for questions without an answer.

Rajpurkar et al. 2016, section 6.1, and Rajpurkar et al. 2018, section 4, as in the official evaluation script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case a text and remove punctuation, articles and repeated white space.

    >>> normalize_answer("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether a prediction equals one of the answers, after normalization: 0 or 1.

    Args:
        prediction: The predicted answer; "" if the context is predicted to have none.
        answers: The annotators' answers; [""] if the context has none.
    """
    return float(any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Greatest F1 of the prediction's words and those of an answer, in 0..1; see `exact_match`.

    >>> round(f1("the old mill", ["old stone mill"]), 4)
    0.8
    """
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in answers)


def _f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    common = (Counter(found) & Counter(true)).total()
    return 2 * common / (len(found) + len(true))


def best_threshold(f1_of_span: Tensor, answerable: Tensor, null_difference: Tensor) -> float:
    """The threshold with the greatest F1, of equal ones the least, halfway between two questions' differences.

    Args:
        f1_of_span: (N,), F1 of the best span of each question.
        answerable: (N,) bool.
        null_difference: (N,), by how much the score of no answer exceeds that of the best span.
    """
    order = null_difference.argsort(stable=True)
    differences = null_difference[order]
    # With a threshold between the k-th and the next, the first k questions are answered.
    gain = torch.where(answerable, f1_of_span, 0.0)[order] - (~answerable[order]).to(f1_of_span)
    totals = torch.cat([gain.new_zeros(1), gain.cumsum(0)])  # (N + 1,)
    edges = torch.cat([differences[:1] - 1, (differences[1:] + differences[:-1]) / 2, differences[-1:] + 1])
    distinct = torch.ones_like(totals, dtype=torch.bool)
    distinct[1:-1] = differences[1:] > differences[:-1]
    return float(edges[totals.masked_fill(~distinct, -torch.inf).argmax()])
