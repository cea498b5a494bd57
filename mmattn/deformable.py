"""Attention to a few sampled points of several maps, linear in the number of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .probe import Probe


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each query samples a few points around its reference point in several maps.

    ``sum_h W_h sum_{l,k} A_{hlk} W'_h x_l(p_l + offset_{hlk})``, bilinear between cells, zero outside; weights A (a
    softmax over levels and points) and offsets are linear in the query (Zhu et al. 2021, section 4.1, equation 3).
    ``capture`` records A (B, h, L, levels, points) under `weights`, and where they apply, xy in 0..1 of each map,
    (B, h, L, levels, points, 2), under `locations`.

    Args:
        embed_dim: E.
        num_heads: h.
        num_levels: Number of maps.
        num_points: Points per head and map.
        kv_dim: Channels of the maps; None = E.

    Raises:
        ValueError: embed_dim is not divisible by num_heads.

    >>> maps = [torch.randn(2, 32, 8, 6), torch.randn(2, 32, 4, 3)]
    >>> value, shapes = flatten_maps(maps)
    >>> attention = DeformableAttention(32, 4, num_levels=2)
    >>> attention(torch.randn(2, 5, 32), value, shapes, torch.rand(2, 5, 1, 2)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, num_levels: int = 4, num_points: int = 4, kv_dim: int | None = None
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.offset_proj = nn.Linear(embed_dim, samples * 2)
        self.weight_proj = nn.Linear(embed_dim, samples)
        self.v_proj = nn.Linear(embed_dim if kv_dim is None else kv_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.weights, self.locations = Probe(), Probe()
        self._reset()

    def _reset(self) -> None:
        """Initializes the points of head i to 1, 2, .. cells in direction i, with equal weights (appendix A.4)."""
        # In numbers, not tensors: torch computes these on its meta device by modules that take a second to import.
        start = []
        for head in range(self.num_heads):
            angle = 2 * math.pi * head / self.num_heads
            way = math.cos(angle), math.sin(angle)
            far = max(map(abs, way))  # onto a square, where rings of cells lie
            ring = [step * side / far for step in range(1, self.num_points + 1) for side in way]
            start += self.num_levels * ring  # (levels, points, 2)
        for layer in (self.offset_proj, self.weight_proj):
            nn.init.zeros_(layer.weight)
        for layer in (self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.weight_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offset_proj.bias.copy_(torch.tensor(start))

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        reference: Tensor,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Samples the maps.

        Args:
            query: (B, L, E).
            value: (B, S, kv_dim), the cells of all maps, map by map: see `flatten_maps`.
            shapes: (H, W) of each map.
            reference: (B, L, num_levels or 1, 2), points xy in 0..1 of each map, with offsets in cells; or (.., 4),
                boxes cxcywh, with offsets from their centers in halves of the box over num_points.
            key_mask: (B, S) bool, True = a real cell; the others are zeros, as outside the map.

        Returns:
            (B, L, E).

        Raises:
            ValueError: The number of maps is not num_levels, the cells do not fit the shapes, or the references are
                neither points nor boxes.
        """
        self._check(value, shapes, reference)
        wide = torch.promote_types(value.dtype, torch.float32)  # half precision cannot resolve the cells of a large map
        offsets = self.offset_proj(query).to(wide)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))  # (B, L, h, l, k, 2)
        weights = self.weight_proj(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)  # (B, L, h, l k)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points)).transpose(1, 2)  # (B, h, L, l, k)
        weights = self.weights(weights).flatten(0, 1).to(wide)  # (B h, L, l, k)
        locations = self._locate(offsets, reference.to(wide), shapes).transpose(1, 2)  # (B, h, L, l, k, 2)
        grids = self.locations(locations).flatten(0, 1) * 2 - 1  # (B h, L, l, k, 2) in -1..1, edge to edge

        values = self.v_proj(value).to(wide)
        if key_mask is not None:
            values = values.masked_fill(~key_mask[:, :, None], 0.0)
        values = values.mT.unflatten(1, (self.num_heads, -1)).flatten(0, 1)  # (B h, d, S)
        out: Tensor | None = None
        start = 0
        for level, (height, width) in enumerate(shapes):
            cells = values[:, :, start : start + height * width].unflatten(-1, (height, width))  # (B h, d, H, W)
            found = F.grid_sample(cells, grids[:, :, level], "bilinear", "zeros", align_corners=False)  # (B h, d, L, k)
            found = (found * weights[:, None, :, level]).sum(-1)  # (B h, d, L)
            out = found if out is None else out + found
            start = start + height * width
        assert out is not None
        out = out.unflatten(0, (-1, self.num_heads)).flatten(1, 2).mT  # (B, L, E)
        return self.out_proj(out.to(query.dtype))

    def _locate(self, offsets: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Returns the sampling locations (B, L, h, levels, points, 2), xy in 0..1 of each map."""
        reference = reference[:, :, None, :, None]  # (B, L, 1, l|1, 1, 2|4)
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets * reference[..., 2:] * (0.5 / self.num_points)
        x, y = offsets.unbind(-1)  # (B, L, h, l, k)
        steps = [
            torch.stack([x[:, :, :, level] / width, y[:, :, :, level] / height], dim=-1)
            for level, (height, width) in enumerate(shapes)
        ]
        return reference + torch.stack(steps, dim=3)

    def _check(self, value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> None:
        if len(shapes) != self.num_levels:
            raise ValueError(f"expected {self.num_levels} maps (num_levels), found {len(shapes)} shapes")
        cells = sum(height * width for height, width in shapes)
        if isinstance(cells, int) and isinstance(value.shape[1], int) and cells != value.shape[1]:
            raise ValueError(f"the shapes {list(shapes)} have {cells} cells, value has {value.shape[1]}")
        if reference.dim() != 4 or reference.shape[-1] not in (2, 4):
            raise ValueError(f"reference must be (B, L, levels or 1, 2 or 4), found {tuple(reference.shape)}")


def flatten_maps(maps: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Concatenates the cells of maps (B, C, H, W), map by map and row by row.

    Returns:
        (B, S, C), and (H, W) of each map.
    """
    cells = torch.cat([map_.flatten(2).mT for map_ in maps], dim=1)  # (B, S, C)
    return cells, [(map_.shape[2], map_.shape[3]) for map_ in maps]
