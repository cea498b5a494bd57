"""Patches as tokens, and attention over a map."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder
from ..positions import GridPositions


class PatchEmbed(nn.Module):
    """Each patch, flattened, through one linear map (Dosovitskiy et al. 2021, section 3.1).

    Args:
        embed_dim: E.
        patch_size: P, side of a patch in pixels.
        in_channels: of the image.

    >>> import torch
    >>> PatchEmbed(32, patch_size=16)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 4, 3])
    """

    def __init__(self, embed_dim: int, *, patch_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.stride = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, in_channels, H, W). Returns (N, E, H // P, W // P); a rest at the edge is left out."""
        return self.proj(pixel_values)


class GridEncoder(nn.Module):
    """A stem's map, with positions, through transformer layers; over PatchEmbed it is a ViT without a class token.

    Args:
        stem: pixel values (N, 3, H, W) to a map (N, E, h, w), see `mmattn.backbones.build_stem`.
        embed_dim: E.
        num_layers: of transformer layers; 0 leaves stem and positions.
        num_heads: h.
        ffn_dim: 4 E where None.
        dropout: after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}; the tokens run row by row.
        positions: see `mmattn.positions.GridPositions`.
        grid_size: (h, w) of learned positions.

    >>> import torch
    >>> GridEncoder(PatchEmbed(32), 32, 1, 4)(torch.randn(2, 3, 64, 48)).shape
    torch.Size([2, 32, 8, 6])
    """

    def __init__(
        self,
        stem: nn.Module,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        positions: str = "sinusoidal",
        grid_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.positions = GridPositions(embed_dim, positions, grid_size=grid_size)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, ffn_dim=ffn_dim, dropout=dropout, attention=attention)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (N, 3, H, W). Returns a map (N, E, h, w); ``.flatten(2).mT`` makes it tokens (N, h w, E)."""
        grid = self.positions(self.stem(pixel_values))  # (N, E, h, w)
        tokens = self.encoder(self.dropout(grid.flatten(2).mT))  # (N, h w, E)
        return tokens.mT.unflatten(2, grid.shape[2:])
