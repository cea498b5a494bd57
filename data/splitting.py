"""The division of a data set into training and validation data."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from mmattn.data.seeds import seed_of

SHARE = 0.2  # for validation, of sets of up to SMALL / SHARE samples
SMALL, LARGE = 1000, 5000  # validation samples of larger sets, from and to


def held_out(strata: Sequence[Hashable], groups: Sequence[Hashable], seed: int) -> list[int]:
    """Draws the validation samples: a fifth of each stratum, at most 1,000 to 5,000 samples (a tenth) of large sets.

    The samples of a group, such as the questions about one image, are drawn together; at least one group of each
    stratum is left to training. The result is a pure function of the arguments.

    Args:
        strata: The stratum of each sample, its label; a group belongs to that of its first sample.
        groups: The group of each sample.
        seed: Seed of the draw.

    Returns:
        Indices of the validation samples, ascending; none if there are fewer than two groups.

    >>> [len(held_out(["a"] * 20 + ["b"] * 10, range(30), seed)) for seed in (0, 1)]
    [6, 6]
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    by_stratum: dict[Hashable, list[list[int]]] = {}
    for member in members.values():
        by_stratum.setdefault(strata[member[0]], []).append(member)
    draw = random.Random(seed_of(seed, 0, 0)).random
    total = len(strata)
    share = min(SHARE, max(SMALL, min(total // 10, LARGE)) / max(total, 1))
    kept: list[int] = []
    wanted = 0.0  # samples, with what earlier strata were short of
    for _, several in sorted(by_stratum.items(), key=lambda pair: str(pair[0])):
        keys = [draw() for _ in several]
        order = sorted(range(len(several)), key=keys.__getitem__)
        wanted += share * sum(map(len, several))
        for place in order[:-1]:  # the last is left to training
            if len(several[place]) <= 2 * wanted - 1e-9:  # nearer to the share with it than without
                kept += several[place]
                wanted -= len(several[place])
    if not kept and len(members) > 1:
        kept = max(by_stratum.values(), key=len)[0]
    return sorted(kept)
