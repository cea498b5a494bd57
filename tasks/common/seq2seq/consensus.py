"""Choosing among texts by what they have in common."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence


def agreed(texts: Sequence[str], log_p: Sequence[float], temperature: float = 4.0) -> int:
    """Which of some texts shares most words with all of them: minimum Bayes risk (Kumar and Byrne 2004).

    ``argmax_i sum_j softmax(log p / temperature)_j F1(words_i, words_j)``, words lower-cased and counted. Where many
    texts are about as likely, as many short summaries of one document are, the likeliest is often an odd one.

    Args:
        texts: candidates.
        log_p: of each.
        temperature: of the weights; what a search leaves out is mostly unlikely, and flatter weights stand in for it.

    >>> agreed(["fish", "old ship sails", "old ship sailed"], [-1.0, -1.5, -1.6])
    1
    """
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    highest = max(log_p)
    weights = [math.exp((value - highest) / temperature) for value in log_p]

    def shared(a: Counter[str], b: Counter[str]) -> float:
        return 2 * (a & b).total() / ((a.total() + b.total()) or 1)

    gains = [sum(weight * shared(bag, other) for weight, other in zip(weights, bags, strict=True)) for bag in bags]
    return gains.index(max(gains))
