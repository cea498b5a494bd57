"""SegFormer: a pyramid of transformers with spatially reduced keys, and a decoder of linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig, make_attention
from ..feedforward import ACTIVATIONS
from ..masks import same_size


class OverlapPatches(nn.Module):
    """Overlapping patch embedding by a strided convolution and a norm (Xie et al. 2021, section 3.1).

    Args:
        in_channels: Channels of the map.
        embed_dim: E of the tokens.
        patch_size: Kernel size of the convolution, odd.
        stride: Stride of the convolution.

    >>> tokens, grid = OverlapPatches(3, 8, patch_size=7, stride=4)(torch.randn(1, 3, 30, 20))
    >>> tokens.shape, grid
    (torch.Size([1, 40, 8]), (8, 5))
    """

    def __init__(self, in_channels: int, embed_dim: int, *, patch_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=stride, padding=patch_size // 2)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """x: (B, in_channels, H, W). Returns (B, h w, E) and (h, w)."""
        x = self.proj(x)
        return self.norm(x.flatten(2).mT), (x.shape[2], x.shape[3])


class MixFFN(nn.Module):
    """``W2 f(depthwise 3x3 (W1 x))`` (Xie et al. 2021, equation 3).

    The convolution's zero padding encodes positions, so no position embeddings are needed and images have any size.

    Args:
        embed_dim: E.
        ffn_dim: Hidden size.
        dropout: Dropout after each map.
        activation: f, a name in ACTIVATIONS.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, *, dropout: float = 0.0, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.conv = nn.Conv2d(ffn_dim, ffn_dim, 3, padding=1, groups=ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, h w, E), grid: (h, w). Returns (B, h w, E)."""
        hidden = self.conv(self.fc1(x).mT.unflatten(2, grid)).flatten(2).mT  # (B, h w, F)
        return self.dropout(self.fc2(self.dropout(ACTIVATIONS[self.activation](hidden))))


class ReducedAttentionLayer(nn.Module):
    """Self-attention with keys and values of a map reduced by a strided convolution, then a Mix-FFN, pre-norm.

    Xie et al. 2021, equation 2; the reduction by convolution as in Wang et al. 2021.

    Args:
        embed_dim: E.
        num_heads: h.
        reduction: R, side of the squares of tokens that are reduced to one key; 1 = none.
        ffn_dim: Hidden size of the Mix-FFN.
        attention: {"kind": name, and the kernel's options}; with a reduction the kernel must support cross-attention.
        dropout: Dropout after each sublayer and inside the Mix-FFN.
        drop_path: Probability that a sample skips a sublayer in training (Huang et al. 2016).
        activation: Activation of the Mix-FFN.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        reduction: int,
        ffn_dim: int,
        attention: AttentionConfig = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = make_attention(embed_dim, num_heads, attention, {"self"} if reduction == 1 else {"cross"})
        self.reduce: nn.Module | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(embed_dim, embed_dim, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(embed_dim)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.ffn = MixFFN(embed_dim, ffn_dim, dropout=dropout, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x: (B, h w, E), grid: (h, w). Returns (B, h w, E)."""
        hidden = self.attention_norm(x)
        keys = None
        if self.reduce is not None:
            keys = self.reduce_norm(self.reduce(hidden.mT.unflatten(2, grid)).flatten(2).mT)  # (B, S, E)
        x = x + self._kept(self.dropout(self.attention(hidden, keys)))
        return x + self._kept(self.ffn(self.ffn_norm(x), grid))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return branch
        keep = 1 - self.drop_path
        return branch * (torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep) / keep


class SegFormer(nn.Module):
    """A hierarchy of `ReducedAttentionLayer`s, and a decoder of linear maps above it (Xie et al. 2021, section 3).

    Args:
        num_classes: K; None = no decoder, `maps` alone.
        embed_dims: E of each stage; the first is the finest.
        num_layers: Layers of each stage.
        num_heads: Heads of each stage.
        reductions: R of each stage.
        patch_sizes: Patch size of each stage.
        strides: Stride of each stage's patches.
        ffn_ratios: ffn_dim / E of each stage.
        decoder_dim: Channels of all maps in the decoder.
        attention: {"kind": name, and the kernel's options}, in all stages.
        dropout: Dropout in the layers.
        drop_path: Drop-path probability of the last layer; it increases linearly from zero at the first.
        classifier_dropout: Dropout before the scores.
        activation: Activation of the Mix-FFNs.
        in_channels: Channels of the image.

    Raises:
        ValueError: The numbers of stages do not match.

    >>> SegFormer(5, embed_dims=(8, 16), num_layers=(1, 1), num_heads=(1, 2), reductions=(4, 1))(
    ...     torch.randn(1, 3, 32, 48)).shape
    torch.Size([1, 5, 8, 12])
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        num_layers: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        patch_sizes: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        ffn_ratios: Sequence[float] | None = None,
        decoder_dim: int = 256,
        attention: AttentionConfig = None,
        dropout: float = 0.0,
        drop_path: float = 0.1,
        classifier_dropout: float = 0.1,
        activation: str = "gelu",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        stages = len(embed_dims)
        patch_sizes = (7, *(3,) * (stages - 1)) if patch_sizes is None else patch_sizes
        strides = (4, *(2,) * (stages - 1)) if strides is None else strides
        ffn_ratios = (4.0,) * stages if ffn_ratios is None else ffn_ratios
        for name, values in (
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("reductions", reductions),
            ("patch_sizes", patch_sizes),
            ("strides", strides),
            ("ffn_ratios", ffn_ratios),
        ):
            if len(values) != stages:
                raise ValueError(f"{name}: expected one for each of the {stages} stages, found {list(values)}")
        total, done = sum(num_layers), 0
        self.channels, self.reductions, self.strides = tuple(embed_dims), tuple(reductions), tuple(strides)
        self.stages = nn.ModuleList()
        for n, E in enumerate(embed_dims):
            stage = nn.Module()
            stage.patches = OverlapPatches(in_channels, E, patch_size=patch_sizes[n], stride=strides[n])
            stage.layers = nn.ModuleList(
                ReducedAttentionLayer(
                    E,
                    num_heads[n],
                    reduction=reductions[n],
                    ffn_dim=int(E * ffn_ratios[n]),
                    attention=attention,
                    dropout=dropout,
                    drop_path=drop_path * (done + i) / max(total - 1, 1),
                    activation=activation,
                )
                for i in range(num_layers[n])
            )
            stage.norm = nn.LayerNorm(E)
            self.stages.append(stage)
            in_channels, done = E, done + num_layers[n]
        self.decoder = None
        if num_classes is not None:
            self.decoder = LinearDecoder(embed_dims, num_classes, decoder_dim=decoder_dim, dropout=classifier_dropout)

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (B, in_channels, H, W). Returns (B, E_n, h_n, w_n) per stage, the finest first.

        Raises:
            ValueError: The image is too small for a stage's reduction.
        """
        x, found = pixel_values, []
        for module, reduction in zip(self.stages, self.reductions, strict=True):
            stage: Any = module
            tokens, grid = stage.patches(x)
            if isinstance(grid[0], int) and min(grid) < reduction:
                raise ValueError(
                    f"an image of {pixel_values.shape[3]} x {pixel_values.shape[2]} pixels is too small: a map of "
                    f"{grid[1]} x {grid[0]} cells cannot be reduced by {reduction}"
                )
            for layer in stage.layers:
                tokens = layer(tokens, grid)
            x = stage.norm(tokens).mT.unflatten(2, grid)
            found.append(x)
        return found

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (B, in_channels, H, W). Returns logits (B, K, h, w) of the finest map, a quarter as high."""
        if self.decoder is None:
            raise ValueError("this SegFormer has no decoder: num_classes is None; use maps")
        return self.decoder(self.maps(pixel_values))

    def key_grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns the grid (h, w) of each layer's keys, for an image of this size."""
        found, size = [], (height, width)
        for module, stride, reduction in zip(self.stages, self.strides, self.reductions, strict=True):
            stage: Any = module
            size = (-(-size[0] // stride), -(-size[1] // stride))
            found += [(size[0] // reduction, size[1] // reduction)] * len(stage.layers)
        return found


class LinearDecoder(nn.Module):
    """Projects all maps linearly, upsamples and concatenates them, and classifies (Xie et al. 2021, eq. 4).

    Args:
        in_channels: Channels of the maps, the finest first.
        num_classes: K.
        decoder_dim: Channels of the projected maps.
        dropout: Dropout before the scores.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, decoder_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(size, decoder_dim) for size in in_channels)
        self.fuse = nn.Conv2d(decoder_dim * len(in_channels), decoder_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(decoder_dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(decoder_dim, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: (B, in_channels[n], h_n, w_n). Returns (B, K, h_0, w_0)."""
        size = maps[0].shape[2:]
        parts = []
        for x, projection in zip(maps, self.projections, strict=True):
            part = projection(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])  # (B, decoder_dim, h, w)
            if not (same_size(part.shape[2], size[0]) and same_size(part.shape[3], size[1])):
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            parts.append(part)
        # The coarsest comes first, as in the public weights.
        fused = self.norm(self.fuse(torch.cat(parts[::-1], dim=1))).relu()
        return self.classifier(self.dropout(fused))
