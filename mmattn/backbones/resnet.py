"""Residual networks as feature pyramids of detectors, with batch norms that may be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..cpu import convolve
from ..feedforward import ACTIVATIONS

EXPANSION = 4  # of the channels by the last convolution of a bottleneck


class FrozenBatchNorm2d(nn.Module):
    """A batch norm with constant statistics, weights and biases: batches of detectors are too small to measure them.

    Args:
        channels: C.
        eps: Epsilon added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns the same shape."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # (C,)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class ConvNorm(nn.Module):
    """``f(norm(conv x))``, padded so that only the stride changes the size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: Stride of the convolution.
        dilation: Dilation of the kernel.
        activation: f, a name in ACTIVATIONS; None = identity.
        frozen: Whether the norm is a `FrozenBatchNorm2d`.
        norm_eps: Epsilon added to the variance in the norm.

    >>> ConvNorm(3, 8, 3, stride=2)(torch.randn(2, 3, 9, 8)).shape
    torch.Size([2, 8, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: str | None = None,
        frozen: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.norm = (FrozenBatchNorm2d if frozen else nn.BatchNorm2d)(out_channels, norm_eps)
        self.activation = activation
        self.folds = False  # see `fold_norms`
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        folded = convolve(x, [self], self.activation) if self.folds else None
        if folded is not None:
            return folded
        x = self.norm(self.conv(x))
        return x if self.activation is None else ACTIVATIONS[self.activation](x)

    def fold(self) -> tuple[Tensor, Tensor] | None:
        """Returns weight (out, in, k, k) and bias (out,) of ``norm(conv x)``; None if statistics are measured.

        It is also None if the convolution or the norm was replaced by one of another class.
        """
        conv, norm = self.conv, cast(Any, self.norm)
        if type(conv) is not nn.Conv2d or conv.bias is not None or norm.training:
            return None
        if type(norm) not in (nn.BatchNorm2d, FrozenBatchNorm2d):
            return None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (out,)
        return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def fold_norms(model: nn.Module) -> None:
    """Lets each `ConvNorm` of a model compute in evaluation on CPUs as one convolution; results differ by rounding."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.folds = True


class ResidualBlock(nn.Module):
    """``f(shortcut(x) + branch(x))``: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1 (He et al. 2016).

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        bottleneck: Whether it is a bottleneck.
        stride: Stride of one convolution: the first, or the bottleneck's 3x3.
        stride_first: In a bottleneck, the 1x1 convolution has the stride, as in the paper, section 3.4.
        dilations: Dilation of the convolution with the stride, and of the others.
        project: Whether the shortcut has a 1x1 convolution.
        pool: Whether 2x2 average pooling instead of that convolution has the stride (He et al. 2019, ResNet-D).
        activation: f, a name in ACTIVATIONS; inside the branch it is ReLU, as in transformers.
        frozen: Whether the norms are frozen.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        bottleneck: bool,
        stride: int = 1,
        stride_first: bool = False,
        dilations: tuple[int, int] = (1, 1),
        project: bool = False,
        pool: bool = False,
        activation: str = "relu",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        first: dict[str, Any] = {"activation": "relu", "frozen": frozen}
        if bottleneck:
            inner = channels // EXPANSION
            strides = (stride, 1) if stride_first else (1, stride)
            self.layers = nn.Sequential(
                ConvNorm(in_channels, inner, 1, stride=strides[0], **first),
                ConvNorm(inner, inner, 3, stride=strides[1], dilation=dilations[0], **first),
                ConvNorm(inner, channels, 1, frozen=frozen),
            )
        else:
            self.layers = nn.Sequential(
                ConvNorm(in_channels, channels, 3, stride=stride, dilation=dilations[0], **first),
                ConvNorm(channels, channels, 3, dilation=dilations[1], frozen=frozen),
            )
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if pool else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = ConvNorm(in_channels, channels, 1, stride=1 if pool else stride, frozen=frozen)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, channels, ceil(H / stride), ceil(W / stride))."""
        return ACTIVATIONS[self.activation](self.layers(x) + self.shortcut(self.pool(x)))


