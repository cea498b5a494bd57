"""Attention rollout through the layers of one stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Maps = Mapping[str, Sequence[Tensor]] | Sequence[Tensor]

HEADS: dict[str, Callable[..., Tensor]] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}


def layers_of(maps: Maps, within: str = "") -> list[Tensor]:
    """Returns the maps (B, h, L, S) of a stack in order, from the result of `capture` or a sequence.

    Args:
        maps: Maps by path, one call each; or a sequence.
        within: The path of the stack, if the model has several.

    Raises:
        ValueError: There are no maps; a path was called more than once; an entry is not a map.
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

    Abnar and Zuidema 2020, section 3: I represents the residual connection, W the mean of the heads. Other fusions of
    heads and discarding small weights are common variants. Negative weights are set to zero; a row without weights is
    the identity.

    Args:
        maps: Maps of a stack of self-attentions: the result of `capture`, or a list of (B, h, L, L), first layer first.
        key_mask: (B, L) bool, True = a real token; rows and columns of padding are zeros.
        heads: "mean", "min" or "max".
        discard: The fraction, 0..1, of each sample's nonzero weights that is set to zero, the smallest first.
        within: The path of the stack, if maps are those of a larger model.

    Returns:
        (B, L, L): the contribution of each first-layer token (columns) to each last-layer token (rows).

    Raises:
        ValueError: A map is not square or differs in size from the others; unknown heads; an invalid discard.

    >>> rollout([torch.rand(2, 4, 5, 5).softmax(-1) for _ in range(3)]).shape
    torch.Size([2, 5, 5])
    """
    if heads not in HEADS:
        raise ValueError(f"unknown heads {heads!r}; expected one of: {', '.join(HEADS)}")
    if not 0.0 <= discard < 1.0:
        raise ValueError(f"discard must be from 0 to below 1, found {discard}")
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
        mixed = _without_smallest(fused, discard) + one  # normalizing the row cancels the factor 1/2
        total = mixed / mixed.sum(-1, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny) @ total
    return total


def _without_smallest(weights: Tensor, share: float) -> Tensor:
    """Sets the smallest share of each sample's nonzero weights (B, L, L) to zero, so padding has no effect."""
    if not share:
        return weights
    flat = weights.flatten(1)  # (B, L L)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1)
    zeros, nonzero = (flat == 0).sum(1, keepdim=True), (flat > 0).sum(1, keepdim=True)
    return flat.masked_fill(rank < zeros + (share * nonzero).long(), 0.0).view_as(weights)
