"""The detection head: maps of a backbone to scored boxes, by queries that begin at the best cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.deformable_detr import init_heads
from mmattn.backbones.detection import Perceptron, inverse_sigmoid, mask_of, resize_mask
from mmattn.backbones.resnet import ConvNorm
from mmattn.backbones.rt_detr import HybridEncoder
from mmattn.deformable import flatten_maps
from mmattn.masks import Mask
from mmattn.probe import Probe
from mmattn.spatial import PositionAttention
from mmattn.tasks.detection.decoder import Memory, QueryLayer
from mmattn.tasks.detection.denoising import Disturbed, disturb, group_mask
from mmattn.tasks.detection.losses import Objects
from mmattn.tasks.detection.outputs import Denoised, DetectionOutput, QuerySet

CELLS = 2.0  # side of the boxes where proposals begin, in cells of their map
NOTHING = -100.0  # logit of a query that is padding, finite in half precision


class Start(NamedTuple):
    """Where queries begin."""

    states: Tensor  # (B, L, E)
    boxes_cxcywh: Tensor  # (B, L, 4)
    mask: Mask  # of the self-attention


class DetectionHead(nn.Module):
    """Scored boxes from the maps of any backbone: hybrid encoder, proposals, and a decoder that refines them.

    After RT-DETR (Zhao et al. 2024, section 4). Each cell of the encoder's maps proposes a box; queries begin at those
    with the best scores, and each layer corrects their boxes. Sizes of maps are halved from one to the next.

    Args:
        in_channels: Channels of the maps, the finest first.
        num_classes: Number of classes K.
        embed_dim: Size E of queries and of the encoder's maps.
        num_queries: Number of queries Q; most objects that are found in an image.
        num_layers: Layers of the decoder.
        num_heads: Attention heads h of encoder and decoder.
        ffn_dim: Size of hidden layers; none: 4 E.
        encoder_layers: Layers of self-attention on the coarsest map.
        expansion: Channels inside the encoder's blocks / E.
        attention: Self-attention of the coarsest map's cells, {"kind": name, and the kernel's options}; none: dense.
        decoder_attention: Self-attention of the queries; none: dense.
        cross_attention: How queries read the maps: {"kind": "deformable", "num_points": 4} or {"kind": "dense", and
            its options}; none: deformable.
        position_attention: Whether the coarsest map passes `mmattn.spatial.PositionAttention` first.
        pooling: "attention", or "mean": each cell is replaced by the mean of all, so that queries know what is in the
            image, but not where. A baseline.
        dropout: Dropout in encoder and decoder.
        denoising_queries: Number of denoising queries in training, about; 0: none.
        label_noise: See `mmattn.tasks.detection.denoising.disturb`.
        box_noise: See `mmattn.tasks.detection.denoising.disturb`.
        copy_queries: Number of additional queries in training, several of which may find the same object; 0: none.

    Raises:
        ValueError: A keyword is out of range; names it.

    >>> head = DetectionHead((16, 32), num_classes=5, embed_dim=32, num_queries=7).eval()
    >>> output = head([torch.randn(1, 16, 12, 8), torch.randn(1, 32, 6, 4)])
    >>> output.logits.shape, output.boxes_cxcywh.shape
    (torch.Size([1, 7, 5]), torch.Size([1, 7, 4]))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        embed_dim: int = 96,
        num_queries: int = 50,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_dim: int | None = None,
        encoder_layers: int = 1,
        expansion: float = 0.5,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        position_attention: bool = False,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
        denoising_queries: int = 48,
        label_noise: float = 2.0,
        box_noise: float = 1.0,
        copy_queries: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in ("attention", "mean"):
            raise ValueError(f"pooling: expected attention or mean, found {pooling!r}")
        if min(num_queries, num_layers) < 1 or min(denoising_queries, copy_queries) < 0:
            raise ValueError(
                "expected num_queries and num_layers from 1, denoising_queries and copy_queries from 0, found "
                f"{num_queries}, {num_layers}, {denoising_queries} and {copy_queries}"
            )
        if not 0 <= label_noise <= 2 or box_noise < 0:
            raise ValueError(f"expected label_noise in 0..2 and box_noise from 0, found {label_noise} and {box_noise}")
        self.num_classes, self.num_queries, self.pooling = num_classes, num_queries, pooling
        self.denoising_queries, self.copy_queries = denoising_queries, copy_queries
        self.label_noise, self.box_noise = label_noise, box_noise
        ffn_dim = 4 * embed_dim if ffn_dim is None else ffn_dim
        levels = len(in_channels)
        self.projections = nn.ModuleList(ConvNorm(size, embed_dim, 1) for size in in_channels)
        self.position_attention = PositionAttention(embed_dim) if position_attention else None
        self.encoder = HybridEncoder(
            embed_dim,
            levels,
            num_layers=encoder_layers,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            attended=(levels - 1,),
            expansion=expansion,
            attention=attention,
            dropout=dropout,
        )
        self.proposal_proj, self.proposal_norm = nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim)
        self.proposal_classes = nn.Linear(embed_dim, num_classes)
        self.proposal_boxes = Perceptron(embed_dim, embed_dim, 4, 3)
        self.query_pos = Perceptron(4, 2 * embed_dim, embed_dim, 2)
        self.label_embed = nn.Embedding(num_classes, embed_dim) if denoising_queries else None
        layer: dict[str, Any] = {"ffn_dim": ffn_dim, "attention": decoder_attention, "cross_attention": cross_attention}
        self.decoder = nn.ModuleList(
            QueryLayer(embed_dim, num_heads, levels, dropout=dropout, **layer) for _ in range(num_layers)
        )
        self.class_heads = nn.ModuleList(nn.Linear(embed_dim, num_classes) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(Perceptron(embed_dim, embed_dim, 4, 3) for _ in range(num_layers))
        init_heads([self.proposal_classes, *self.class_heads], [self.proposal_boxes, *self.box_heads])
        self.centers, self.ratios = Probe(), Probe()

    def forward(
        self,
        maps: Sequence[Tensor],
        pixel_mask: Tensor | None = None,
        boxes_cxcywh: Tensor | None = None,
        labels: Tensor | None = None,
        box_mask: Tensor | None = None,
    ) -> DetectionOutput:
        """Detects objects.

        Args:
            maps: (B, in_channels[n], h_n, w_n), the finest first, each twice as high and wide as the next.
            pixel_mask: (B, H, W) bool, True = a pixel of the image, of which padding is at the right and the bottom;
                none: all.
            boxes_cxcywh: True boxes (B, N, 4) in 0..1 of their images, in training, for denoising.
            labels: (B, N) long, their classes.
            box_mask: (B, N) bool, True = a box.

        Returns:
            Logits and boxes of Q queries; in training, the other fields.

        Raises:
            ValueError: Other maps than expected, fewer cells than queries, or boxes without labels or mask.
        """
        truth = None
        if boxes_cxcywh is not None:
            if labels is None or box_mask is None:
                raise ValueError("boxes_cxcywh: expected labels and box_mask with them, found none")
            truth = Objects(boxes_cxcywh, labels, box_mask)
        memory = self._encode(maps, pixel_mask)
        cells = self.proposal_norm(self.proposal_proj(memory.states))  # (B, S, E)
        logits = self.proposal_classes(cells)  # (B, S, K)
        squares = self._squares(memory)  # (B, S, 4)
        found = self._choose(memory.mask, logits)  # (B, Q + T)
        there = memory.mask.gather(1, found)
        proposed = None
        if self.training:  # the boxes of all cells have a loss
            proposed = self._propose(cells, squares)
            states, boxes = (_pick(x, found).detach() for x in (cells, proposed))
        else:
            states = _pick(cells, found)
            boxes = self._propose(states, _pick(squares, found))
        noised = None
        if truth is not None and self.training and self.label_embed is not None:
            noise = (self.denoising_queries, self.label_noise, self.box_noise)
            noised = disturb(*truth, self.num_classes, *noise)
            states = torch.cat([states, self.label_embed(noised.labels)], 1)
            boxes = torch.cat([boxes, noised.boxes_cxcywh.to(boxes.dtype)], 1)
        start = Start(states, boxes, self._mask(there, noised))
        logits_of, boxes_of = self._decode(start, memory)  # (layers, B, L, K), (layers, B, L, 4)
        Q, end = self.num_queries, found.shape[1]
        there, additional = there[:, :Q], there[:, Q:]
        scores = logits_of[-1, :, :Q].masked_fill(~there[..., None], NOTHING)
        output = DetectionOutput(scores, boxes_of[-1, :, :Q])
        if proposed is None:
            return output
        copies = denoised = None
        if self.copy_queries:
            copies = QuerySet(logits_of[:, :, Q:end], boxes_of[:, :, Q:end], additional)
        if noised is not None:
            denoised = Denoised(logits_of[:, :, end:], boxes_of[:, :, end:], noised.objects, noised.query_mask)
        return output._replace(
            layers=QuerySet(logits_of[:, :, :Q], boxes_of[:, :, :Q], there),
            proposals=QuerySet(logits[None], proposed[None], memory.mask),
            copies=copies,
            denoised=denoised,
        )

    def _encode(self, maps: Sequence[Tensor], pixel_mask: Tensor | None) -> Memory:
        if len(maps) != len(self.projections):
            raise ValueError(f"expected {len(self.projections)} maps, found {len(maps)}")
        maps = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        masks = [
            mask_of(x, None) if pixel_mask is None else resize_mask(pixel_mask, (x.shape[2], x.shape[3])) for x in maps
        ]
        maps = [x * mask[:, None] for x, mask in zip(maps, masks, strict=True)]  # padding is zero, as around the map
        if self.position_attention is not None:
            maps[-1] = self.position_attention(maps[-1], masks[-1])
        states, shapes = flatten_maps(self.encoder(maps, masks))  # (B, S, E)
        mask = torch.cat([mask.flatten(1) for mask in masks], 1)  # (B, S)
        if self.pooling == "mean":
            states = (states * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp_min(1)
            states = states.expand(-1, mask.shape[1], -1)
        wide = torch.promote_types(states.dtype, torch.float32)  # half precision cannot count the cells of a large map
        real = masks[0] if pixel_mask is None else pixel_mask  # (B, H, W)
        ratios = self.ratios(own_shares(real, wide))  # (B, 2)
        centers = torch.cat([cell_centers(height, width, states.device, wide) for height, width in sizes])  # (S, 2)
        numbers = [x.new_full((x[0, 0].numel(),), n, dtype=torch.long) for n, x in enumerate(maps)]
        centers = self.centers((centers / ratios[:, None]).clamp(0.01, 0.99))  # (B, S, 2)
        return Memory(states, mask, centers, torch.cat(numbers), shapes, ratios)

    def _squares(self, memory: Memory) -> Tensor:
        """The boxes cxcywh (B, S, 4) that proposals correct: squares of a few cells, around each."""
        one = memory.ratios_xy.new_ones(1)
        sides = [torch.cat([one / width, one / height]).expand(height * width, -1) for height, width in memory.shapes]
        sizes = (CELLS * torch.cat(sides) / memory.ratios_xy[:, None]).clamp_max(0.9)  # (B, S, 2)
        return torch.cat([memory.centers_xy, sizes], -1)

    def _propose(self, cells: Tensor, squares: Tensor) -> Tensor:
        """Boxes cxcywh of cells (B, L, E), which correct their squares (B, L, 4)."""
        return (self.proposal_boxes(cells) + inverse_sigmoid(squares)).sigmoid()

    def _choose(self, mask: Tensor, logits: Tensor) -> Tensor:
        """Indices (B, Q + T) of the cells with the best scores of any class, the best first; padding is last."""
        count = mask.shape[1]
        if isinstance(count, int) and count < self.num_queries:
            raise ValueError(f"expected at least num_queries={self.num_queries} cells of all maps, found {count}")
        more = min(self.copy_queries, count - self.num_queries) if self.training else 0
        best = logits.detach().amax(-1).masked_fill(~mask, NOTHING * 10)
        return best.topk(self.num_queries + more, dim=1).indices

    def _mask(self, there: Tensor, noised: Disturbed | None) -> Mask:
        apart = there.shape[1] - self.num_queries
        if noised is None and not (self.training and apart):
            return Mask(there)
        groups = [] if noised is None else noised.groups
        allowed = group_mask(self.num_queries, [apart], groups, there.device)
        return Mask(there if noised is None else torch.cat([there, noised.query_mask], 1), allowed)

    def _decode(self, start: Start, memory: Memory) -> tuple[Tensor, Tensor]:
        """Logits (layers, B, L, K) and boxes (layers, B, L, 4); in evaluation of the last layer alone."""
        x, reference = start.states, start.boxes_cxcywh
        logits, boxes = [], []
        for n, layer in enumerate(self.decoder):
            x = layer(x, memory, reference, self.query_pos(reference.to(x.dtype)), start.mask)
            reference = (self.box_heads[n](x) + inverse_sigmoid(reference)).sigmoid()
            if self.training or n + 1 == len(self.decoder):
                logits.append(self.class_heads[n](x))
                boxes.append(reference)
            reference = reference.detach()
        return torch.stack(logits), torch.stack(boxes)


def _pick(x: Tensor, indices: Tensor) -> Tensor:
    """The rows (B, L, E) of x (B, S, E) at indices (B, L)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def own_shares(pixel_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The own parts' shares (B, 2) of width and height, from the mask (B, H, W) of images with padding at the end."""
    width, height = pixel_mask[:, 0].sum(1) / pixel_mask.shape[2], pixel_mask[:, :, 0].sum(1) / pixel_mask.shape[1]
    return torch.stack([width, height], -1).to(dtype)


def cell_centers(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The cells' centers xy, (h w, 2), in 0..1 of the map."""
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)
