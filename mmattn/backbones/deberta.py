"""DeBERTa: attention whose scores have parts of content and of relative position, version 3's buckets of distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import MultiHeadAttention, split_attention
from ..blocks import AttentionConfig, Encoder, LayerOptions, run_layer
from ..masks import Mask, key_offsets
from ..relative import PairBias
from .pooling import Encoded


def distance_buckets(offsets: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The bucket of each offset: itself up to half the buckets, logarithmic beyond (He et al. 2021, version 2's code).

    Args:
        offsets: (...) long.
        buckets: Number of buckets on each side; 0: offsets themselves.
        max_distance: Distance of the last bucket.

    Returns:
        (...) long, of the sign of the offset.
    """
    if buckets <= 0:
        return offsets
    half = buckets // 2
    far = offsets.abs().clamp_min(half).float()
    scale = math.log((max_distance - 1) / half)
    beyond = ((far / half).log() / scale * (half - 1)).ceil() + half
    return torch.where(offsets.abs() <= half, offsets, (beyond * offsets.sign()).long())


class DisentangledAttention(MultiHeadAttention):
    """Self-attention with scores ``(q_i k_j + q_i kr_(i-j) + k_j qr_(i-j)) / sqrt(3 d)`` (He et al. 2021, section 3.1).

    The keys kr and queries qr of relative positions are maps of one table of embeddings. Both parts of position are
    added to the scores as a bias of the mask, so that any kernel with a bias computes the rest.

    Args:
        embed_dim: E.
        num_heads: h.
        parts: Which parts of position there are, "c2p" (content to position) and "p2c".
        shared: Whether the maps of positions are those of the content; otherwise they have their own.
        buckets: See `distance_buckets`.
        max_distance: Likewise; without buckets the greatest distance that is told apart.
        dropout: Dropout of the embeddings of positions.
        options: Other keywords of `MultiHeadAttention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        parts: tuple[str, ...] = ("c2p", "p2c"),
        shared: bool = True,
        buckets: int = 256,
        max_distance: int = 512,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, needs={"self", "bias"}, **options)
        self.parts, self.buckets, self.max_distance = tuple(parts), buckets, max_distance
        self.span = buckets if buckets > 0 else max_distance
        self.position_dropout = nn.Dropout(dropout)
        self.position_k = None if shared or "c2p" not in parts else nn.Linear(embed_dim, embed_dim)
        self.position_q = None if shared or "p2c" not in parts else nn.Linear(embed_dim, embed_dim)

    def forward(  # type: ignore[override]
        self, query: Tensor, *, mask: Mask | None = None, cache: Any = None, query_pos: Tensor | None = None
    ) -> Tensor:
        """Attends within query.

        Args:
            query: (B, L, E).
            mask: A mask without a bias.
            cache: None: whole texts are encoded.
            query_pos: (1, 2 span, E), the embeddings of relative positions.

        Returns:
            (B, L, E).

        Raises:
            ValueError: There are no positions, or there is a cache.
        """
        if cache is not None or query_pos is None or self.k_proj is None:
            raise ValueError("disentangled attention encodes whole texts, with embeddings of relative positions")
        q, k = self._heads(self.q_proj(query), self.num_heads), self._heads(self.k_proj(query), self.num_heads)
        v = self._heads(self.v_proj(query), self.num_heads)  # (B, h, L, d)
        table = self.position_dropout(query_pos)  # (1, 2 span, E)
        L, scale = query.shape[1], (self.head_dim * (1 + len(self.parts))) ** -0.5
        offsets = -key_offsets(L, L, query.device)  # (L, L): query position minus key position
        index = (distance_buckets(offsets, self.buckets, self.max_distance) + self.span).clamp(0, 2 * self.span - 1)
        index = index.expand(*q.shape[:2], -1, -1)  # (B, h, L, L)
        bias = q.new_zeros(())
        if "c2p" in self.parts:
            keys = self._heads((self.k_proj if self.position_k is None else self.position_k)(table), self.num_heads)
            bias = bias + (q @ keys.mT * scale).gather(-1, index)
        if "p2c" in self.parts:
            queries = self._heads((self.q_proj if self.position_q is None else self.position_q)(table), self.num_heads)
            bias = bias + (k @ queries.mT * scale).gather(-1, index.mT).mT
        q = q * (1 + len(self.parts)) ** -0.5  # the kernel divides by sqrt(d)
        if self.parts:
            mask = (Mask() if mask is None else mask).with_bias(PairBias(bias))
        return self.out_proj(self.kernel(q, k, v, mask, None).transpose(1, 2).flatten(2))


class DebertaEncoder(nn.Module):
    """DeBERTa of versions 2 and 3: ``Encoder(norm(token))`` with `DisentangledAttention`, post-norm.

    He et al. 2021; He et al. 2023, whose weights of version 3 are trained with replaced tokens.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        max_len: Maximum number of tokens, and with learned positions their number.
        num_types: Number of token types; 0 for none.
        learned_positions: Whether absolute positions are added to the embeddings.
        parts: See `DisentangledAttention`; none: plain attention.
        shared: See `DisentangledAttention`.
        buckets: See `DisentangledAttention`.
        max_distance: See `DisentangledAttention`.
        norm_positions: Whether the embeddings of relative positions are normalized.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options}, of a kernel with a bias.

    >>> DebertaEncoder(100, 32, 2, 4, buckets=4)(torch.randint(100, (2, 7))).states.shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        max_len: int = 512,
        num_types: int = 0,
        learned_positions: bool = False,
        parts: tuple[str, ...] = ("c2p", "p2c"),
        shared: bool = True,
        buckets: int = 256,
        max_distance: int = 512,
        norm_positions: bool = True,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-7,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.max_len = embed_dim, max_len
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Embedding(max_len, embed_dim) if learned_positions else None
        self.token_types = nn.Embedding(num_types, embed_dim) if num_types else None
        self.norm, self.dropout = nn.LayerNorm(embed_dim, eps=norm_eps), nn.Dropout(dropout)
        layer = LayerOptions(ffn_dim=ffn_dim, dropout=dropout, activation=activation)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, norm_first=False, norm_eps=norm_eps, **layer)
        relative: dict[str, Any] = {"parts": tuple(parts), "shared": shared, "buckets": buckets}
        relative |= {"max_distance": max_distance, "dropout": dropout}
        kind, options = split_attention(attention)
        for one in self.encoder.layers:
            given: dict[str, Any] = {**relative, "kind": kind, "options": options}
            one.attention = DisentangledAttention(embed_dim, num_heads, **given)
        span = buckets if buckets > 0 else max_distance
        self.relative = nn.Embedding(2 * span, embed_dim)
        self.relative_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if norm_positions else nn.Identity()
        for table in (self.embedding, self.positions, self.token_types, self.relative):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def embed(self, input_ids: Tensor, key_mask: Tensor | None, token_types: Tensor | None) -> Tensor:
        """Returns the input of the first layer, (B, L, E), zero at padding.

        Raises:
            ValueError: The text is too long.
        """
        length = input_ids.shape[1]
        if length > self.max_len:
            raise ValueError(f"a text of {length} tokens is too long: max_len={self.max_len}")
        x = self.embedding(input_ids)  # (B, L, E)
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if token_types is None else self.token_types(token_types))
        x = self.norm(x)
        return self.dropout(x if key_mask is None else x.masked_fill(~key_mask[:, :, None], 0.0))

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None) -> Encoded:
        """Encodes.

        Args:
            input_ids: (B, L) long.
            key_mask: (B, L) bool, True = a real token.
            token_types: (B, L) long; None = zeros; not used by a model without token types.

        Returns:
            states (B, L, E) of the last layer; pooled (B, E), the first token's.

        Raises:
            ValueError: The text is too long.
        """
        states = self.hidden_states(input_ids, key_mask, token_types)[-1]
        return Encoded(states, states[:, 0])

    def hidden_states(
        self, input_ids: Tensor, key_mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the input of the first layer and the output of each: num_layers + 1 tensors (B, L, E)."""
        mask = None if key_mask is None else Mask(key_mask)
        table = self.relative_norm(self.relative.weight)[None]  # (1, 2 span, E)
        states = [self.embed(input_ids, key_mask, token_types)]
        for layer in self.encoder.layers:
            states.append(run_layer(self.encoder, layer, states[-1], mask, None, table))
        return states
