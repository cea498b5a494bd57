"""ModernBERT: pre-norm layers with rotary positions and gated networks, most of them with local attention."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, EncoderLayer, LayerOptions
from ..masks import Mask
from ..positions import Rotary
from .pooling import Encoded


class ModernBertEncoder(nn.Module):
    """``Encoder(norm(token))`` without biases (Warner et al. 2024, section 2.1).

    Layers attend to all tokens, or to those at most `window` away; each kind has its own base of the rotary positions.
    The first layer's attention has no norm before it, since the embeddings are normalized.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        ffn_dim: Hidden size of the gated feed-forward networks.
        global_layers: Indices of the layers that attend to all tokens.
        window: Tokens on each side that the other layers attend to.
        max_len: Maximum number of tokens.
        base: Base of the rotary positions of layers that attend to all tokens.
        local_base: Base of those of the others.
        bias: Biases of the maps: of all, none, or of the attention's alone those named.
        activation: Activation of the feed-forward networks, a name in ``mmattn.feedforward.ACTIVATIONS``.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings and inside the feed-forward networks.
        attention: Of the layers that attend to all tokens, {"kind": name, and the kernel's options}.

    >>> import torch
    >>> ModernBertEncoder(100, 32, 3, 4)(torch.randint(100, (2, 7))).states.shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        global_layers: Collection[int] = (0,),
        window: int = 64,
        max_len: int = 8192,
        base: float = 160_000.0,
        local_base: float = 10_000.0,
        bias: bool | Collection[str] = False,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.max_len = embed_dim, max_len
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        layer = LayerOptions(
            ffn_dim=ffn_dim, attention=attention, rotary=True, bias=bias, activation=activation, gated=True
        )
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_eps=norm_eps, **layer)
        local: dict[str, Any] = {**layer, "attention": {"kind": "sliding_window", "window": window}}
        for number in range(num_layers):
            if number not in global_layers:
                self.encoder.layers[number] = EncoderLayer(embed_dim, num_heads, norm_eps=norm_eps, **local)
            own = cast(EncoderLayer, self.encoder.layers[number])
            rotary = base if number in global_layers else local_base
            own.attention.rotary = Rotary(own.attention.head_dim, base=rotary)
            own.ffn.dropout = nn.Dropout(dropout)
        if num_layers:
            cast(EncoderLayer, self.encoder.layers[0]).attention_residual.norm = nn.Identity()

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None) -> Encoded:
        """Encodes.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            token_types: Not used: pairs are told apart by their separator.

        Returns:
            states (B, L, E) of the last layer; pooled (B, E), the first token's.

        Raises:
            ValueError: The text is too long.
        """
        if input_ids.shape[1] > self.max_len:
            raise ValueError(f"a text of {input_ids.shape[1]} tokens is too long: max_len={self.max_len}")
        x = self.dropout(self.norm(self.embedding(input_ids)))  # (B, L, E)
        states = self.encoder(x, None if key_mask is None else Mask(key_mask))
        return Encoded(states, states[:, 0])

    def hidden_states(
        self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the input of the first layer and the output of each: num_layers + 1 tensors (B, L, E)."""
        mask = None if key_mask is None else Mask(key_mask)
        return self.encoder.hidden_states(self.norm(self.embedding(input_ids)), mask)
