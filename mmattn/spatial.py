"""Attention over a map (B, C, H, W): gates, pooling, and self-attention between cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import AttentionConfig, make_attention
from .fusion import AttentionPooling
from .masks import Mask
from .positions import GridPositions
from .probe import Probe


class Gate(nn.Module):
    """Gates a map, ``x * weights(x)`` with weights in 0..1; a subclass implements `weights`.

    ``capture`` records the weights under the path of `gate`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = Probe()

    def forward(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        """Gates a map.

        Args:
            x: (B, C, H, W).
            cell_mask: (B, H, W) bool, True = a real cell. The weights do not depend on the other cells.

        Returns:
            (B, C, H, W).
        """
        return x * self.gate(self.weights(x, cell_mask))

    def weights(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        """Returns the gate: (B, C, 1, 1), one weight per channel, or (B, 1, H, W), one per cell."""
        raise NotImplementedError


class SpatialAttention(Gate):
    """``x * sigmoid(conv([mean_c x; max_c x]))``, one weight per cell (Woo et al. 2018, section 3).

    Args:
        kernel_size: Kernel size of the convolution, odd.

    Raises:
        ValueError: An even kernel_size.

    >>> SpatialAttention()(torch.randn(2, 16, 8, 6)).shape
    torch.Size([2, 16, 8, 6])
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to leave the map its size; found {kernel_size}")
        # The batch norm that follows in the authors' code can be folded into this weight and bias after training.
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def weights(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # (B, 2, H, W)
        if cell_mask is not None:  # zeros, as the padding around a map
            pooled = pooled.masked_fill(~cell_mask[:, None], 0.0)
        return self.conv(pooled).sigmoid()  # (B, 1, H, W)


class AttentionGate(nn.Module):
    """Attention gate on the skip connection of a U-Net: a coarse map g weighs the cells of a fine map x.

    ``x * resample(sigmoid(psi relu(W_x resample(x) + W_g g + b)))`` (Oktay et al. 2018, section 2). Weights are
    computed at g's resolution; resampling is bilinear. ``capture`` records them, (B, 1, H, W), under the path of
    `gate`.

    Args:
        channels: Channels of x, the fine map.
        gate_channels: Channels of g, the coarse map.
        hidden_dim: Channels of the sum; None = half of channels.

    >>> AttentionGate(16, 32)(torch.randn(2, 16, 8, 6), torch.randn(2, 32, 4, 3)).shape
    torch.Size([2, 16, 8, 6])
    """

    def __init__(self, channels: int, gate_channels: int, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden_dim = max(1, channels // 2) if hidden_dim is None else hidden_dim
        self.x_proj = nn.Conv2d(channels, hidden_dim, 1, bias=False)  # W_x
        self.g_proj = nn.Conv2d(gate_channels, hidden_dim, 1)  # W_g, b
        self.psi = nn.Conv2d(hidden_dim, 1, 1)
        self.gate = Probe()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """x: (B, channels, H, W), from the skip; g: (B, gate_channels, h, w), from below. Returns x's shape."""
        hidden = _resample(self.x_proj(x), g) + self.g_proj(g)  # (B, hidden_dim, h, w)
        weights = self.psi(hidden.relu()).sigmoid()  # (B, 1, h, w)
        return x * self.gate(_resample(weights, x))


def _resample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class MapPooling(nn.Module):
    """Pooling of a map by attention from learned queries, the analogue of class tokens.

    `mmattn.fusion.AttentionPooling` over the flattened map with 2D positions.

    Args:
        embed_dim: E, of the queries and the result.
        num_heads: h.
        num_queries: Number of queries, i.e. of resulting vectors.
        in_channels: Channels of the map; None = E.
        positions: See `mmattn.positions.GridPositions`.
        grid_size: (h, w) of learned positions.
        attention: {"kind": name, and the kernel's options}.

    >>> MapPooling(32, 4, in_channels=16)(torch.randn(2, 16, 8, 6)).shape
    torch.Size([2, 1, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_queries: int = 1,
        in_channels: int | None = None,
        positions: str = "sinusoidal",
        grid_size: tuple[int, int] | None = None,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        in_channels = embed_dim if in_channels is None else in_channels
        self.positions = GridPositions(in_channels, positions, grid_size=grid_size)
        self.pooling = AttentionPooling(
            embed_dim, num_heads, num_queries=num_queries, kv_dim=in_channels, attention=attention
        )

    def forward(self, x: Tensor, cell_mask: Tensor | None = None, steer: Tensor | None = None) -> Tensor:
        """Pools a map.

        Args:
            x: (B, in_channels, H, W).
            cell_mask: (B, H, W) bool, True = a real cell.
            steer: (B, num_queries or 1, E), added to the queries, e.g. a question's vector.

        Returns:
            (B, num_queries, E).
        """
        cells = self.positions(x).flatten(2).mT  # (B, H W, in_channels)
        return self.pooling(cells, None if cell_mask is None else Mask(cell_mask.flatten(1)), steer)


class PositionAttention(nn.Module):
    """Self-attention between the cells of a map, added through a gate that is zero at initialization.

    ``x + gamma * attention(x)``, gamma initialized to zero (Fu et al. 2019, section 3.2; without gamma the non-local
    block of Wang et al. 2018, section 3.3). Scores are scaled by 1 / sqrt(d), which the papers leave to the weights,
    and the output projection is that of the non-local block.

    Args:
        channels: C.
        num_heads: 1 in the papers.
        reduction: Queries and keys have C / reduction channels, over all heads.
        attention: {"kind": name, and the kernel's options}; the cells are flattened row by row.

    >>> PositionAttention(16)(torch.randn(2, 16, 8, 6)).shape
    torch.Size([2, 16, 8, 6])
    """

    def __init__(
        self, channels: int, *, num_heads: int = 1, reduction: int = 8, attention: AttentionConfig = None
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} is not divisible by num_heads={num_heads}")
        self.attention = make_attention(
            channels,
            num_heads,
            attention,
            {"self"},
            head_dim=max(1, channels // reduction // num_heads),
            v_head_dim=channels // num_heads,
        )
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, cell_mask: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); cell_mask: (B, H, W) bool, True = a real cell. Returns (B, C, H, W)."""
        mask = None if cell_mask is None else Mask(cell_mask.flatten(1))  # (B, H W)
        found = self.attention(x.flatten(2).mT, mask=mask)  # (B, H W, C)
        return x + self.gamma * found.mT.unflatten(2, x.shape[2:])