class ResNet(nn.Module):
    """A residual network (He et al. 2016); with ``variant="d"`` ResNet-D (He et al. 2019, section 4), as in RT-DETR.

    Args:
        channels: Channels of each stage's maps.
        depths: Blocks of each stage.
        bottleneck: Bottlenecks, or blocks of two 3x3 convolutions.
        variant: "b", or "d": a stem of three convolutions, and average pooling in shortcuts.
        stem_dim: Channels of the stem.
        out_stages: Stages whose maps are returned, from 0.
        output_stride: Greatest stride of a map, beyond which convolutions are dilated instead.
        halve_first: Whether the first stage, too, halves the map.
        stride_first: See `ResidualBlock`.
        activation: Of the stem, and after each block, a name in ACTIVATIONS.
        frozen: Whether the batch norms are frozen.
        in_channels: Channels of the image.

    Raises:
        ValueError: An unknown variant, numbers that do not match the stages, or a stage that does not exist.

    >>> [tuple(x.shape) for x in ResNet((8, 16), depths=(1, 1), bottleneck=False)(torch.randn(1, 3, 32, 64))]
    [(1, 8, 8, 16), (1, 16, 4, 8)]
    """

    def __init__(
        self,
        channels: Sequence[int] = (256, 512, 1024, 2048),
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        variant: str = "b",
        stem_dim: int = 64,
        out_stages: Sequence[int] | None = None,
        output_stride: int | None = None,
        halve_first: bool = False,
        stride_first: bool = False,
        activation: str = "relu",
        frozen: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        out_stages = range(len(channels)) if out_stages is None else out_stages
        if variant not in ("b", "d"):
            raise ValueError(f"unknown variant of ResNet {variant!r}; expected one of: b, d")
        if len(depths) != len(channels):
            raise ValueError(f"depths: expected one for each of the {len(channels)} stages, found {list(depths)}")
        if not out_stages or not set(out_stages) <= set(range(len(channels))):
            raise ValueError(f"out_stages: expected some of the stages 0 to {len(channels) - 1}, found {[*out_stages]}")
        common: dict[str, Any] = {"activation": activation, "frozen": frozen}
        if variant == "d":
            half = stem_dim // 2
            sizes = ((in_channels, half, 2), (half, half, 1), (half, stem_dim, 1))
            self.stem = nn.Sequential(*(ConvNorm(a, b, 3, stride=stride, **common) for a, b, stride in sizes))
        else:
            self.stem = nn.Sequential(ConvNorm(in_channels, stem_dim, 7, stride=2, **common))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        strides: list[int] = []
        before, total, dilation = stem_dim, 4, 1
        for n, (size, depth) in enumerate(zip(channels, depths, strict=True)):
            stride = 1 if n == 0 and not halve_first else 2
            first_dilation = dilation
            if output_stride is not None and total >= output_stride:
                stride, dilation = 1, dilation * stride
            total *= stride
            strides.append(total)
            project = stride != 1 or before != size
            pool = False
            if variant == "d":  # with basic blocks, the public weights always project, and pool only with new channels
                project = project or not bottleneck
                pool = stride == 2 and (bottleneck or before != size)
            kind: dict[str, Any] = {"bottleneck": bottleneck, "stride_first": stride_first, **common}
            blocks = [
                ResidualBlock(
                    before,
                    size,
                    stride=stride,
                    dilations=(first_dilation, dilation),
                    project=project,
                    pool=pool,
                    **kind,
                )
            ]
            blocks += [ResidualBlock(size, size, dilations=(dilation, dilation), **kind) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            before = size
        self.out_stages = tuple(sorted(out_stages))
        self.out_channels = tuple(channels[n] for n in self.out_stages)
        self.out_strides = tuple(strides[n] for n in self.out_stages)  # in pixels of the image

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (B, in_channels, H, W). Returns (B, channels[n], h_n, w_n) of the out_stages, finest first."""
        x = self.pool(self.stem(pixel_values))
        maps = []
        for n, stage in enumerate(self.stages):
            x = cast(nn.Sequential, stage)(x)
            if n in self.out_stages:
                maps.append(x)
        return maps
