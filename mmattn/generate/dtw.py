"""Token timings from cross-attention to audio frames, by dynamic time warping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 7  # frames of the median filter


def spoken_from(weights: Tensor, width: int = WIDTH) -> list[int]:
    """Returns the start frame of each token (Radford et al. 2022, the published code's word timestamps).

    Attention is normalized to mean 0 and variance 1 over the tokens, frame by frame, smoothed in time by a median
    filter, and averaged over the heads; tokens are aligned along the monotonic path of maximum attention.

    Args:
        weights: (h, L, S), attention of the positions that predict each token.
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
    """Median filter over the last dimension, reflected at its ends; x itself if it has at most width / 2 elements."""
    half = width // 2
    if x.shape[-1] <= half:
        return x
    return F.pad(x, (half, half), mode="reflect").unfold(-1, width, 1).median(-1).values


def warp(cost: Tensor) -> list[int]:
    """Dynamic time warping: the column at which the minimum-cost path enters each row, by steps right, down or both.

    ``D[i, j] = cost[i, j] + min(D[i - 1, j - 1], D[i - 1, j], D[i, j - 1])``, computed row by row as
    ``D[i, j] = C[j] + min over k <= j of (from above[k] - C[k - 1])``, C the cumulative sum of the row.

    Args:
        cost: (L, S).

    Returns:
        The first column of each row's segment.

    >>> warp(torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]))
    [0, 2]
    """
    cost = cost.detach().double().cpu()
    sums = cost.cumsum(1)
    before = F.pad(sums[:, :-1], (1, 0))  # (L, S), the cumulative sum before each column
    total, entries, aslant = sums[0], [], []
    for row in range(1, len(cost)):
        beside = F.pad(total[:-1], (1, 0), value=torch.inf)
        aslant.append(beside < total)  # diagonal steps
        least, entry = (torch.minimum(beside, total) - before[row]).cummin(0)
        entries.append(entry)
        total = sums[row] + least
    place, found = cost.shape[1] - 1, []
    for entry, both in zip(reversed(entries), reversed(aslant), strict=True):
        place = int(entry[place])
        found.append(place)
        place -= int(both[place])
    return [0, *reversed(found)]
