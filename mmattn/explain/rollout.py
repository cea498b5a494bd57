"""Attention followed through the layers of one stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Maps = Mapping[str, Sequence[Tensor]] | Sequence[Tensor]

HEADS: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}


def layers_of(maps: Maps, within: str = "") -> list[Tensor]:
    """The maps (B, h, L, S) of a stack in order, from what `capture` gave or from a plain sequence.

    Args:
        maps: By path, one call each; or a sequence.
        within: The path of the stack, where the model has more.

    Raises:
        ValueError: There is none; a path was called more than once; an entry is no map.
    """
    if isinstance(maps, Mapping):
        prefix = f"{within}." if within else ""
        found = {path: calls for path, calls in maps.items() if path == within or path.startswith(prefix)}
        for path, calls in found.items():
            if len(calls) != 1:
                raise ValueError(f"{path!r} was called {len(calls)} times: capture one pass, or give a list of maps")
        maps = [calls[0] for calls in found.values()]
    if not len(maps):
        raise ValueError(f"there are no maps{f' within {within!r}' if within else ''}")
    for weights in maps:
        if weights.dim() != 4:
            raise ValueError(f"expected maps (B, h, L, S), found shape {tuple(weights.shape)}")
    return list(maps)


def rollout(
    maps: Maps, *, key_mask: Tensor | None = None, heads: str = "mean", discard: float = 0.0, within: str = ""
) -> Tensor:
    """Attention rollout: ``A_n .. A_2 A_1``, each ``A = (W + I) / 2`` with rows that sum to one.

    Abnar and Zuidema 2020, section 3: I stands for the residual connection, W for the heads' mean. Fusing heads
    otherwise and discarding small weights are common since. Negative weights count as none; a row without weights
    passes its token on.

    Args:
        maps: Of a stack of self-attentions: what `capture` gave, or a list of (B, h, L, L), first layer first.
        key_mask: (B, L) bool, True = a real token; padding then has zeros in its rows as in its columns.
        heads: "mean", "min" or "max".
        discard: The share, 0..1, of each sample's nonzero weights that is set to zero, the smallest first.
        within: The path of the stack, where maps are those of a larger model.

    Returns:
        (B, L, L): how much of each first-layer token (columns) is in each last-layer token (rows).

    Raises:
        ValueError: A map is not square, or as large as the others; unknown heads; a share that is none.

    >>> rollout([torch.rand(2, 4, 5, 5).softmax(-1) for _ in range(3)]).shape
    torch.Size([2, 5, 5])
    """
    if heads not in HEADS:
        raise ValueError(f"unknown heads {heads!r}; there are: {', '.join(HEADS)}")
    if not 0.0 <= discard < 1.0:
        raise ValueError(f"discard must be a share from 0 to below 1, found {discard}")
    layers = layers_of(maps, within)
    B, _, L, _ = layers[0].shape
    one = torch.eye(L, dtype=layers[0].dtype, device=layers[0].device).expand(B, L, L)
    if key_mask is not None:
        one = one * key_mask[:, None, :]
    total = one
    for weights in layers:
        if weights.shape[0] != B or weights.shape[2:] != (L, L):
            raise ValueError(
                f"rollout multiplies maps of one sequence: expected ({B}, h, {L}, {L}), found {tuple(weights.shape)}; "
                "choose a stack of self-attentions by `within`"
            )
        fused = HEADS[heads](weights, 1).clamp_min(0.0)  # (B, L, L)
        if key_mask is not None:
            fused = fused * (key_mask[:, :, None] & key_mask[:, None, :])
        mixed = _without_smallest(fused, discard) + one  # the half falls out with the sum of the row
        total = mixed / mixed.sum(-1, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny) @ total
    return total


def _without_smallest(weights: Tensor, share: float) -> Tensor:
    """Weights (B, L, L) without the smallest share of each sample's nonzero ones: padding then changes nothing."""
    if not share:
        return weights
    flat = weights.flatten(1)  # (B, L L)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1)
    zeros, nonzero = (flat == 0).sum(1, keepdim=True), (flat > 0).sum(1, keepdim=True)
    return flat.masked_fill(rank < zeros + (share * nonzero).long(), 0.0).view_as(weights)
