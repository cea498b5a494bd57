"""A summary of a data set by the facts of its samples: numbers such as lengths, and names such as classes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mmattn.data.errors import DataError


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


def measure(dataset: Any, samples: Sequence[Any], opened: int) -> tuple[Summary, list[str]]:
    """Summarize many samples of a data set without opening the files of all of them.

    Args:
        dataset: The data set.
        samples: Its samples.
        opened: Maximum number of samples whose files are opened, at equal distances; those that cannot be read are
            left out.

    Returns:
        The summary, and the names of the facts that are those of some samples only.
    """
    found = summarize(dataset.facts(sample, files=False) for sample in samples)
    some = summarize(_readable(dataset, samples[:: -(-len(samples) // opened) or 1]))
    extra = [key for key in (*some.numbers, *some.names) if key not in found.numbers and key not in found.names]
    found.numbers |= {key: some.numbers[key] for key in extra if key in some.numbers}
    found.names |= {key: some.names[key] for key in extra if key in some.names}
    return found, extra if len(samples) > opened else []


def _readable(dataset: Any, samples: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for sample in samples:
        with suppress(DataError):
            yield dataset.facts(sample)


def by_frequency(counters: Iterable[Counter[str]]) -> list[str]:
    """The names of several counters, the most frequent first."""
    total: Counter[str] = sum(counters, Counter())
    return sorted(total, key=lambda name: (-total[name], name))
