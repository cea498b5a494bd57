"""RT-DETR: an efficient encoder of several maps, and queries that begin at its best proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder
from ..cpu import convolve
from ..deformable import flatten_maps
from ..feedforward import ACTIVATIONS
from ..masks import Mask
from ..positions import sinusoidal_2d
from .deformable_detr import DeformableDecoderLayer, init_heads, start_boxes
from .detection import DetectorOutput, Perceptron, inverse_sigmoid
from .resnet import ConvNorm, ResNet, fold_norms


class RepBlock(nn.Module):
    """``f(norm(conv3x3 x) + norm(conv1x1 x))`` (Ding et al. 2021, RepVGG, without its identity).

    Args:
        channels: C.
        activation: f, a name in ACTIVATIONS.
        norm_eps: Epsilon of the batch norms.
    """

    def __init__(self, channels: int, activation: str = "silu", norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.wide = ConvNorm(channels, channels, 3, norm_eps=norm_eps)
        self.narrow = ConvNorm(channels, channels, 1, norm_eps=norm_eps)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, h, w). Returns the same shape."""
        folded = convolve(x, [self.wide, self.narrow], self.activation) if self.wide.folds else None
        return ACTIVATIONS[self.activation](self.wide(x) + self.narrow(x)) if folded is None else folded


