"""Convolutional networks for small images: a plain stem, and a residual network with channel attention by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from ..channel import CBAM, EfficientChannelAttention, SqueezeExcitation

# Gates of residual branches; their reduction is 8, as the networks are narrow.
GATES: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "se": partial(SqueezeExcitation, reduction=8),
    "eca": EfficientChannelAttention,
    "cbam": partial(CBAM, reduction=8),
}


class ConvStem(nn.Module):
    """3x3 convolutions that each halve the map, then a 1x1 or 3x3 one that keeps it (Xiao et al. 2021, section 4).

    Args:
        embed_dim: E of the map.
        channels: Channels of the halving convolutions: three make a stride of 8.
        in_channels: Channels of the image.
        norm: "batch", "group" or "none", after each halving convolution.

    >>> import torch
    >>> ConvStem(32)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self, embed_dim: int, *, channels: Sequence[int] = (32, 64, 96), in_channels: int = 3, norm: str = "batch"
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
    raise ValueError(f"unknown norm {name!r}; expected one of: batch, group, none")


class GatedResidual(nn.Module):
    """``relu(x + gate(f(x)))``, f two 3x3 convolutions: a basic block with a gated residual branch.

    He et al. 2016, section 3.3; Hu et al. 2018, figure 3.

    Args:
        channels: C.
        gate: A name in GATES.
    """

    def __init__(self, channels: int, gate: str = "none") -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.gate = GATES[gate](channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, h, w). Returns the same shape."""
        return (x + self.gate(self.norm(self.second(self.first(x))))).relu()


class ResidualNet(nn.Module):
    """A small residual network: a 3x3 stem, then stages that halve the map and contain residual blocks.

    A stage begins with a 3x3 convolution and max pooling, which preserves more of a small image than a stride. The
    total stride is ``stem_stride * 2 ** (len(channels) - 1)``.

    Args:
        channels: Channels of the stem, and of each stage.
        blocks: Residual blocks of each stage, or one number for all.
        gate: Channel attention of the residual branches: "none", "se", "eca" or "cbam".
        stem_stride: 1 keeps the resolution of the image, 2 halves it.
        in_channels: Channels of the image.

    Raises:
        ValueError: An unknown gate, or numbers that do not match the stages.

    >>> import torch
    >>> ResidualNet((16, 32, 48), gate="se")(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 48, 16, 12])
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        *,
        blocks: int | Sequence[int] = 1,
        gate: str = "none",
        stem_stride: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"unknown channel attention {gate!r}; expected one of: {', '.join(GATES)}")
        if stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride: expected 1, 2 or 4, found {stem_stride!r:.40}")
        numbers = [blocks] * (len(channels) - 1) if isinstance(blocks, int) else list(blocks)
        if len(numbers) != len(channels) - 1:
            raise ValueError(f"blocks has {len(numbers)} numbers for the {len(channels) - 1} stages of channels")
        self.stem = _conv(in_channels, channels[0], stride=stem_stride)
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(before, after, pool=True), *(GatedResidual(after, gate) for _ in range(number)))
            for before, after, number in zip(channels, channels[1:], numbers, strict=False)
        )
        self.out_channels = channels[-1]
        self.stride = stem_stride * 2 ** (len(channels) - 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W). Returns (N, channels[-1], H // stride, W // stride)."""
        x = self.stem(pixel_values)
        for stage in self.stages:
            x = stage(x)
        return x


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, pool: bool = False) -> nn.Sequential:
    """Makes a convolution, optional pooling, norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
