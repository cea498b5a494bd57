"""The segmentation model: an image to logits of the classes of each pixel. Tensors in, tensors out."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.backbones.segformer import SegFormer
from mmattn.backbones.unet import UNetHead, build_pyramid

Maps = Mapping[str, list[Tensor]]
NETWORKS = ("unet", "segformer")


class SegmentationOutput(NamedTuple):
    """Output of `SegmentationModel`."""

    logits: Tensor  # (B, K, H, W), at the image's size
    auxiliary: list[Tensor]  # logits (B, K, h, w) of coarser maps in training, for deep supervision


class SegmentationHead(UNetHead):
    """Logits of the classes from the feature maps of any encoder, by a decoder with gated skip connections.

    Args:
        in_channels: Channels of the maps, the finest first.
        num_classes: Number of classes K.
        options: Other keywords of `mmattn.backbones.unet.UNetHead`.

    >>> head = SegmentationHead((16, 32), num_classes=5).eval()
    >>> head([torch.randn(1, 16, 12, 8), torch.randn(1, 32, 6, 4)])[0].shape
    torch.Size([1, 5, 12, 8])
    """


class SegmentationModel(nn.Module):
    """Semantic segmentation: images of any size to logits of the classes of each pixel.

    Args:
        num_classes: Number of classes K.
        network: "unet" (an attention U-Net) or "segformer".
        backbone: Encoder of "unet": "residual", a small residual network, or "timm/NAME".
        channels: Channels of the maps, the finest first: of "residual", or embed_dims of "segformer".
        num_blocks: Residual blocks or transformer layers of each map; one number for all, or one for each.
        stem_stride: Stride of the finest map of "residual", 1, 2 or 4.
        decoder_channels: Channels of the U-Net's decoder maps, one fewer than maps, or one number for "segformer";
            none: those of the encoder, or 256.
        gates: Whether the skip connections of "unet" have attention gates.
        deep_supervision: Whether "unet" predicts coarser maps, too, in training.
        num_heads: Number of attention heads of "segformer", one for each map.
        reductions: Factors by which "segformer" reduces keys and values of each map.
        attention: Self-attention of "segformer", {"kind": name, and the kernel's options}; none: dense.
        dropout: Dropout of whole channels before the logits.
        backbone_options: Additional keywords of the constructor of SegFormer or of the backbone, such as those of
            public weights.

    Raises:
        ValueError: The keywords are inconsistent; names them.

    >>> output = SegmentationModel(5, channels=(8, 16))(torch.randn(1, 3, 30, 21))
    >>> output.logits.shape
    torch.Size([1, 5, 30, 21])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        network: Literal["unet", "segformer"] = "unet",
        backbone: str = "residual",
        channels: tuple[int, ...] = (16, 24, 32, 48, 64),
        num_blocks: int | tuple[int, ...] = 1,
        stem_stride: int = 1,
        decoder_channels: tuple[int, ...] | None = None,
        gates: bool = True,
        deep_supervision: bool = True,
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        reductions: tuple[int, ...] = (8, 4, 2, 1),
        attention: dict[str, Any] | None = None,
        dropout: float = 0.0,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        more: dict[str, Any] = dict(backbone_options or {})
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}; expected one of: {', '.join(NETWORKS)}")
        self.num_classes = num_classes
        self.encoder: nn.Module | None = None
        if network == "segformer":
            if decoder_channels is not None and len(decoder_channels) != 1:
                raise ValueError(f"decoder_channels: segformer has one number, found {decoder_channels}")
            blocks = (num_blocks,) * len(channels) if isinstance(num_blocks, int) else num_blocks
            self.head: nn.Module = SegFormer(
                num_classes,
                embed_dims=channels,
                num_layers=blocks,
                num_heads=num_heads,
                reductions=reductions,
                decoder_dim=decoder_channels[0] if decoder_channels else 256,
                attention=attention,
                classifier_dropout=dropout,
                **more,
            )
            return
        if attention is not None:
            raise ValueError("attention: of segformer alone; a U-Net has attention gates")
        own: dict[str, Any] = {"channels": channels, "num_blocks": num_blocks, "stem_stride": stem_stride}
        self.encoder = build_pyramid(backbone, **(own if backbone == "residual" else {}) | more)
        self.head = SegmentationHead(
            self.encoder.channels,  # type: ignore[arg-type]
            num_classes,
            channels=decoder_channels,
            gates=gates,
            deep_supervision=deep_supervision,
            dropout=dropout,
        )

    def forward(self, pixel_values: Tensor) -> SegmentationOutput:
        """pixel_values: (B, 3, H, W). Returns logits (B, K, H, W), and in training those of coarser maps."""
        scores = self.scores(pixel_values)
        return SegmentationOutput(enlarge(scores[0], pixel_values.shape[2:]), scores[1:])

    def scores(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (B, 3, H, W). Returns logits (B, K, h, w) of the decoder's maps, at their resolution."""
        if self.encoder is None:
            return [self.head(pixel_values)]
        return list(self.head(self.encoder(pixel_values)))

    @property
    def unit(self) -> int:
        """The number of pixels of which image sides must be multiples to be downsampled without remainder."""
        if self.encoder is None:
            strides, reductions = self.head.strides, self.head.reductions  # type: ignore[union-attr]
            stride = list(itertools.accumulate(strides, operator.mul))  # type: ignore[arg-type]
            return math.lcm(*(a * b for a, b in zip(stride, reductions, strict=True)))  # type: ignore[arg-type]
        return self.encoder.stride  # type: ignore[return-value]

    def attention_maps(self, maps: Maps, size: Sequence[int], gradients: bool = False) -> list[Tensor]:
        """One map (B, h, w) for each gate or self-attention, the finest first.

        The map of a gate is its coefficients; that of self-attention the weight of each key, the mean over heads and
        queries. With gradients, weights are multiplied by the positive part of their gradients.

        Args:
            maps: Maps captured by `mmattn.explain.capture(model)` in one forward pass.
            size: (H, W) of the images in that pass.
            gradients: Whether to multiply by gradients, which the maps retain after the backward pass of a score.

        Raises:
            ValueError: The model has neither gates nor attention.
        """
        if not maps:
            raise ValueError("the model has neither gates nor self-attention, and no attention map")
        found = []
        for weights in (calls[0] for calls in maps.values()):
            attention = weights.detach()
            if gradients:
                assert weights.grad is not None
                attention = (attention * weights.grad).clamp_min(0)
            found.append(attention)
        if self.encoder is not None:  # the decoder starts at the coarsest map
            return [gate[:, 0] for gate in found[::-1]]
        grids = self.head.key_grids(*size)  # type: ignore[operator]
        return [attention.mean((1, 2)).unflatten(1, grid) for attention, grid in zip(found, grids, strict=True)]


def enlarge(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of logits (B, K, h, w) to (B, K, *size)."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def best_classes(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The most probable class of each pixel at another size: logits (B, K, h, w) to (B, *size) uint8.

    Logits are interpolated and compared one class at a time, so that a large image needs memory for two maps, not K.
    """
    best = logits.new_full((logits.shape[0], *size), -torch.inf, dtype=torch.float32)
    classes = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    for k in range(logits.shape[1]):
        scores = enlarge(logits[:, k : k + 1].float(), size)[:, 0]
        better = scores > best
        best, classes = torch.where(better, scores, best), classes.masked_fill(better, k)
    return classes
