"""When each token was said, from attention to the sound: dynamic time warping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 7  # frames of the median filter


def spoken_from(weights: Tensor, width: int = WIDTH) -> list[int]:
    """The frame from which on each token is said (Radford et al. 2022, the published code's word timestamps).

    Attention is brought to mean 0 and variance 1 over the tokens, frame by frame, smoothed in time by a median, and
    averaged over the heads; the tokens are laid along the path of most attention that never goes back.

    Args:
        weights: (h, L, S), attention of the places from which each token is written.
        width: Frames of the median filter, odd.

    Returns:
        L frames, in order.

    >>> spoken_from(torch.eye(3).repeat_interleave(4, 1)[None], width=1)
    [0, 4, 8]
    """
    spread = weights.std(1, correction=0, keepdim=True).clamp_min(1e-9)  # (h, 1, S)
    score = median((weights - weights.mean(1, keepdim=True)) / spread, width).mean(0)  # (L, S)
    return warp(-score)


def median(x: Tensor, width: int) -> Tensor:
    """The median of width neighbours in the last dimension, mirrored at its ends; of no more than half so many, x."""
    half = width // 2
    if x.shape[-1] <= half:
        return x
    return F.pad(x, (half, half), mode="reflect").unfold(-1, width, 1).median(-1).values


def warp(cost: Tensor) -> list[int]:
    """Where each row begins on the cheapest path from the first corner to the last, by steps right, down or both.

    Row by row: ``D[i, j] = cost[i, j] + min(D[i - 1, j - 1], D[i - 1, j], D[i, j - 1])``, and what comes from the left
    adds up, ``D[i, j] = C[j] + min over k <= j of (from above[k] - C[k - 1])``, C being the row's running sum.

    Args:
        cost: (L, S).

    Returns:
        The first column of each row's stretch.

    >>> warp(torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]))
    [0, 2]
    """
    cost = cost.detach().double().cpu()
    sums = cost.cumsum(1)
    before = F.pad(sums[:, :-1], (1, 0))  # (L, S), the running sum up to each column
    total, entries, aslant = sums[0], [], []
    for row in range(1, len(cost)):
        beside = F.pad(total[:-1], (1, 0), value=torch.inf)
        aslant.append(beside < total)  # came from above and from the left at once
        least, entry = (torch.minimum(beside, total) - before[row]).cummin(0)
        entries.append(entry)
        total = sums[row] + least
    place, found = cost.shape[1] - 1, []
    for entry, both in zip(reversed(entries), reversed(aslant), strict=True):
        place = int(entry[place])
        found.append(place)
        place -= int(both[place])
    return [0, *reversed(found)]
