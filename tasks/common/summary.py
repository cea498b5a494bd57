"""A summary of a data set by the facts of its samples: numbers such as lengths, and names such as classes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """The numbers of each fact, and how often each of its names occurs."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    names: dict[str, Counter[str]] = field(default_factory=dict)

    def spread(self, key: str) -> str:
        """The smallest number of a fact, the median and the largest; of seconds also their sum.

        >>> Summary({"words": [3, 1, 2]}).spread("words")
        '1 / 2 / 3'
        """
        values = self.numbers.get(key)
        if not values:
            return "-"
        total = f"; {sum(values) / 60:,.1f} minutes in all" if key == "seconds" else ""
        return f"{min(values):,g} / {statistics.median(values):,g} / {max(values):,g}{total}"


def summarize(facts: Iterable[Mapping[str, Any]]) -> Summary:
    """Collect the facts of samples, see `SampleDataset.facts`.

    >>> summarize([{"words": 2, "class": "cat"}, {"words": 3, "class": ["cat", "dog"]}])
    Summary(numbers={'words': [2, 3]}, names={'class': Counter({'cat': 2, 'dog': 1})})
    """
    found = Summary()
    for row in facts:
        for key, value in row.items():
            if isinstance(value, (int, float)):
                found.numbers.setdefault(key, []).append(value)
            else:
                found.names.setdefault(key, Counter()).update([value] if isinstance(value, str) else value)
    return found


def by_frequency(counters: Iterable[Counter[str]]) -> list[str]:
    """The names of several counters, the most frequent first."""
    total: Counter[str] = sum(counters, Counter())
    return sorted(total, key=lambda name: (-total[name], name))
