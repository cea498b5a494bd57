"""Deformable DETR: queries and cells of several maps attend to a few sampled points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, Residual, make_attention
from ..deformable import DeformableAttention, flatten_maps
from ..feedforward import FeedForward
from ..positions import sinusoidal_alternating
from .detection import DetectorOutput, MapPositions, Perceptron, inverse_sigmoid, mask_of, resize_mask
from .resnet import ResNet

Shapes = Sequence[tuple[int, int]]
GROUPS = 32  # of the norms of projected maps
SMALLEST = 0.05  # side of the proposals of the finest map, doubled from map to map


class DeformableEncoderLayer(nn.Module):
    """Deformable attention of all cells to all maps, then a feed-forward network, post-norm (Zhu et al. 2021, 4.1).

    Args:
        embed_dim: E.
        num_heads: h.
        num_levels: Number of maps.
        num_points: Points per head and map.
        ffn_dim: Size of the hidden layer.
        dropout: Dropout after each sublayer and inside the feed-forward network.
        activation: Activation of the feed-forward network.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels=num_levels, num_points=num_points)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout=dropout, activation=activation)
        self.attention_residual = Residual(embed_dim, dropout, norm_first=False)
        self.ffn_residual = Residual(embed_dim, dropout, norm_first=False)

    def forward(self, x: Tensor, places: Tensor, shapes: Shapes, reference: Tensor, mask: Tensor | None) -> Tensor:
        """x, places: (B, S, E); the others as in `DeformableAttention`. Returns (B, S, E)."""
        x = self.attention_residual(x, lambda cells: self.attention(cells + places, cells, shapes, reference, mask))
        return self.ffn_residual(x, self.ffn)


class DeformableDecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to maps and a feed-forward network, post-norm.

    Zhu et al. 2021, section 4.1.

    Args:
        embed_dim: E.
        num_heads: h, of both attentions.
        num_levels: Number of maps.
        num_points: Points per head and map.
        ffn_dim: Size of the hidden layer.
        attention: {"kind": name, and the kernel's options}, of the self-attention.
        dropout: Dropout after each sublayer and inside the feed-forward network.
        activation: Activation of the feed-forward network.
        norm_eps: Epsilon added to the variance in the norms.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        attention: AttentionConfig = None,
        dropout: float = 0.0,
        activation: str = "relu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.self_attention = make_attention(embed_dim, num_heads, attention, {"self", "query_pos"})
        self.cross_attention = DeformableAttention(embed_dim, num_heads, num_levels=num_levels, num_points=num_points)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout=dropout, activation=activation)
        self.self_residual = Residual(embed_dim, dropout, norm_first=False, norm_eps=norm_eps)
        self.cross_residual = Residual(embed_dim, dropout, norm_first=False, norm_eps=norm_eps)
        self.ffn_residual = Residual(embed_dim, dropout, norm_first=False, norm_eps=norm_eps)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        shapes: Shapes,
        reference: Tensor,
        memory_mask: Tensor | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """x, query_pos: (B, Q, E); memory: (B, S, E); the others as in `DeformableAttention`. Returns (B, Q, E)."""
        x = self.self_residual(x, self.self_attention, query_pos=query_pos)

        def attend(queries: Tensor) -> Tensor:
            queries = queries if query_pos is None else queries + query_pos
            return self.cross_attention(queries, memory, shapes, reference, memory_mask)

        x = self.cross_residual(x, attend)
        return self.ffn_residual(x, self.ffn)


class Memory(NamedTuple):
    """The cells of all maps, map by map, that queries attend to."""

    states: Tensor  # (B, S, E)
    mask: Tensor  # (B, S) bool, True = a real cell
    shapes: list[tuple[int, int]]  # (h, w) of each map
    ratios: Tensor  # (B, levels, 2), real shares of each map's width and height, at least float32


