"""DETR: boxes as a set, by a transformer over a convolutional network's last map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, DecoderLayer, Encoder
from ..masks import Mask
from .detection import DetectorOutput, MapPositions, Perceptron, mask_of, resize_mask
from .resnet import ResNet


class Detr(nn.Module):
    """A transformer whose queries each find at most one object (Carion et al. 2020, section 3.2 and figure 10).

    Positions are added to queries and keys of every layer. ``capture`` records the cross-attention (B, h, Q, h w) of
    each layer under "decoder.#.cross_attention".

    Args:
        num_classes: K, without "no object", which is one more; None = no heads, `hidden_states` alone.
        embed_dim: E.
        num_queries: Q.
        num_encoder_layers: Layers over the map's cells.
        num_decoder_layers: Layers of the queries.
        num_heads: h of the encoder.
        decoder_heads: h of the decoder; None = num_heads.
        ffn_dim: Size of the encoder's hidden layers.
        decoder_ffn_dim: Size of the decoder's hidden layers; None = ffn_dim.
        positions: "sine" or "learned", see `MapPositions`.
        norm_between: The norm of the states that the heads read is also before the next layer and, after the last,
            repeated, as in transformers' models with ``auxiliary_loss``.
        attention: {"kind": name, and the kernel's options}, of the self-attentions.
        cross_attention: Of the cross-attentions.
        dropout: Dropout in the layers.
        activation: Activation of the feed-forward networks.
        backbone: Keywords of `ResNet`; None = ResNet-50.

    Raises:
        ValueError: Unknown positions, or indivisible sizes.

    >>> net = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False}
    >>> model = Detr(5, embed_dim=16, num_queries=7, num_heads=2, ffn_dim=32, backbone=net)
    >>> found = model(torch.randn(2, 3, 40, 64))
    >>> found.logits.shape, found.boxes_cxcywh.shape
    (torch.Size([2, 7, 6]), torch.Size([2, 7, 4]))
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        embed_dim: int = 256,
        num_queries: int = 100,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        decoder_heads: int | None = None,
        ffn_dim: int = 2048,
        decoder_ffn_dim: int | None = None,
        positions: str = "sine",
        norm_between: bool = False,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
        dropout: float = 0.1,
        activation: str = "relu",
        backbone: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layer: dict[str, Any] = {"dropout": dropout, "activation": activation, "attention": attention}
        self.backbone = ResNet(**(backbone or {}))
        self.project = nn.Conv2d(self.backbone.out_channels[-1], embed_dim, 1)
        self.positions = MapPositions(embed_dim, positions)
        self.encoder = Encoder(
            embed_dim,
            num_encoder_layers,
            num_heads,
            ffn_dim=ffn_dim,
            norm_first=False,
            needs={"self", "query_pos"},
            **layer,
        )
        self.query_pos = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.decoder = nn.ModuleList(
            DecoderLayer(
                embed_dim,
                num_heads if decoder_heads is None else decoder_heads,
                ffn_dim=ffn_dim if decoder_ffn_dim is None else decoder_ffn_dim,
                norm_first=False,
                needs={"self", "query_pos"},
                cross_attention=cross_attention,
                **layer,
            )
            for _ in range(num_decoder_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.norm_between = norm_between
        self.classifier = self.boxes = None
        if num_classes is not None:
            self.classifier = nn.Linear(embed_dim, num_classes + 1)
            self.boxes = Perceptron(embed_dim, embed_dim, 4, 3)

    def encode(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Mask]:
        """Encodes images; see `forward`.

        Returns:
            The cells' states (B, h w, E), positions (B or 1, h w, E) and mask.
        """
        x = self.project(self.backbone(pixel_values)[-1])  # (B, E, h, w)
        cells = resize_mask(mask_of(pixel_values, pixel_mask), (x.shape[2], x.shape[3]))  # (B, h, w)
        places, mask = self.positions(cells, x.dtype), Mask(cells.flatten(1))
        return self.encoder(x.flatten(2).mT, mask, query_pos=places), places, mask

    def hidden_states(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Returns the normed state of each query after each decoder layer, (layers, B, Q, E); see `forward`."""
        memory, places, mask = self.encode(pixel_values, pixel_mask)
        query_pos = self.query_pos.expand(memory.shape[0], -1, -1)  # (B, Q, E)
        x = torch.zeros_like(query_pos)
        states = []
        for layer in self.decoder:
            x = cast(DecoderLayer, layer)(x, memory, memory_mask=mask, query_pos=query_pos, key_pos=places)
            states.append(self.norm(x))
            if self.norm_between:
                x = states[-1]
        if self.norm_between:
            states[-1] = self.norm(states[-1])
        return torch.stack(states)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectorOutput:
        """Detects objects.

        Args:
            pixel_values: (B, 3, H, W), images padded at the right and the bottom.
            pixel_mask: (B, H, W) bool, True = a pixel of the image; None = all.

        Returns:
            Logits with "no object" last (B, Q, K + 1), and boxes.

        Raises:
            ValueError: There are no heads.
        """
        if self.classifier is None or self.boxes is None:
            raise ValueError("this Detr has no heads: num_classes is None; use hidden_states")
        states = self.hidden_states(pixel_values, pixel_mask)
        logits, boxes = self.classifier(states), self.boxes(states).sigmoid()
        return DetectorOutput(logits[-1], boxes[-1], logits, boxes)
