"""A convolutional stem: small maps from small images, with the locality that attention would have to learn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvStem(nn.Module):
    """3x3 convolutions that halve the map one by one, then one that keeps it (Xiao et al. 2021, section 4).

    Args:
        embed_dim: E of the map.
        channels: of the halving convolutions: three make a stride of 8.
        in_channels: of the image.
        norm: "batch", "group" or "none", after each halving convolution.

    >>> import torch
    >>> ConvStem(32)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        channels: Sequence[int] = (32, 64, 96),
        in_channels: int = 3,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in channels:
            layers += [nn.Conv2d(in_channels, size, 3, stride=2, padding=1, bias=norm == "none"), _norm(norm, size)]
            layers += [nn.ReLU(inplace=True)]
            in_channels = size
        layers += [nn.Conv2d(in_channels, embed_dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.stride = 2 ** len(channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W). Returns (N, E, ceil(H / stride), ceil(W / stride))."""
        return self.layers(pixel_values)


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {name!r}; there are: batch, group, none")
