"""Channel attention: gates over the channels of a map (B, C, H, W)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .spatial import Gate, SpatialAttention


class SqueezeExcitation(Gate):
    """``x * sigmoid(W2 relu(W1 mean(x)))``, one weight per channel (Hu et al. 2018, section 3).

    Args:
        channels: C.
        reduction: r; the hidden layer has C / r units.

    >>> SqueezeExcitation(64)(torch.randn(2, 64, 8, 6)).shape
    torch.Size([2, 64, 8, 6])
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden_dim = max(1, channels // reduction)
        self.fc1, self.fc2 = nn.Linear(channels, hidden_dim), nn.Linear(hidden_dim, channels)

    def weights(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        squeezed = _mean(x, cell_mask)  # (B, C)
        return self.fc2(self.fc1(squeezed).relu()).sigmoid()[:, :, None, None]  # (B, C, 1, 1)


class EfficientChannelAttention(Gate):
    """``x * sigmoid(conv(mean(x)))``, a convolution along the channels (ECA; Wang et al. 2020, section 3.2).

    Args:
        channels: C, which decides the kernel size.
        kernel_size: Number of neighboring channels that determine a weight; None = the odd number nearest to
            ``(log2(C) + 1) / 2`` (section 3.2.3), at least 3.

    Raises:
        ValueError: An even kernel_size.

    >>> gate = EfficientChannelAttention(256)
    >>> gate.conv.kernel_size, gate(torch.randn(2, 256, 8, 6)).shape
    ((5,), torch.Size([2, 256, 8, 6]))
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            whole = int((math.log2(channels) + 1) / 2)
            kernel_size = max(whole + 1 - whole % 2, 3)  # below 8 channels the formula gives 1, which mixes nothing
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to leave the channels their number; found {kernel_size}")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def weights(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        scores = self.conv(_mean(x, cell_mask)[:, None])  # (B, 1, C)
        return scores.sigmoid().transpose(1, 2)[..., None]  # (B, C, 1, 1)


class ChannelAttention(Gate):
    """``x * sigmoid(mlp(mean(x)) + mlp(max(x)))``, one mlp for both (Woo et al. 2018, section 3, "channel attention").

    Args:
        channels: C.
        reduction: r; the hidden layer has C / r units.

    >>> ChannelAttention(64)(torch.randn(2, 64, 8, 6)).shape
    torch.Size([2, 64, 8, 6])
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden_dim = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden_dim, bias=False)
        self.fc2 = nn.Linear(hidden_dim, channels, bias=False)

    def weights(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        pooled = torch.stack([_mean(x, cell_mask), _max(x, cell_mask)])  # (2, B, C)
        return self.fc2(self.fc1(pooled).relu()).sum(0).sigmoid()[:, :, None, None]  # (B, C, 1, 1)


class CBAM(nn.Module):
    """ChannelAttention, then SpatialAttention (Woo et al. 2018, section 3).

    Args:
        channels: C.
        reduction: Reduction of the channel attention.
        kernel_size: Kernel size of the spatial attention, odd.

    >>> CBAM(64)(torch.randn(2, 64, 8, 6)).shape
    torch.Size([2, 64, 8, 6])
    """

    def __init__(self, channels: int, *, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction=reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); cell_mask: (B, H, W) bool, True = a real cell. Returns (B, C, H, W)."""
        return self.spatial(self.channel(x, cell_mask), cell_mask)


def _mean(x: Tensor, cell_mask: Tensor | None) -> Tensor:
    """Returns the mean of (B, C, H, W) over the real cells, (B, C); zero if there are none."""
    if cell_mask is None:
        return x.mean((2, 3))
    total = x.masked_fill(~cell_mask[:, None], 0.0).sum((2, 3))
    return total / cell_mask.sum((1, 2)).clamp_min(1)[:, None]


def _max(x: Tensor, cell_mask: Tensor | None) -> Tensor:
    """Returns the maximum of (B, C, H, W) over the real cells, (B, C); zero if there are none."""
    if cell_mask is None:
        return x.amax((2, 3))
    highest = x.masked_fill(~cell_mask[:, None], torch.finfo(x.dtype).min).amax((2, 3))
    return highest.masked_fill(~cell_mask.any(2).any(1)[:, None], 0.0)
