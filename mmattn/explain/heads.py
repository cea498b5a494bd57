"""Statistics of attention heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..masks import Mask, key_offsets
from .rollout import Maps, layers_of


class HeadStatistics(NamedTuple):
    """Statistics per head, (layers, h) each; NaN where undefined."""

    entropy: Tensor  # of a query's weights, in nats: 0 = attends to one key
    relative_entropy: Tensor  # entropy over that of uniform attention to the allowed keys, 0..1
    distance: Tensor  # between a query and the keys that it attends to: in tokens, or in cells of the grid
    disagreement: Tensor  # Jensen-Shannon distance to the other heads of the layer: 0 = equal, at most 0.83


def head_statistics(
    maps: Maps,
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    is_causal: bool = False,
    grid: tuple[int, int] | None = None,
    within: str = "",
) -> HeadStatistics:
    """Returns entropy, attended distance and disagreement of the heads of some layers, as means over the queries.

    Entropy: ``-sum_j w_ij ln w_ij`` (Clark et al. 2019, section 3.3). Distance: ``sum_j w_ij |i - j|``, on a map
    between the centers of cells (Dosovitskiy et al. 2021, figure 7). Disagreement of two heads with weights p and q:
    ``sqrt(H((p + q) / 2) - (H(p) + H(q)) / 2)``, averaged over the other heads; Clark et al. compare heads by the
    divergence under the root (section 6).

    Weights are normalized to distributions: rows are divided by their sums, negative weights are set to zero. Masked
    queries and queries without attention are excluded.

    Args:
        maps: Maps of layers with equally many heads: the result of `capture`, or a list of (B, h, L, S).
        key_mask: (B, S) bool, True = a real token.
        query_mask: (B, L) likewise; None = key_mask if L = S.
        is_causal: Whether the layers are causal, which determines the number of allowed keys of a query.
        grid: (height, width) of a map whose cells are the last tokens; preceding tokens (a class token) are excluded
            from the distance.
        within: The path of a stack, if maps are those of a larger model.

    Raises:
        ValueError: Layers that differ in their number of heads, or masks or a grid that do not fit.

    >>> head_statistics([torch.rand(2, 4, 5, 5).softmax(-1) for _ in range(3)]).entropy.shape
    torch.Size([3, 4])
    """
    layers = layers_of(maps, within)
    counts = {weights.shape[1] for weights in layers}
    if len(counts) > 1:
        raise ValueError(f"expected layers with equally many heads, found {sorted(counts)}; choose some by `within`")
    found = [_statistics(weights.detach(), key_mask, query_mask, is_causal, grid) for weights in layers]
    return HeadStatistics(*(torch.stack(part) for part in zip(*found, strict=True)))


def _statistics(
    weights: Tensor, key_mask: Tensor | None, query_mask: Tensor | None, is_causal: bool, grid: tuple[int, int] | None
) -> tuple[Tensor, ...]:
    B, h, L, S = weights.shape
    for name, mask, size in (("key_mask", key_mask, S), ("query_mask", query_mask, L)):
        if mask is not None and mask.shape != (B, size):
            raise ValueError(f"{name} must be {(B, size)} for a map {(B, h, L, S)}, found {tuple(mask.shape)}")
    if query_mask is None and L == S:
        query_mask = key_mask
    weights = weights.clamp_min(0.0)
    if key_mask is not None:
        weights = weights * key_mask[:, None, None, :]
    p, valid = _distributions(weights, query_mask)
    allowed = Mask(key_mask, is_causal=is_causal).dense(L, S, weights.device)
    choices = p.new_full((B, 1, L), S) if allowed is None else allowed.expand(B, 1, L, S).sum(-1)  # (B, 1, L)
    entropy = _entropy(p)  # (B, h, L)
    relative = entropy / choices.clamp_min(2).log()
    return (
        _mean(entropy, valid),
        _mean(relative, valid & (choices > 1)),
        _distance(weights, query_mask, grid),
        _disagreement(p, entropy, valid),
    )


def _distributions(weights: Tensor, query_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns rows that sum to one, (B, h, L, S), and which of them are valid, (B, h, L)."""
    total = weights.sum(-1, keepdim=True)
    valid = total.squeeze(-1) > 0
    if query_mask is not None:
        valid = valid & query_mask[:, None, :]
    return weights / total.clamp_min(torch.finfo(weights.dtype).tiny), valid


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Returns the mean of the chosen values (B, h, L) for each head: (h,), NaN if none is chosen."""
    chosen = chosen.expand_as(values)
    return values.where(chosen, 0.0).sum((0, 2)) / chosen.sum((0, 2))


def _distance(weights: Tensor, query_mask: Tensor | None, grid: tuple[int, int] | None) -> Tensor:
    _, h, L, S = weights.shape
    if L != S:
        if grid is not None:
            raise ValueError(f"a grid needs self-attention over its cells, found a map of {L} queries and {S} keys")
        return weights.new_full((h,), float("nan"))  # queries and keys are different sequences
    if grid is None:
        apart = key_offsets(L, S, weights.device).abs().to(weights.dtype)  # (L, S)
    else:
        height, width = grid
        before = S - height * width
        if before < 0:
            raise ValueError(f"a grid of {height} x {width} cells does not fit a map of {S} tokens")
        weights = weights[:, :, before:, before:]
        query_mask = None if query_mask is None else query_mask[:, before:]
        rows, columns = torch.arange(height, device=weights.device), torch.arange(width, device=weights.device)
        cells = torch.cartesian_prod(rows, columns).to(weights.dtype).view(-1, 2)  # (height width, 2)
        apart = (cells[:, None] - cells).norm(dim=-1)  # (S, S) of cells
    p, valid = _distributions(weights, query_mask)
    return _mean((p * apart).sum(-1), valid)


def _disagreement(p: Tensor, entropy: Tensor, valid: Tensor) -> Tensor:
    h = p.shape[1]
    total = p.new_zeros(h)
    for a in range(h):  # pair by pair: all at once would need h times the maps' memory
        for b in range(a + 1, h):
            divergence = _entropy((p[:, a] + p[:, b]) / 2) - (entropy[:, a] + entropy[:, b]) / 2  # (B, L)
            apart = _mean(divergence.clamp_min(0.0).sqrt()[:, None], (valid[:, a] & valid[:, b])[:, None])  # (1,)
            total[[a, b]] += apart
    return total / (h - 1)  # NaN for a single head
