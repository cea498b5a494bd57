"""U-Nets with attention gates in the skip connections, over a small residual network or any feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spatial import AttentionGate
from . import unknown_backbone


class ResidualBlock(nn.Module):
    """``relu(P x + bn(conv(relu(bn(conv(x))))))``, P the identity or a 1x1 convolution (He et al. 2016, section 3.3).

    Args:
        in_channels: Channels of the map.
        channels: Channels of the result.
        stride: Stride of the first convolution and of P.

    >>> ResidualBlock(8, 16, stride=2)(torch.randn(2, 8, 6, 4)).shape
    torch.Size([2, 16, 3, 2])
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, channels, ceil(H / stride), ceil(W / stride))."""
        hidden = self.norm1(self.conv1(x)).relu()
        # Equivalent to a 1x1 convolution with a stride, whose backward pass in channels-last order on CPUs writes
        # beyond its memory (torch 2.14; 8 channels or fewer).
        kept = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return (self.shortcut(kept) + self.norm2(self.conv2(hidden))).relu()


class ResidualPyramid(nn.Module):
    """Residual blocks on successively coarser maps: the encoder of a U-Net.

    Args:
        channels: Channels of the maps, the finest first; each is half as high and wide as the one before.
        num_blocks: Residual blocks on each map, the first of which resizes it.
        stem_stride: Stride of the finest map: 1 preserves thin structures, 2 or 4 saves most of the computation.
        in_channels: Channels of the image.

    >>> [tuple(m.shape) for m in ResidualPyramid((8, 16))(torch.randn(1, 3, 10, 7))]
    [(1, 8, 10, 7), (1, 16, 5, 4)]
    """

    def __init__(
        self, channels: Sequence[int], *, num_blocks: int = 1, stem_stride: int = 1, in_channels: int = 3
    ) -> None:
        super().__init__()
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride: expected 1, 2 or 4, found {stem_stride}")
        first, halvings = channels[0], [2] * (stem_stride // 2)
        layers: list[nn.Module] = []
        for stride in halvings or [1]:
            layers += [nn.Conv2d(in_channels, first, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(first)]
            layers += [nn.ReLU(inplace=True)]
            in_channels = first
        self.stem = nn.Sequential(*layers)
        self.levels = nn.ModuleList()
        for n, size in enumerate(channels):
            blocks = [ResidualBlock(in_channels, size, stride=2 if n else 1)]
            blocks += [ResidualBlock(size, size) for _ in range(num_blocks - 1)]
            self.levels.append(nn.Sequential(*blocks))
            in_channels = size
        self.channels = tuple(channels)
        self.stride = stem_stride * 2 ** (len(channels) - 1)  # of the coarsest map

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (B, in_channels, H, W). Returns maps (B, channels[n], h_n, w_n), the finest first."""
        x, maps = self.stem(pixel_values), []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class GatedDecoder(nn.Module):
    """The decoder of an attention U-Net (Oktay et al. 2018, section 2; Ronneberger et al. 2015).

    Level by level, the coarse map is upsampled, concatenated with the gated finer map, and convolved.

    Args:
        in_channels: Channels of the encoder's maps, the finest first.
        channels: Channels of the decoder's maps, the finest first, one fewer; None = those of the encoder's.
        gates: Whether each skip connection has an `mmattn.spatial.AttentionGate`, controlled by the coarser map.

    >>> decoder = GatedDecoder((8, 16, 32))
    >>> maps = [torch.randn(1, c, s, s) for c, s in ((8, 12), (16, 6), (32, 3))]
    >>> [tuple(m.shape) for m in decoder(maps)]
    [(1, 8, 12, 12), (1, 16, 6, 6)]
    """

    def __init__(
        self, in_channels: Sequence[int], channels: Sequence[int] | None = None, *, gates: bool = True
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(f"a decoder needs two maps or more, found {len(in_channels)}")
        channels = tuple(in_channels[:-1]) if channels is None else tuple(channels)
        if len(channels) != len(in_channels) - 1:
            raise ValueError(f"expected channels for {len(in_channels) - 1} decoder maps, found {len(channels)}")
        coarser = (*channels[1:], in_channels[-1])  # channels of the coarser map at each level
        self.channels = channels
        self.gates = nn.ModuleList(AttentionGate(c, g) for c, g in zip(in_channels, coarser, strict=False) if gates)
        self.mixers = nn.ModuleList(
            ResidualBlock(c + g, out) for c, g, out in zip(in_channels, coarser, channels, strict=False)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps: (B, in_channels[n], h_n, w_n), the finest first. Returns (B, channels[n], h_n, w_n), the finest first.

        Raises:
            ValueError: The number of maps does not match.
        """
        if len(maps) != len(self.channels) + 1:
            raise ValueError(f"expected {len(self.channels) + 1} maps, found {len(maps)}")
        x, found = maps[-1], []
        for n in reversed(range(len(self.channels))):
            skip = cast(nn.Module, self.gates[n])(maps[n], x) if self.gates else maps[n]
            enlarged = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = self.mixers[n](torch.cat([skip, enlarged], dim=1))
            found.append(x)
        return found[::-1]


class UNetHead(nn.Module):
    """Segmentation head over feature maps: a `GatedDecoder` and a 1x1 convolution.

    With deep supervision each coarser map has a classifier too, so that every gate receives direct gradients (Oktay et
    al. 2018, section 2.2; Lee et al. 2015).

    Args:
        in_channels: Channels of the encoder's maps, the finest first.
        num_classes: K.
        channels: Channels of the decoder's maps; see `GatedDecoder`.
        gates: See `GatedDecoder`.
        deep_supervision: Whether the coarser maps of the decoder are classified too, in training.
        dropout: Dropout of whole channels before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int] | None = None,
        gates: bool = True,
        deep_supervision: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.decoder = GatedDecoder(in_channels, channels, gates=gates)
        self.dropout = nn.Dropout2d(dropout)
        scored = self.decoder.channels if deep_supervision else self.decoder.channels[:1]
        self.classifiers = nn.ModuleList(nn.Conv2d(size, num_classes, 1) for size in scored)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """maps: see `GatedDecoder`. Returns logits (B, K, h_n, w_n), finest first; in evaluation only the finest."""
        decoded = self.decoder(maps)
        scored = len(self.classifiers) if self.training else 1
        return [self.classifiers[n](self.dropout(decoded[n])) for n in range(scored)]


def build_pyramid(name: str, **options: Any) -> Any:
    """Makes a module that maps pixel values (B, 3, H, W) to a list of maps with `channels`, the finest first.

    Args:
        name: "residual" (ResidualPyramid) or "timm/NAME" (all feature maps of a timm model).
        options: The pyramid's keywords.

    Raises:
        ValueError: An unknown pyramid.
    """
    if name.startswith("timm/"):
        from .timm import TimmPyramid

        return TimmPyramid(name.removeprefix("timm/"), **options)
    if name == "residual":
        return ResidualPyramid(**options)
    raise unknown_backbone(name, ("residual", "timm/NAME"))
