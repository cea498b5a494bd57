"""A text encoder over token ids."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..masks import Mask
from ..positions import LearnedPositions, SinusoidalPositions


class TextEncoder(nn.Module):
    """Embeddings with positions, then transformer layers.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of transformer layers; 0 leaves embeddings and positions.
        num_heads: h.
        max_len: Number of learned positions; longer texts raise.
        positions: "learned", "sinusoidal", "rotary" or "none".
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}.

    >>> import torch
    >>> TextEncoder(100, 32, 1, 4)(torch.randint(100, (2, 7))).shape
    torch.Size([2, 7, 32])
    """

    POSITIONS = ("learned", "sinusoidal", "rotary", "none")

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        max_len: int = 128,
        positions: str = "learned",
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        if positions not in self.POSITIONS:
            raise ValueError(f"unknown positions {positions!r}; expected one of: {', '.join(self.POSITIONS)}")
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.positions: nn.Module = nn.Identity()
        self.scale = 1.0
        if positions == "learned":
            self.positions = LearnedPositions(max_len, embed_dim)
        elif positions == "sinusoidal":
            self.positions = SinusoidalPositions(embed_dim)
            self.scale = embed_dim**0.5  # embeddings as large as their positions (Vaswani et al. 2017, section 3.4)
        self.dropout = nn.Dropout(dropout)
        layer = LayerOptions(ffn_dim=ffn_dim, dropout=dropout, attention=attention, rotary=positions == "rotary")
        self.encoder = Encoder(embed_dim, num_layers, num_heads, **layer)

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Encodes.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.

        Returns:
            (B, L, E); values at padding are undefined.
        """
        x = self.dropout(self.positions(self.embedding(input_ids) * self.scale))  # (B, L, E)
        return self.encoder(x, None if key_mask is None else Mask(key_mask))
