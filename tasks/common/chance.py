"""The figure of predictions that ignore the input, which a trained model must exceed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

SOME = 500  # validation samples on which a figure is computed that takes long


class Chance(NamedTuple):
    """The figure of predictions that ignore the input."""

    value: float
    by: str  # what they are: "the most frequent label, 'cat'"
    scale: float = 1.0  # the metric's largest value

    def includes(self, figure: float, samples: int, mode: str) -> bool:
        """Whether a figure does not exceed chance by more than twice the standard error of a share, or 2 %.

        >>> [Chance(0.5, "heads").includes(figure, 100, "max") for figure in (0.4, 0.59, 0.61)]
        [True, True, False]
        """
        share = min(max(self.value / self.scale, 0.0), 1.0)
        margin = self.scale * max(0.02, 2 * math.sqrt(share * (1 - share) / max(samples, 1)))
        return (figure - self.value) * (1 if mode == "max" else -1) <= margin


def constant(
    answers: Iterable[str], score: Callable[[str], float], scale: float = 1.0, kind: str = "answer"
) -> Chance | None:
    """The figure of the most frequent training answer, given for every sample; None without answers.

    Args:
        answers: The answers of the training samples.
        score: The figure of one answer.
        scale: The metric's largest value.
        kind: What the answers are, in words.
    """
    common = Counter(answers).most_common(1)
    if not common:
        return None
    answer = common[0][0]
    shown = answer if len(answer) < 40 else f"{answer[:37]}..."
    return Chance(score(answer), f"the most frequent {kind}, {shown!r}", scale)