class FusionBlock(nn.Module):
    """Fuses two maps: three `RepBlock`s beside a shortcut (Zhao et al. 2024, section 4.2, figure 4).

    Args:
        channels: C of each map, and of the result.
        expansion: Channels inside / C.
        activation: A name in ACTIVATIONS.
        norm_eps: Epsilon of the batch norms.
    """

    def __init__(
        self, channels: int, *, expansion: float = 1.0, activation: str = "silu", norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        inner, kind = int(channels * expansion), {"activation": activation, "norm_eps": norm_eps}
        self.branch, self.shortcut = (ConvNorm(2 * channels, inner, 1, **cast(Any, kind)) for _ in range(2))
        self.blocks = nn.Sequential(*(RepBlock(inner, activation, norm_eps) for _ in range(3)))
        self.project: nn.Module = nn.Identity()
        if inner != channels:
            self.project = ConvNorm(inner, channels, 1, **cast(Any, kind))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """first, second: (B, C, h, w). Returns (B, C, h, w)."""
        x = torch.cat([first, second], dim=1)
        return self.project(self.blocks(self.branch(x)) + self.shortcut(x))


class HybridEncoder(nn.Module):
    """Self-attention within the coarsest maps, then fusion from coarse to fine and back (Zhao et al. 2024, 4.2).

    Args:
        embed_dim: C of all maps.
        num_maps: Number of maps.
        num_layers: Layers of self-attention.
        num_heads: h.
        ffn_dim: Size of their hidden layers.
        attended: Maps with self-attention, 0 = the finest.
        expansion: See `FusionBlock`.
        base: Of the sine positions.
        attention: {"kind": name, and the kernel's options}.
        dropout: Dropout in the layers.
        activation: Activation of the feed-forward networks.
        conv_activation: Activation of the convolutions.
        norm_eps: Epsilon of the layer norms.
        batch_norm_eps: Epsilon of the batch norms.
    """

    def __init__(
        self,
        embed_dim: int,
        num_maps: int,
        *,
        num_layers: int = 1,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        attended: Sequence[int] = (2,),
        expansion: float = 1.0,
        base: float = 10000.0,
        attention: AttentionConfig = None,
        dropout: float = 0.0,
        activation: str = "gelu",
        conv_activation: str = "silu",
        norm_eps: float = 1e-5,
        batch_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not set(attended) <= set(range(num_maps)):
            raise ValueError(f"attended: expected some of the maps 0 to {num_maps - 1}, found {list(attended)}")
        self.attended, self.base = tuple(attended), base
        layer: dict[str, Any] = {"attention": attention, "dropout": dropout, "activation": activation}
        layer |= {"needs": {"self", "query_pos"}, "ffn_dim": ffn_dim, "norm_first": False, "norm_eps": norm_eps}
        self.attentions = nn.ModuleList(Encoder(embed_dim, num_layers, num_heads, **layer) for _ in attended)
        conv: dict[str, Any] = {"activation": conv_activation, "norm_eps": batch_norm_eps}
        steps = range(num_maps - 1)
        self.lateral = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 1, **conv) for _ in steps)
        self.top_down = nn.ModuleList(FusionBlock(embed_dim, expansion=expansion, **conv) for _ in steps)
        self.halve = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 3, stride=2, **conv) for _ in steps)
        self.bottom_up = nn.ModuleList(FusionBlock(embed_dim, expansion=expansion, **conv) for _ in steps)

    def forward(self, maps: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Attends and fuses.

        Args:
            maps: (B, C, h_n, w_n), each half as high as the one before.
            masks: (B, h_n, w_n) bool, True = a real cell, which alone is attended to; None = all.

        Returns:
            The same shapes.

        Raises:
            ValueError: A map is not twice as high and wide as the next.
        """
        self._check(maps)
        maps = list(maps)
        for n, encoder in zip(self.attended, self.attentions, strict=True):
            maps[n] = self._attend(encoder, maps[n], None if masks is None else Mask(masks[n].flatten(1)))
        x, fused = maps.pop(), []  # from coarse to fine
        for lateral, fuse in zip(self.lateral, self.top_down, strict=True):
            x = lateral(x)
            fused.append(x)
            x = fuse(F.interpolate(x, scale_factor=2.0, mode="nearest"), maps.pop())
        found = [x]  # and back
        for halve, fuse in zip(self.halve, self.bottom_up, strict=True):
            found.append(fuse(halve(found[-1]), fused.pop()))
        return found

    def _attend(self, encoder: nn.Module, x: Tensor, mask: Mask | None) -> Tensor:
        _, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        places = sinusoidal_2d(height, width, channels, self.base, x.device, wide).flatten(0, 1)[None]  # (1, h w, C)
        return encoder(x.flatten(2).mT, mask, query_pos=places.to(x.dtype)).mT.unflatten(2, (height, width))

    def _check(self, maps: Sequence[Tensor]) -> None:
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        for (h, w), (half_h, half_w) in pairwise(sizes):
            if isinstance(h, int) and isinstance(w, int) and (h, w) != (2 * half_h, 2 * half_w):
                raise ValueError(
                    f"expected maps that are each twice as high and wide as the next, found {sizes}: "
                    "height and width of the image must be divisible by the greatest stride"
                )


class Start(NamedTuple):
    """Where queries begin, and the maps' cells that they attend to."""

    memory: Tensor  # (B, S, E)
    shapes: list[tuple[int, int]]  # (h, w) of each map
    states: Tensor  # (B, Q, E)
    logits: Tensor  # (B, Q, K), of the proposals
    boxes: Tensor  # (B, Q, 4), cxcywh


class RTDetr(nn.Module):
    """A real-time detector (Zhao et al. 2024): hybrid encoder, proposals, and a decoder that refines their boxes.

    It has no masks: padding is seen as pixels, and boxes are shares of the padded image. Public processors scale all
    images to one size instead. ``capture`` records points as in `DeformableDetr`, under "decoder.#.cross_attention".

    Args:
        num_classes: K.
        embed_dim: E of the queries.
        num_queries: Q.
        num_levels: Maps that queries attend to: the backbone's, and more, half as high as its last.
        num_points: Points per head and map.
        num_layers: Layers of the decoder.
        num_heads: h of the decoder.
        ffn_dim: Size of the decoder's hidden layers.
        encoder_dim: Channels of the encoder's maps.
        encoder_layers: Layers of self-attention in the encoder.
        encoder_heads: Their heads.
        encoder_ffn_dim: Size of their hidden layers.
        attended: Maps with self-attention, 0 = the finest.
        expansion: Channels inside the encoder's blocks / encoder_dim.
        base: Of the encoder's sine positions.
        attention: {"kind": name, and the kernel's options}, of the queries' self-attention.
        encoder_attention: The same in the encoder.
        dropout: Dropout in the layers.
        activation: Activation of the decoder's feed-forward networks.
        encoder_activation: Activation of the encoder's.
        conv_activation: Activation of the encoder's convolutions.
        norm_eps: Epsilon of the layer norms.
        batch_norm_eps: Epsilon of the encoder's batch norms.
        backbone: Keywords of `ResNet`; None = the last three maps of ResNet-50-D.

    Raises:
        ValueError: The backbone has more maps than levels, or sizes are indivisible.

    >>> net = {"channels": (8, 8, 16), "depths": (1, 1, 1), "bottleneck": False, "variant": "d"}
    >>> model = RTDetr(5, embed_dim=16, num_queries=7, num_heads=2, encoder_dim=16, encoder_heads=2, backbone=net)
    >>> found = model(torch.randn(2, 3, 32, 64))
    >>> found.logits.shape, found.boxes_cxcywh.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 7, 4]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int = 256,
        num_queries: int = 300,
        num_levels: int = 3,
        num_points: int = 4,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        encoder_dim: int = 256,
        encoder_layers: int = 1,
        encoder_heads: int = 8,
        encoder_ffn_dim: int = 1024,
        attended: Sequence[int] = (2,),
        expansion: float = 1.0,
        base: float = 10000.0,
        attention: AttentionConfig = None,
        encoder_attention: AttentionConfig = None,
        dropout: float = 0.0,
        activation: str = "relu",
        encoder_activation: str = "gelu",
        conv_activation: str = "silu",
        norm_eps: float = 1e-5,
        batch_norm_eps: float = 1e-5,
        backbone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(**({"out_stages": (1, 2, 3), "variant": "d"} if backbone is None else backbone))
        channels = self.backbone.out_channels
        if len(channels) > num_levels:
            raise ValueError(f"num_levels: expected at least {len(channels)}, the backbone's maps, found {num_levels}")
        self.projections = nn.ModuleList(ConvNorm(size, encoder_dim, 1) for size in channels)
        self.encoder = HybridEncoder(
            encoder_dim,
            len(channels),
            num_layers=encoder_layers,
            num_heads=encoder_heads,
            ffn_dim=encoder_ffn_dim,
            attended=attended,
            expansion=expansion,
            base=base,
            attention=encoder_attention,
            dropout=dropout,
            activation=encoder_activation,
            conv_activation=conv_activation,
            norm_eps=norm_eps,
            batch_norm_eps=batch_norm_eps,
        )
        levels = [ConvNorm(encoder_dim, embed_dim, 1, norm_eps=batch_norm_eps) for _ in channels]
        for _ in range(num_levels - len(channels)):
            levels.append(ConvNorm(encoder_dim, embed_dim, 3, stride=2, norm_eps=batch_norm_eps))
        self.levels, self.num_queries = nn.ModuleList(levels), num_queries
        self.proposal_proj, self.proposal_norm = nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim, norm_eps)
        self.proposal_classes = nn.Linear(embed_dim, num_classes)
        self.proposal_boxes = Perceptron(embed_dim, embed_dim, 4, 3)
        self.query_pos = Perceptron(4, 2 * embed_dim, embed_dim, 2)
        layer: dict[str, Any] = {"attention": attention, "dropout": dropout, "activation": activation}
        layer |= {"num_levels": num_levels, "num_points": num_points, "ffn_dim": ffn_dim, "norm_eps": norm_eps}
        self.decoder = nn.ModuleList(DeformableDecoderLayer(embed_dim, num_heads, **layer) for _ in range(num_layers))
        self.class_heads = nn.ModuleList(nn.Linear(embed_dim, num_classes) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(Perceptron(embed_dim, embed_dim, 4, 3) for _ in range(num_layers))
        init_heads([self.proposal_classes, *self.class_heads], [self.proposal_boxes, *self.box_heads])
        fold_norms(self)

    def encode(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the encoder's maps (B, encoder_dim, h, w), the finest first; see `forward`."""
        maps = self.backbone(pixel_values)
        return self.encoder([project(x) for project, x in zip(self.projections, maps, strict=True)])

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detects objects.

        Args:
            pixel_values: (B, 3, H, W), H and W divisible by the greatest stride of the backbone's maps.
            pixel_mask: (B, H, W) bool, as of other detectors, without effect.

        Returns:
            Logits (B, Q, K), of independent classes, boxes, and the proposals where the queries begin, also Q.

        Raises:
            ValueError: An indivisible size, or fewer cells than queries.
        """
        start = self._propose(self.encode(pixel_values))
        x, reference = start.states, start.boxes.detach()
        logits, boxes = [], []
        for layer, classes, corrections in zip(self.decoder, self.class_heads, self.box_heads, strict=True):
            query_pos = self.query_pos(reference.to(x.dtype))  # (B, Q, E)
            x = layer(x, start.memory, start.shapes, reference[:, :, None], None, query_pos)
            logits.append(classes(x))
            boxes.append((corrections(x) + inverse_sigmoid(reference)).sigmoid())
            reference = boxes[-1].detach()
        return DetectorOutput(logits[-1], boxes[-1], torch.stack(logits), torch.stack(boxes), start.logits, start.boxes)

    def _propose(self, maps: Sequence[Tensor]) -> Start:
        """Scores a box at each cell, and begins with those of the best class (section 4.3)."""
        more = [maps[-1]] * (len(self.levels) - len(maps))  # all others, too, are of the last map
        maps = [level(x) for level, x in zip(self.levels, [*maps, *more], strict=True)]
        memory, shapes = flatten_maps(maps)  # (B, S, E)
        count = memory.shape[1]
        if isinstance(count, int) and count < self.num_queries:
            raise ValueError(f"expected at least num_queries={self.num_queries} cells of all maps, found {count}")
        masks = [torch.ones_like(x[:1, 0], dtype=torch.bool) for x in maps]
        starts, valid = start_boxes(masks, torch.promote_types(memory.dtype, torch.float32))  # (1, S, 4), (1, S)
        cells = self.proposal_norm(self.proposal_proj(memory.masked_fill(~valid[..., None], 0.0)))
        logits = self.proposal_classes(cells)  # (B, S, K)
        best = logits.amax(-1).topk(self.num_queries, dim=1).indices[..., None]  # (B, Q, 1)

        def chosen(x: Tensor) -> Tensor:
            return x.expand(best.shape[0], -1, -1).gather(1, best.expand(-1, -1, x.shape[-1]))

        cells = chosen(cells)  # (B, Q, E)
        boxes = self.proposal_boxes(cells) + chosen(starts)
        return Start(memory, shapes, cells.detach(), chosen(logits), boxes.sigmoid())
