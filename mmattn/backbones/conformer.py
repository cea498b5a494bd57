"""The conformer: transformer layers with a convolution over frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig, FeedForward, Residual, make_attention, run_layer
from ..masks import Mask


class DepthwiseConv(nn.Module):
    """A depthwise convolution over time.

    Args:
        channels: E.
        kernel_size: Kernel size, in frames.
        is_causal: Whether an output depends on its own and preceding frames only; off = a centerd kernel.

    Raises:
        ValueError: An even kernel_size of a centerd kernel.

    >>> import torch
    >>> DepthwiseConv(32, 15)(torch.randn(2, 50, 32)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, channels: int, kernel_size: int, *, is_causal: bool = False) -> None:
        super().__init__()
        if kernel_size < 1 or not (is_causal or kernel_size % 2):
            raise ValueError(f"kernel_size={kernel_size}: a centerd convolution needs an odd number of frames")
        self.conv = nn.Conv2d(channels, channels, (kernel_size, 1), groups=channels)
        behind = kernel_size - 1 if is_causal else kernel_size // 2
        self.padding = (0, 0, behind, kernel_size - 1 - behind)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, E), zeros at padding. Returns (B, L, E)."""
        # As a map one column wide, channels last: torch's conv1d would transpose it, and takes twice the time.
        x = F.pad(x, self.padding).mT.unsqueeze(-1)  # (B, E, L + kernel_size - 1, 1)
        return self.conv(x).squeeze(-1).mT  # (B, L, E)


class ConvolutionModule(nn.Module):
    """``W2 silu(norm(depthwise(glu(W1 x))))`` (Gulati et al. 2020, section 2.2), with a layer norm.

    With the paper's batch norm a clip would depend on the batch, padding included.

    Args:
        embed_dim: E.
        kernel_size: Kernel size of the convolution, in frames.
        is_causal: Whether the convolution is causal.
        norm_eps: Epsilon added to the variance in the norm.

    >>> import torch
    >>> ConvolutionModule(32, 15)(torch.randn(2, 50, 32)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(
        self, embed_dim: int, kernel_size: int = 15, *, is_causal: bool = False, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.pointwise_in = nn.Linear(embed_dim, 2 * embed_dim)
        self.depthwise = DepthwiseConv(embed_dim, kernel_size, is_causal=is_causal)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.pointwise_out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x: (B, L, E); key_mask: (B, L) bool, True = a real frame. Returns (B, L, E)."""
        x = F.glu(self.pointwise_in(x), dim=-1)  # (B, L, E)
        if key_mask is not None:
            x = x.masked_fill(~key_mask[:, :, None], 0.0)  # the convolution's receptive field includes padding
        return self.pointwise_out(F.silu(self.norm(self.depthwise(x))))


class ConformerLayer(nn.Module):
    """Half a feed-forward network, self-attention, a convolution, half a feed-forward network, a norm.

    ``x + FFN(x) / 2``, ``x + attention(x)``, ``x + conv(x)``, ``norm(x + FFN(x) / 2)``, each with a norm before it
    (Gulati et al. 2020, section 2.4); with rotary positions instead of relative ones.

    Args:
        embed_dim: E.
        num_heads: h.
        ffn_dim: Hidden size of both feed-forward networks; None = 4 E.
        kernel_size: Kernel size of the convolution, in frames.
        is_causal: Whether the convolution is causal; attention is causal only by its mask.
        dropout: Dropout after each sublayer and inside the feed-forward networks; not of attention weights.
        attention: {"kind": name, and the kernel's options}; None = dense.
        rotary: Whether the attention has rotary positions.
        norm_eps: Epsilon added to the variance in the norms.
        needs: Features of the attention that will be used.

    >>> import torch
    >>> ConformerLayer(32, 4)(torch.randn(2, 50, 32)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        kernel_size: int = 15,
        is_causal: bool = False,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        rotary: bool = True,
        norm_eps: float = 1e-5,
        needs: Iterable[str] = ("self",),
    ) -> None:
        super().__init__()
        self.ffn_in, self.ffn_out = (
            FeedForward(embed_dim, ffn_dim, dropout=dropout, activation="silu") for _ in range(2)
        )
        self.attention = make_attention(embed_dim, num_heads, attention, needs, rotary=rotary)
        self.conv = ConvolutionModule(embed_dim, kernel_size, is_causal=is_causal, norm_eps=norm_eps)
        self.ffn_in_residual, self.attention_residual, self.conv_residual, self.ffn_out_residual = (
            Residual(embed_dim, dropout, True, norm_eps) for _ in range(4)
        )
        self.ffn_in_residual.scale, self.ffn_out_residual.scale = HalfStep(), HalfStep()
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """x: (B, L, E); the mask's padding is also that of the convolution. Returns (B, L, E)."""
        x = self.ffn_in_residual(x, self.ffn_in)
        x = self.attention_residual(x, self.attention, mask=mask)
        x = self.conv_residual(x, self.conv, None if mask is None else mask.key_mask)
        return self.norm(self.ffn_out_residual(x, self.ffn_out))


class HalfStep(nn.Module):
    """``x / 2``, the scale of the residuals of two feed-forward networks (Lu et al. 2019, "macaron")."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Conformer(nn.Module):
    """A stack of conformer layers, with the call signature of `mmattn.Encoder`.

    Args:
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        layer: Other keywords of `ConformerLayer`.

    >>> import torch
    >>> Conformer(32, 2, 4, kernel_size=7)(torch.randn(2, 50, 32)).shape
    torch.Size([2, 50, 32])
    """

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConformerLayer(embed_dim, num_heads, **layer) for _ in range(num_layers))
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """x: (B, L, E). Returns (B, L, E)."""
        for layer in self.layers:
            x = run_layer(self, layer, x, mask)
        return x
