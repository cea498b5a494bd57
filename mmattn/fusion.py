"""Fusion of two modalities by attention."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from .blocks import (
    AttentionConfig,
    DecoderLayer,
    DecoderLayerOptions,
    EncoderLayer,
    FeedForward,
    Residual,
    make_attention,
    run_layer,
)
from .functional import masked_softmax
from .masks import Mask
from .probe import Probe


class CrossModalAttention(nn.Module):
    """Simultaneous cross-attention of two modalities, with residuals (Tan & Bansal 2019, section 2.2).

    Args:
        embed_dim: Size of the first modality's vectors.
        num_heads: h.
        other_dim: Size of the second modality's vectors; None = embed_dim.
        dropout: Dropout after each attention.
        cross_attention: {"kind": name, and the kernel's options}, of both attentions.
        norm_first: Pre-norm.

    >>> a, b = CrossModalAttention(32, 4)(torch.randn(2, 5, 32), torch.randn(2, 7, 32))
    >>> a.shape, b.shape
    (torch.Size([2, 5, 32]), torch.Size([2, 7, 32]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        other_dim: int | None = None,
        dropout: float = 0.0,
        cross_attention: AttentionConfig = None,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        other_dim = embed_dim if other_dim is None else other_dim
        self.norm_first = norm_first
        self.norm_a, self.norm_b = nn.LayerNorm(embed_dim), nn.LayerNorm(other_dim)
        self.a_to_b = make_attention(embed_dim, num_heads, cross_attention, {"cross"}, kv_dim=other_dim)
        self.b_to_a = make_attention(other_dim, num_heads, cross_attention, {"cross"}, kv_dim=embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, a: Tensor, b: Tensor, *, a_mask: Mask | None = None, b_mask: Mask | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attends from a to b and from b to a.

        Args:
            a: (B, L, embed_dim).
            b: (B, S, other_dim).
            a_mask: Mask whose key_mask is True for real tokens of a.
            b_mask: The mask of b, likewise.

        Returns:
            The updated a (B, L, embed_dim) and b (B, S, other_dim).
        """
        if self.norm_first:
            from_a, from_b = self.norm_a(a), self.norm_b(b)
        else:
            from_a, from_b = a, b
        new_a = a + self.dropout(self.a_to_b(from_a, from_b, mask=b_mask))
        new_b = b + self.dropout(self.b_to_a(from_b, from_a, mask=a_mask))
        return (new_a, new_b) if self.norm_first else (self.norm_a(new_a), self.norm_b(new_b))


class MultimodalFusionBlock(DecoderLayer):
    """Self-attention of queries (latents or a text), cross-attention to the other modality, a feed-forward network.

    A decoder layer with bidirectional self-attention: the order of Perceiver IO's and Q-Former's blocks (Li et al.
    2023, section 3.1). Arguments are those of `DecoderLayer`, whose memory is the other modality; a cross_attention of
    {"kind": "sigmoid", "num_sigmoid_heads": 2} has heads that can count.

    >>> MultimodalFusionBlock(32, 4, kv_dim=16)(torch.randn(2, 5, 32), torch.randn(2, 64, 16)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(self, embed_dim: int, num_heads: int, **layer: Unpack[DecoderLayerOptions]) -> None:
        super().__init__(embed_dim, num_heads, needs=("self",), **layer)


class CoAttentionLayer(nn.Module):
    """Co-attention of two streams with feed-forward networks, then a transformer layer in each stream.

    Args:
        embed_dim: E, of both streams.
        num_heads: h.
        ffn_dim: Size of the feed-forward networks' hidden layers; None = 4 E.
        dropout: Dropout after each sublayer and inside the feed-forward networks.
        attention: The self-attentions' {"kind": name, and the kernel's options}.
        cross_attention: The co-attentions' kind and options.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.exchange = CrossModalAttention(embed_dim, num_heads, dropout=dropout, cross_attention=cross_attention)
        self.ffn_a = FeedForward(embed_dim, ffn_dim, dropout=dropout)
        self.ffn_b = FeedForward(embed_dim, ffn_dim, dropout=dropout)
        self.ffn_residual_a = Residual(embed_dim, dropout, True)
        self.ffn_residual_b = Residual(embed_dim, dropout, True)
        self.layer_a = EncoderLayer(embed_dim, num_heads, ffn_dim=ffn_dim, dropout=dropout, attention=attention)
        self.layer_b = EncoderLayer(embed_dim, num_heads, ffn_dim=ffn_dim, dropout=dropout, attention=attention)

    def forward(
        self, a: Tensor, b: Tensor, a_mask: Mask | None = None, b_mask: Mask | None = None
    ) -> tuple[Tensor, Tensor]:
        """a: (B, L, E); b: (B, S, E). Returns both, updated."""
        a, b = self.exchange(a, b, a_mask=a_mask, b_mask=b_mask)
        a, b = self.ffn_residual_a(a, self.ffn_a), self.ffn_residual_b(b, self.ffn_b)
        return self.layer_a(a, a_mask), self.layer_b(b, b_mask)


class CoAttention(nn.Module):
    """A stack of co-attention layers over two streams (Lu et al. 2019, ViLBERT, section 2.2).

    Args:
        embed_dim: E, of both streams.
        num_layers: Number of co-attention layers.
        num_heads: h.
        layer: Other keywords of `CoAttentionLayer`.

    >>> a, b = CoAttention(32, 2, 4)(torch.randn(2, 5, 32), torch.randn(2, 64, 32))
    >>> a.shape, b.shape
    (torch.Size([2, 5, 32]), torch.Size([2, 64, 32]))
    """

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CoAttentionLayer(embed_dim, num_heads, **layer) for _ in range(num_layers))
        self.norm_a, self.norm_b = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.gradient_checkpointing = False

    def forward(
        self, a: Tensor, b: Tensor, *, a_mask: Mask | None = None, b_mask: Mask | None = None
    ) -> tuple[Tensor, Tensor]:
        """a: (B, L, E) with its mask; b: (B, S, E) with its mask. Returns both, updated and normalized."""
        for layer in self.layers:
            a, b = run_layer(self, layer, a, b, a_mask, b_mask)
        return self.norm_a(a), self.norm_b(b)


class AttentionPooling(nn.Module):
    """Pooling of a sequence or a flattened map by attention from learned queries.

    Pooling by multi-head attention (Lee et al. 2019, section 3.2), without its feed-forward network.

    Args:
        embed_dim: E, of the queries and the result.
        num_heads: h.
        num_queries: Number of queries, i.e. of resulting vectors.
        kv_dim: Size of the sequence's vectors; None = E.
        attention: {"kind": name, and the kernel's options}.

    >>> AttentionPooling(32, 4)(torch.randn(2, 64, 32)).shape
    torch.Size([2, 1, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_queries: int = 1,
        kv_dim: int | None = None,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim) * embed_dim**-0.5)
        self.norm = nn.LayerNorm(embed_dim if kv_dim is None else kv_dim)
        self.attention = make_attention(embed_dim, num_heads, attention, {"cross"}, kv_dim=kv_dim)

    def forward(self, x: Tensor, mask: Mask | None = None, steer: Tensor | None = None) -> Tensor:
        """x: (B, S, kv_dim); steer: (B, num_queries or 1, E), added to the queries. Returns (B, num_queries, E)."""
        queries = self.queries.expand(x.shape[0], -1, -1)  # (B, num_queries, E)
        if steer is not None:
            queries = queries + steer
        return self.attention(queries, self.norm(x), mask=mask)


class BiDAF(nn.Module):
    """Bidirectional attention flow between a context a and a question b (Seo et al. 2017, section 2).

    With ``s_ij = w^T [a_i; b_j; a_i * b_j]``, each token of a attends to b, ``b~_i = sum_j softmax_j(s_ij) b_j``, and a
    is pooled by its tokens' best match, ``a~ = sum_i softmax_i(max_j s_ij) a_i``; the result is
    ``[a_i; b~_i; a_i * b~_i; a_i * a~]``. ``capture`` records the weights, (B, L, S) under the path of `a_to_b` and
    (B, L) under that of `b_to_a`.

    Args:
        embed_dim: E, of both.

    >>> BiDAF(32)(torch.randn(2, 50, 32), torch.randn(2, 7, 32)).shape
    torch.Size([2, 50, 128])
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        # The three thirds of w, which avoid the (B, L, S, 3 E) of the definition.
        self.score_a = nn.Linear(embed_dim, 1, bias=False)
        self.score_b = nn.Linear(embed_dim, 1, bias=False)
        self.score_both = nn.Parameter(torch.empty(embed_dim))
        nn.init.uniform_(self.score_both, -(embed_dim**-0.5), embed_dim**-0.5)
        self.a_to_b, self.b_to_a = Probe(), Probe()

    def forward(
        self, a: Tensor, b: Tensor, *, a_key_mask: Tensor | None = None, b_key_mask: Tensor | None = None
    ) -> Tensor:
        """Attends in both directions.

        Args:
            a: (B, L, E), the context.
            b: (B, S, E), the question.
            a_key_mask: (B, L) bool, True = a real token.
            b_key_mask: (B, S) likewise. Without a real token, b~ and a~ are zero.

        Returns:
            (B, L, 4 E).
        """
        scores = (a * self.score_both) @ b.mT + self.score_a(a) + self.score_b(b).mT  # (B, L, S)
        if b_key_mask is None:
            best, readers = scores.amax(2), a_key_mask  # (B, L)
        else:
            b_key_mask = b_key_mask[:, None]  # (B, 1, S)
            best = scores.masked_fill(~b_key_mask, torch.finfo(scores.dtype).min).amax(2)
            readers = b_key_mask.any(2) if a_key_mask is None else a_key_mask & b_key_mask.any(2)
        of_b = self.a_to_b(masked_softmax(scores, b_key_mask)) @ b  # (B, L, E)
        of_a = self.b_to_a(masked_softmax(best, readers))[:, None] @ a  # (B, 1, E)
        return torch.cat([a, of_b, a * of_b, a * of_a], dim=2)  # (B, L, 4 E)
