"""GPT-2 with cross-attention to a memory, the decoder of image-to-text models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..blocks import AttentionConfig, Decoder
from ..generate import CachedSteps
from ..masks import Mask
from ..positions import LearnedPositions


class Gpt2Decoder(CachedSteps, nn.Module):
    """GPT-2 with a cross-attention to a memory after each self-attention (Radford et al. 2019; Rothe et al. 2020).

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of transformer layers.
        num_heads: h.
        kv_dim: Size of the memory's vectors; None = E.
        tied_output: Whether the output projection is the embedding table.
        max_len: Number of learned positions; longer texts raise.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options} of the self-attention.
        cross_attention: Kind and options of the attention to the memory.

    >>> import torch
    >>> decoder = Gpt2Decoder(100, 32, 1, 4, kv_dim=16)
    >>> decoder(torch.randint(100, (2, 7)), torch.randn(2, 5, 16)).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        kv_dim: int | None = None,
        tied_output: bool = True,
        max_len: int = 1024,
        ffn_dim: int | None = None,
        activation: str = "gelu_tanh",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions, self.dropout = LearnedPositions(max_len, embed_dim), nn.Dropout(dropout)
        layer: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention}
        layer |= {"activation": activation, "cross_attention": cross_attention, "norm_eps": norm_eps}
        self.decoder = Decoder(embed_dim, num_layers, num_heads, kv_dim=kv_dim, **layer)
        self.output = nn.Linear(embed_dim, vocab_size, bias=False)
        nn.init.normal_(self.output.weight, std=0.02)
        if tied_output:
            self.output.weight = self.embedding.weight

    def forward(
        self, input_ids: Tensor, memory: Tensor, key_mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Returns the logits (B, L, V) of each next token.

        Args:
            input_ids: (B, L) long.
            memory: (B, S, kv_dim).
            key_mask: (B, L) bool, True = a real token; none is needed for padding at the right.
            memory_mask: (B, S) bool, True = a real vector.

        Raises:
            ValueError: The text is too long.
        """
        seen = None if memory_mask is None else Mask(memory_mask)
        return self.output(self.decoder(self.embed_target(input_ids), memory, Mask(key_mask, is_causal=True), seen))

    def embed_target(self, ids: Tensor, offset: int | Tensor = 0) -> Tensor:
        return self.dropout(self.positions(self.embedding(ids), offset))
