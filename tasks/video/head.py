"""Heads of video classification: from features of frames, or of the whole clip, to logits of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from mmattn.blocks import Encoder
from mmattn.fusion import AttentionPooling
from mmattn.masks import Mask
from mmattn.positions import SinusoidalPositions


class VideoHead(nn.Module):
    """Logits of the classes from features of frames: attention pooling in each frame, attention across frames.

    A query reads the cells of each frame; its results, with sinusoidal positions in time, attend to each other, and a
    second query reads them. "mean" averages cells and frames instead: the baseline that knows no order.

    Args:
        in_dim: Size C of the features.
        num_classes: Number of classes K.
        embed_dim: Embedding size E across frames; None: in_dim.
        num_heads: Number of attention heads.
        temporal_layers: Number of transformer layers across frames.
        ffn_dim: Hidden size of their feed-forward networks; None: 2 E.
        pooling: "attention" or "mean".
        temporal_attention: Their self-attention, {"kind": name, and the kernel's options}; None: dense.
        dropout: Dropout in the layers across frames and before the last layer.
        features: Kind of features, "grid" (B, T, P, in_dim) or "vector" (B, T, in_dim).

    >>> import torch
    >>> head = VideoHead(512, 10, embed_dim=64)
    >>> head(torch.randn(2, 8, 49, 512)).shape
    torch.Size([2, 10])
    >>> VideoHead(512, 10, embed_dim=64, features="vector")(torch.randn(2, 8, 512)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        embed_dim: int | None = None,
        num_heads: int = 4,
        temporal_layers: int = 1,
        ffn_dim: int | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        temporal_attention: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        features: Literal["grid", "vector"] = "grid",
    ) -> None:
        super().__init__()
        if pooling not in ("attention", "mean"):
            raise ValueError(f"unknown pooling {pooling!r}; expected one of: attention, mean")
        self.pooling = pooling
        size = in_dim if embed_dim is None else embed_dim
        self.space: nn.Module | None = None
        self.frames: nn.Module = nn.Identity()
        if pooling == "mean":
            if temporal_attention is not None:
                raise ValueError("temporal_attention: pooling 'mean' has no attention across frames")
            size = in_dim
            self.norm = nn.LayerNorm(size)
        else:
            if features == "grid":
                self.space = AttentionPooling(size, num_heads, kv_dim=in_dim)
            else:
                self.frames = nn.Linear(in_dim, size)
            self.positions = SinusoidalPositions(size)
            self.layers = Encoder(
                size,
                temporal_layers,
                num_heads,
                ffn_dim=2 * size if ffn_dim is None else ffn_dim,
                dropout=dropout,
                attention=temporal_attention,
            )
            self.time = AttentionPooling(size, num_heads)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(size, num_classes)

    def forward(self, features: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Pools.

        Args:
            features: (B, T, P, in_dim), P cells of each frame, or (B, T, in_dim).
            key_mask: (B, T) bool, True = a real frame; None: all are.

        Returns:
            Logits (B, K).
        """
        if self.pooling == "mean":
            frames = features.mean(2) if features.dim() == 4 else features  # (B, T, C)
            if key_mask is not None:
                real = key_mask[..., None].to(frames.dtype)  # (B, T, 1)
                pooled = (frames * real).sum(1) / real.sum(1).clamp_min(1)
            else:
                pooled = frames.mean(1)
            return self.out(self.dropout(self.norm(pooled)))
        if self.space is not None:
            B, T = features.shape[:2]
            frames = self.space(features.flatten(0, 1)).view(B, T, -1)  # (B, T, E)
        else:
            frames = self.frames(features)
        mask = None if key_mask is None else Mask(key_mask)
        frames = self.layers(self.positions(frames), mask)
        return self.out(self.dropout(self.time(frames, mask)[:, 0]))


class PooledHead(nn.Module):
    """Logits of the classes from the pooled vector of an encoder of the whole clip.

    Args:
        in_dim: Size of the vector.
        num_classes: Number of classes K.
        dropout: Dropout before the linear map.
    """

    def __init__(self, in_dim: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(in_dim, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled: (B, in_dim). Returns (B, K)."""
        return self.out(self.dropout(pooled))
