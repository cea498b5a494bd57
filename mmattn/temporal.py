"""Attention over the frames of a video."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from .blocks import AttentionConfig, FeedForward, Residual, make_attention
from .fusion import AttentionPooling
from .masks import Mask
from .positions import SinusoidalPositions


class TemporalPooling(nn.Module):
    """Pooling of the frames of a video by attention from learned queries.

    `mmattn.fusion.AttentionPooling` with sinusoidal positions.

    Args:
        embed_dim: E.
        num_heads: h.
        num_queries: Number of queries, i.e. of resulting vectors.
        attention: {"kind": name, and the kernel's options}.

    >>> TemporalPooling(32, 4)(torch.randn(2, 16, 32)).shape
    torch.Size([2, 1, 32])
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, num_queries: int = 1, attention: AttentionConfig = None
    ) -> None:
        super().__init__()
        self.positions = SinusoidalPositions(embed_dim)
        self.pooling = AttentionPooling(embed_dim, num_heads, num_queries=num_queries, attention=attention)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x: (B, T, E), a vector per frame; key_mask: (B, T) bool, True = a real frame. Returns (B, num_queries, E)."""
        return self.pooling(self.positions(x), None if key_mask is None else Mask(key_mask))


class DividedSpaceTimeLayer(nn.Module):
    """Attention to the same position in all frames, then within the frame, then a feed-forward network.

    Bertasius et al. 2021 (TimeSformer), section 3, "divided space-time attention", pre-norm. T + N comparisons per
    token instead of T N. As in the authors' code, class tokens are excluded from temporal attention; in spatial
    attention each frame has a copy, and the copies are averaged. The linear map after the authors' temporal attention
    is part of its out_proj here.

    Args:
        embed_dim: E.
        num_heads: h.
        ffn_dim: Size of the feed-forward network's hidden layer; None = 4 E.
        dropout: Dropout after each sublayer and inside the feed-forward network.
        attention: The spatial attention's {"kind": name, and the kernel's options}.
        temporal_attention: The temporal attention's kind and options.
        norm_eps: Epsilon added to the variance in the layer norms.
        activation: Activation of the feed-forward network, a name in ``mmattn.feedforward.ACTIVATIONS``.
        bias: Biases in all maps, or in the attentions only in those of the names "q", "k", "v", "out".

    >>> x, cls = DividedSpaceTimeLayer(32, 4)(torch.randn(2, 8, 49, 32), torch.randn(2, 1, 32))
    >>> x.shape, cls.shape
    (torch.Size([2, 8, 49, 32]), torch.Size([2, 1, 32]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        temporal_attention: AttentionConfig = None,
        norm_eps: float = 1e-5,
        activation: str = "gelu",
        bias: bool | Collection[str] = True,
    ) -> None:
        super().__init__()
        self.temporal_attention = make_attention(embed_dim, num_heads, temporal_attention, {"self"}, bias=bias)
        self.attention = make_attention(embed_dim, num_heads, attention, {"self"}, bias=bias)
        self.ffn = FeedForward(embed_dim, ffn_dim, dropout=dropout, activation=activation)
        self.temporal_residual = Residual(embed_dim, dropout, True, norm_eps)
        self.attention_residual = Residual(embed_dim, dropout, True, norm_eps)
        self.ffn_residual = Residual(embed_dim, dropout, True, norm_eps)

    def forward(
        self, x: Tensor, cls: Tensor | None = None, patch_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over time, then over space.

        Args:
            x: (B, T, N, E), N patches per frame, with positions in time and space already added.
            cls: (B, K, E), class tokens.
            patch_mask: (B, T) bool, True = a real frame; or (B, T, N), True = a real patch.

        Returns:
            The updated x and cls.
        """
        B, T, N, _ = x.shape
        K = 0 if cls is None else cls.shape[1]
        over_time = over_space = None
        if patch_mask is not None:
            if patch_mask.dim() == 2:
                patch_mask = patch_mask[:, :, None].expand(-1, -1, N)
            over_time = Mask(patch_mask.transpose(1, 2).flatten(0, 1))  # (B N, T)
            copies = patch_mask.new_ones(B, T, K)
            over_space = Mask(torch.cat([copies, patch_mask], dim=2).flatten(0, 1))  # (B T, K + N)

        places = x.transpose(1, 2).flatten(0, 1)  # (B N, T, E)
        places = self.temporal_residual(places, self.temporal_attention, mask=over_time)
        x = places.unflatten(0, (B, N)).transpose(1, 2)  # (B, T, N, E)

        if cls is not None:
            x = torch.cat([cls[:, None].expand(-1, T, -1, -1), x], dim=2)  # (B, T, K + N, E)
        frames = self.attention_residual(x.flatten(0, 1), self.attention, mask=over_space)  # (B T, K + N, E)
        frames = frames.unflatten(0, (B, T))  # (B, T, K + N, E)
        x = self.ffn_residual(frames[:, :, K:], self.ffn)  # (B, T, N, E)
        if cls is None:
            return x, None
        real = frames.new_ones(B, T) if patch_mask is None else patch_mask.any(2).to(frames.dtype)
        share = real / real.sum(1, keepdim=True).clamp_min(1)  # (B, T)
        cls = (frames[:, :, :K] * share[:, :, None, None]).sum(1)  # (B, K, E)
        return x, self.ffn_residual(cls, self.ffn)