class DeformableDetr(nn.Module):
    """A detector over several maps, linear in their cells (Zhu et al. 2021).

    ``capture`` records weights and locations of the sampled points, see `DeformableAttention`, under
    "encoder.#.attention.weights" and "decoder.#.cross_attention.weights", and ".locations".

    Args:
        num_classes: K; None = no heads, `hidden_states` alone.
        embed_dim: E, divisible by 32.
        num_queries: Q.
        num_levels: Number of maps: the backbone's, and as many more as needed, each half as high.
        encoder_points: Points per head and map in the encoder.
        decoder_points: The same in the decoder.
        num_encoder_layers: Layers over all cells.
        num_decoder_layers: Layers of the queries.
        num_heads: h of the encoder.
        decoder_heads: h of the decoder; None = num_heads.
        ffn_dim: Size of the encoder's hidden layers.
        decoder_ffn_dim: Size of the decoder's hidden layers; None = ffn_dim.
        positions: "sine" or "learned", see `MapPositions`.
        refine_boxes: Each layer corrects the boxes of the one before (appendix A.4).
        two_stage: Queries begin at the best proposals of the encoder's cells (appendix A.4).
        share_heads: All layers have the same heads; None = unless boxes are refined.
        attention: {"kind": name, and the kernel's options}, of the queries' self-attention.
        dropout: Dropout in the layers.
        activation: Activation of the feed-forward networks.
        backbone: Keywords of `ResNet`; None = the last three maps of ResNet-50.

    Raises:
        ValueError: The backbone has more maps than levels, sizes are indivisible, or two_stage without heads or
            refine_boxes.

    >>> net = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False}
    >>> model = DeformableDetr(5, embed_dim=32, num_queries=7, num_heads=2, ffn_dim=32, backbone=net)
    >>> found = model(torch.randn(2, 3, 40, 64))
    >>> found.logits.shape, found.boxes_cxcywh.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 7, 4]))
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        embed_dim: int = 256,
        num_queries: int = 300,
        num_levels: int = 4,
        encoder_points: int = 4,
        decoder_points: int = 4,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        decoder_heads: int | None = None,
        ffn_dim: int = 1024,
        decoder_ffn_dim: int | None = None,
        positions: str = "sine",
        refine_boxes: bool = False,
        two_stage: bool = False,
        share_heads: bool | None = None,
        attention: AttentionConfig = None,
        dropout: float = 0.1,
        activation: str = "relu",
        backbone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if two_stage and not refine_boxes:
            raise ValueError("two_stage needs refine_boxes")
        if num_classes is None and refine_boxes:
            raise ValueError("refine_boxes needs heads: num_classes is None")
        self.backbone = ResNet(**({"out_stages": (1, 2, 3)} if backbone is None else backbone))
        self.projections = project_maps(self.backbone.out_channels, embed_dim, num_levels)
        self.positions = MapPositions(embed_dim, positions, shift=0.5)
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))
        layer: dict[str, Any] = {"num_levels": num_levels, "dropout": dropout, "activation": activation}
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(embed_dim, num_heads, num_points=encoder_points, ffn_dim=ffn_dim, **layer)
            for _ in range(num_encoder_layers)
        )
        layer |= {"ffn_dim": ffn_dim if decoder_ffn_dim is None else decoder_ffn_dim, "attention": attention}
        decoder_heads = num_heads if decoder_heads is None else decoder_heads
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(embed_dim, decoder_heads, num_points=decoder_points, **layer)
            for _ in range(num_decoder_layers)
        )
        self.num_queries, self.refine_boxes, self.two_stage = num_queries, refine_boxes, two_stage
        if two_stage:
            self.proposal_proj, self.proposal_norm = nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim)
            self.query_proj, self.query_norm = nn.Linear(2 * embed_dim, 2 * embed_dim), nn.LayerNorm(2 * embed_dim)
        else:
            self.queries = nn.Parameter(torch.randn(num_queries, 2 * embed_dim))  # positions, then states
            self.reference = nn.Linear(embed_dim, 2)
        self.class_heads = self.box_heads = None
        if num_classes is not None:
            share_heads = not refine_boxes if share_heads is None else share_heads
            count = 1 if share_heads else num_decoder_layers + two_stage  # the last one is of the proposals
            self.class_heads = nn.ModuleList(nn.Linear(embed_dim, num_classes) for _ in range(count))
            self.box_heads = nn.ModuleList(Perceptron(embed_dim, embed_dim, 4, 3) for _ in range(count))
            init_heads(self.class_heads, self.box_heads)
            if not two_stage:  # small boxes at first
                nn.init.constant_(cast(Any, self.box_heads[0]).layers[-1].bias[2:], -2.0)

    def encode(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Memory:
        """Returns the states of the cells of all maps; see `forward`."""
        pixel_mask = mask_of(pixel_values, pixel_mask)
        maps = projected(self.projections, self.backbone(pixel_values))  # (B, E, h, w) each
        masks = [resize_mask(pixel_mask, (x.shape[2], x.shape[3])) for x in maps]  # (B, h, w) each
        x, shapes = flatten_maps(maps)  # (B, S, E)
        places = [self.positions(mask, x.dtype) + level for mask, level in zip(masks, self.level_embed, strict=True)]
        pos = torch.cat([place.expand(x.shape[0], -1, -1) for place in places], dim=1)  # (B, S, E)
        mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)  # (B, S)
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count the cells of a large map
        ratios = torch.stack([_ratios(mask, wide) for mask in masks], dim=1)  # (B, levels, 2)
        reference = torch.cat([_centers(mask, wide) for mask in masks], dim=1)[:, :, None] * ratios[:, None]
        for layer in self.encoder:
            x = layer(x, pos, shapes, reference, mask)
        return Memory(x, mask, shapes, ratios)

    def hidden_states(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Returns the state of each query after each decoder layer, (layers, B, Q, E); see `forward`."""
        return self._decode(self.encode(pixel_values, pixel_mask))[0]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detects objects.

        Args:
            pixel_values: (B, 3, H, W), images padded at the right and the bottom.
            pixel_mask: (B, H, W) bool, True = a pixel of the image; None = all.

        Returns:
            Logits (B, Q, K), of independent classes, and boxes; in two stages also the proposals of all S cells.

        Raises:
            ValueError: There are no heads, or fewer cells than queries in two stages.
        """
        if self.class_heads is None:
            raise ValueError("this DeformableDetr has no heads: num_classes is None; use hidden_states")
        states, boxes, *proposals = self._decode(self.encode(pixel_values, pixel_mask))
        logits = torch.stack([self._head(self.class_heads, n)(x) for n, x in enumerate(states)])
        return DetectorOutput(logits[-1], boxes[-1], logits, boxes, *proposals)

    def _head(self, heads: nn.ModuleList, n: int) -> nn.Module:
        return heads[min(n, len(heads) - 1)]  # there is one, if it is shared

    def _decode(self, memory: Memory) -> tuple[Tensor, ...]:
        """Returns states (layers, B, Q, E), boxes (layers, B, Q, 4), and the proposals' logits and boxes, if any."""
        proposals: tuple[Tensor, ...] = ()
        if self.two_stage:
            query_pos, x, reference, proposals = self._propose(memory)
        else:
            queries = self.queries.expand(memory.states.shape[0], -1, -1)  # (B, Q, 2 E)
            query_pos, x = queries.chunk(2, dim=-1)
            reference = self.reference(query_pos).to(memory.ratios.dtype).sigmoid()  # (B, Q, 2)
        start = nn.functional.pad(inverse_sigmoid(reference), (0, 4 - reference.shape[-1]))  # (B, Q, 4)
        states, boxes = [], []
        for n, layer in enumerate(self.decoder):
            ratios = memory.ratios.repeat(1, 1, reference.shape[-1] // 2)  # (B, levels, 2 or 4)
            points = reference[:, :, None] * ratios[:, None]  # (B, Q, levels, 2 or 4)
            x = layer(x, memory.states, memory.shapes, points, memory.mask, query_pos)
            states.append(x)
            if self.box_heads is not None:
                boxes.append((self._head(self.box_heads, n)(x) + start).sigmoid())
            if self.refine_boxes:
                reference = boxes[-1].detach()
                start = inverse_sigmoid(reference)
        return torch.stack(states), torch.stack(boxes or [reference]), *proposals

    def _propose(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Scores a box at each cell, and begins with the best.

        Returns:
            Positions and states (B, Q, E) and boxes (B, Q, 4) of the queries; logits (B, S, K) and boxes (B, S, 4) of
            all proposals.
        """
        assert self.class_heads is not None
        assert self.box_heads is not None
        count = memory.states.shape[1]
        if isinstance(count, int) and count < self.num_queries:
            raise ValueError(f"expected at least num_queries={self.num_queries} cells of all maps, found {count}")
        masks = memory.mask.split([height * width for height, width in memory.shapes], dim=1)
        masks = tuple(mask.unflatten(1, shape) for mask, shape in zip(masks, memory.shapes, strict=True))
        starts, valid = start_boxes(masks, memory.ratios.dtype)
        cells = memory.states.masked_fill(~valid[..., None], 0.0)
        cells = self.proposal_norm(self.proposal_proj(cells))  # (B, S, E)
        logits, boxes = self.class_heads[-1](cells), self.box_heads[-1](cells) + starts
        best = logits[..., 0].topk(self.num_queries, dim=1).indices  # of the first class, which is "object" in training
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()  # (B, Q, 4)
        sines = sinusoidal_alternating(chosen * (2 * math.pi), cells.shape[-1] // 2)  # (B, Q, 4, E / 2)
        queries = self.query_norm(self.query_proj(sines.flatten(2).to(cells.dtype)))
        query_pos, x = queries.chunk(2, dim=-1)
        return query_pos, x, chosen, (logits, boxes.sigmoid())


def project_maps(channels: Sequence[int], embed_dim: int, num_levels: int) -> nn.ModuleList:
    """Makes a convolution and a norm for each map of the backbone, and for the coarser ones that follow.

    Raises:
        ValueError: More maps than levels.
    """
    if len(channels) > num_levels:
        raise ValueError(f"num_levels: expected at least {len(channels)}, the backbone's maps, found {num_levels}")
    convolutions = [nn.Conv2d(size, embed_dim, 1) for size in channels]
    sizes = [channels[-1], *[embed_dim] * num_levels][: num_levels - len(channels)]
    convolutions += [nn.Conv2d(size, embed_dim, 3, stride=2, padding=1) for size in sizes]
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(GROUPS, embed_dim)) for conv in convolutions)


def projected(projections: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """Applies `project_maps` to (B, C, h, w): the first coarser map is made of the backbone's last, others in turn."""
    found = [projections[n](x) for n, x in enumerate(maps)]
    x = maps[-1]
    for projection in projections[len(maps) :]:
        x = projection(x)
        found.append(x)
    return found


def start_boxes(masks: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns a square for each cell of all maps, where proposals begin (Zhu et al. 2021, appendix A.4).

    Args:
        masks: (B, h, w) bool, True = a real cell, of each map.
        dtype: Type of the boxes.

    Returns:
        Logits of cxcywh (B, S, 4), infinite where the cell is padding or a side is within 0.01 of the image's border;
        and (B, S) bool, True elsewhere.
    """
    squares = []
    for level, mask in enumerate(masks):
        centers = _centers(mask, dtype)  # (B, h w, 2)
        squares.append(torch.cat([centers, torch.full_like(centers, SMALLEST * 2.0**level)], dim=-1))
    boxes = torch.cat(squares, dim=1)  # (B, S, 4)
    real = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & real
    return (boxes / (1 - boxes)).log().masked_fill(~valid[..., None], math.inf), valid


def init_heads(class_heads: Iterable[nn.Module], box_heads: Iterable[nn.Module]) -> None:
    """Begins with scores of 0.01, as most queries find nothing (Lin et al. 2017), and boxes at their references."""
    for classes, boxes in zip(class_heads, box_heads, strict=True):
        nn.init.constant_(cast(nn.Linear, classes).bias, -math.log(0.99 / 0.01))
        last = cast(nn.Linear, cast(Perceptron, boxes).layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _sides(mask: Tensor) -> Tensor:
    """Returns width and height of the real cells, (B, 2), of a mask (B, h, w): they are at the left and the top."""
    return torch.stack([mask[:, 0].sum(1), mask[:, :, 0].sum(1)], dim=-1)


def _ratios(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the real shares of width and height, (B, 2), of a mask (B, h, w)."""
    width, height = _sides(mask).to(dtype).unbind(-1)
    return torch.stack([width / mask.shape[2], height / mask.shape[1]], dim=-1)


def _centers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the cells' centers as shares of the real width and height: (B, h w, 2), for a mask (B, h, w)."""
    _, height, width = mask.shape
    x = torch.arange(width, device=mask.device, dtype=dtype).expand(height, -1)
    y = torch.arange(height, device=mask.device, dtype=dtype)[:, None].expand(-1, width)
    cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5  # (h w, 2)
    return cells / _sides(mask)[:, None].to(dtype)
