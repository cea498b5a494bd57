"""The decoder of detection: queries attend to each other, and read the maps by an attention that has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.attention import split_attention
from mmattn.blocks import AttentionConfig, Residual, make_attention
from mmattn.deformable import DeformableAttention
from mmattn.feedforward import FeedForward
from mmattn.masks import Mask
from mmattn.positions import sinusoidal_1d

SCALE, BASE = 64.0, 100.0  # of the positions of dense attention: waves of a tenth of the image to ten images


class Memory(NamedTuple):
    """The cells of all maps, map by map, that queries read."""

    states: Tensor  # (B, S, E)
    mask: Tensor  # (B, S) bool, True = a real cell
    centers_xy: Tensor  # (B, S, 2) in 0..1 of the image's own part, at least float32
    levels: Tensor  # (S,) long, the map of each cell
    shapes: list[tuple[int, int]]  # (h, w) of each map
    ratios_xy: Tensor  # (B, 2), the own part's shares of the pixels' width and height


class DeformableReader(nn.Module):
    """Each query reads a few points around its box in all maps, see `DeformableAttention`.

    Args:
        embed_dim: E.
        num_heads: h.
        num_levels: Number of maps.
        num_points: Points per head and map.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, *, num_points: int = 4) -> None:
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels=num_levels, num_points=num_points)

    def forward(self, query: Tensor, memory: Memory, boxes_cxcywh: Tensor) -> Tensor:
        """query: (B, L, E), with its position; boxes_cxcywh: (B, L, 4). Returns (B, L, E)."""
        reference = boxes_cxcywh * memory.ratios_xy.repeat(1, 2)[:, None]  # (B, L, 4), of the padded pixels
        return self.attention(query, memory.states, memory.shapes, reference[:, :, None], memory.mask)

    @staticmethod
    def reading(
        maps: Mapping[str, list[Tensor]], path: str, centers_xy: Tensor, ratios_xy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `DetectionModel.reading`; path is that of this module in the captured maps."""
        return read_points(maps, f"{path}.attention", ratios_xy)


class DenseReader(nn.Module):
    """Each query reads all cells, by any kernel of cross-attention; positions are sines of centers.

    Queries and keys are at first projected alike, so that a query begins with the cells around its box: a detector
    learns this slowly otherwise (Meng et al. 2021, section 3.2).

    Args:
        embed_dim: E, divisible by 4.
        num_heads: h.
        num_levels: Number of maps, of which each has a learned vector.
        options: Keywords of the kernel "dense".
    """

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, **options: Any) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"dense cross-attention needs embed_dim divisible by 4, found {embed_dim}")
        self.attention = make_attention(embed_dim, num_heads, {"kind": "dense", **options}, {"cross"})
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim) * 0.02)
        assert self.attention.k_proj is not None
        self.attention.k_proj.load_state_dict(self.attention.q_proj.state_dict())

    def forward(self, query: Tensor, memory: Memory, boxes_cxcywh: Tensor) -> Tensor:
        """query: (B, L, E), with its position; boxes_cxcywh: (B, L, 4). Returns (B, L, E)."""
        query_pos = self._place(boxes_cxcywh[..., :2]).to(query.dtype)  # (B, L, E)
        key_pos = self._place(memory.centers_xy).to(query.dtype) + self.level_embed[memory.levels]  # (B, S, E)
        mask = Mask(memory.mask)
        return self.attention(query, memory.states, mask=mask, query_pos=query_pos, key_pos=key_pos)

    def _place(self, xy: Tensor) -> Tensor:
        return sinusoidal_1d(xy * SCALE, self.attention.embed_dim // 2, BASE).flatten(-2)

    @staticmethod
    def reading(
        maps: Mapping[str, list[Tensor]], path: str, centers_xy: Tensor, ratios_xy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `DetectionModel.reading`; path is that of this module in the captured maps."""
        return read_cells(maps, f"{path}.attention", centers_xy)


def read_points(maps: Mapping[str, list[Tensor]], path: str, ratios_xy: Tensor) -> tuple[Tensor, Tensor]:
    """The points (B, L, n, 2) and weights (B, L, n) of the `DeformableAttention` at this path of the captured maps."""
    weights, places = (maps[f"{path}.{name}"][0] for name in ("weights", "locations"))
    heads = weights.shape[1]
    weights = weights.transpose(1, 2).flatten(2) / heads  # (B, L, h levels points)
    places = places.transpose(1, 2).flatten(2, 4)  # (B, L, h levels points, 2)
    return places / ratios_xy[:, None, None], weights


def read_cells(maps: Mapping[str, list[Tensor]], path: str, centers_xy: Tensor) -> tuple[Tensor, Tensor]:
    """All cells' centers (B, L, S, 2) and weights (B, L, S) of the attention at this path of the captured maps."""
    weights = maps[path][0].mean(1)  # (B, L, S)
    return centers_xy[:, None].expand(-1, weights.shape[1], -1, -1), weights


READERS: dict[str, Callable[..., Any]] = {"deformable": DeformableReader, "dense": DenseReader}


def check_reader(cross_attention: AttentionConfig) -> tuple[str, dict[str, Any]]:
    """The kind and the options of {"kind": a name in READERS, and its options}; None = deformable.

    Raises:
        ValueError: An unknown kind or option.
    """
    kind, options = split_attention("deformable" if cross_attention is None else cross_attention)
    if kind not in READERS:
        raise ValueError(f"unknown cross_attention {kind!r}; expected one of: {', '.join(READERS)}")
    known = {"num_points"} if kind == "deformable" else set(options)  # those of the kernel are checked by it
    if set(options) - known:
        raise ValueError(f"cross_attention {kind}: unknown options {sorted(set(options) - known)}; it has: num_points")
    return kind, options


def make_reader(embed_dim: int, num_heads: int, num_levels: int, cross_attention: AttentionConfig) -> Any:
    """Makes a cross-attention; see `check_reader`."""
    kind, options = check_reader(cross_attention)
    return READERS[kind](embed_dim, num_heads, num_levels, **options)


class QueryLayer(nn.Module):
    """Self-attention of queries, cross-attention to maps and a feed-forward network, post-norm.

    Args:
        embed_dim: E.
        num_heads: h, of both attentions.
        num_levels: Number of maps.
        ffn_dim: Size of the hidden layer.
        attention: {"kind": name, and the kernel's options}, of the self-attention.
        cross_attention: See `make_reader`.
        dropout: Dropout after each sublayer and inside the feed-forward network.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        *,
        ffn_dim: int,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = make_attention(embed_dim, num_heads, attention, {"self", "query_pos"})
        self.cross_attention = make_reader(embed_dim, num_heads, num_levels, cross_attention)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout=dropout, activation="relu")
        self.self_residual, self.cross_residual, self.ffn_residual = (
            Residual(embed_dim, dropout, norm_first=False) for _ in range(3)
        )

    def forward(self, x: Tensor, memory: Memory, boxes_cxcywh: Tensor, query_pos: Tensor, mask: Mask) -> Tensor:
        """x, query_pos: (B, L, E); boxes_cxcywh: (B, L, 4); mask: of the self-attention. Returns (B, L, E)."""
        x = self.self_residual(x, self.self_attention, mask=mask, query_pos=query_pos)
        x = self.cross_residual(x, lambda query: self.cross_attention(query + query_pos, memory, boxes_cxcywh))
        return self.ffn_residual(x, self.ffn)
