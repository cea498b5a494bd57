"""A summary of a data set by the fields of its samples: labels, lengths of texts, durations, sizes of images."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mmattn.data.errors import DataError

TEXTS = ("question", "source", "text", "context", "target")  # fields of samples
SOME, MANY = 200, 20_000  # samples of which files are opened, and texts read


def label_counts(samples: Sequence[Any]) -> Counter[str]:
    """How often each label, or each first answer, occurs."""
    found: Counter[str] = Counter()
    for sample in samples:
        given = getattr(sample, "labels", None) or getattr(sample, "answers", None) or [getattr(sample, "label", "")]
        found.update(given[:1] if hasattr(sample, "answers") else given)
    del found[""]
    return found


def measures(samples: Sequence[Any]) -> list[tuple[str, str]]:
    """Names and values of what can be measured: words of each text, seconds, pixels."""
    rows = []
    many = samples[:: -(-len(samples) // MANY)]
    for name in TEXTS:
        words = [len(text.split()) for s in many if isinstance(text := getattr(s, name, None), str) and text]
        if words:
            rows.append((f"words of the {name}", spread(words)))
    seconds = [float(value) for sample in samples if (value := getattr(sample, "duration", 0))]
    if seconds:
        rows.append(("seconds", f"{spread(seconds)}; {sum(seconds) / 60:.1f} minutes in all"))
    sizes = [size for sample in samples[:: -(-len(samples) // SOME)] if (size := _size(sample))]
    if sizes:
        common = Counter(sizes).most_common(1)[0][0]
        all_equal = "" if len(set(sizes)) == 1 else f" most often; {spread([min(size) for size in sizes])} on a side"
        rows.append(("pixels", f"{common[0]} x {common[1]}{all_equal}"))
    return rows


def spread(values: Sequence[float]) -> str:
    """The median, and the range.

    >>> spread([3, 1, 2])
    'median 2, 1 to 3'
    """
    return f"median {statistics.median(values):.4g}, {min(values):.4g} to {max(values):.4g}"


def _size(sample: Any) -> tuple[int, int] | None:
    """Width and height of a sample's image, if it has one that can be read."""
    from mmattn.data.image.processor import image_size

    image = getattr(sample, "image", None)
    if image is None:
        return None
    with suppress(DataError):
        return image_size(image)
    return None
