"""Hierarchical attention over the words of sentences and the sentences of documents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones.recurrent import read_both_ways, recurrent_layers
from .functional import masked_softmax
from .masks import Mask
from .probe import Probe


class ContextPooling(nn.Module):
    """``sum_i a_i x_i`` with ``a = softmax_i(u^T tanh(W x_i + b))``, u learned (Yang et al. 2016, section 2.2).

    ``capture`` records a, (B, S), under the path of `weights`.

    Args:
        embed_dim: E.
        hidden_dim: Size of the hidden layer of the scores; None = E.

    >>> ContextPooling(32)(torch.randn(2, 7, 32)).shape
    torch.Size([2, 32])
    """

    def __init__(self, embed_dim: int, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden_dim = embed_dim if hidden_dim is None else hidden_dim
        self.proj = nn.Linear(embed_dim, hidden_dim)
        self.context = nn.Parameter(torch.randn(hidden_dim) * hidden_dim**-0.5)  # u
        self.weights = Probe()

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x: (B, S, E); key_mask: (B, S) bool, True = a real token. Returns (B, E), zeros for an empty row."""
        scores = self.proj(x).tanh() @ self.context  # (B, S)
        weights = self.weights(masked_softmax(scores, key_mask))  # (B, S)
        return (weights[:, None] @ x).squeeze(1)  # (B, E)


class Recurrent(nn.Module):
    """A bidirectional LSTM or GRU over vectors, with the call signature of `mmattn.Encoder`.

    Args:
        input_dim: Size of the vectors.
        hidden_dim: Size of the result, both directions together.
        kind: "lstm" or "gru".
        num_layers: Number of layers.
        dropout: Dropout between layers.

    Raises:
        ValueError: An unknown kind, or an odd hidden_dim.

    >>> Recurrent(16, 32)(torch.randn(2, 7, 16)).shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, *, kind: str = "gru", num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.forwards, self.backwards = recurrent_layers(kind, input_dim, hidden_dim, num_layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """Encodes the real vectors in order; padding may be at any position.

        Args:
            x: (B, L, input_dim).
            mask: A mask with nothing but a key mask.

        Returns:
            (B, L, hidden_dim), zeros at padding.

        Raises:
            ValueError: The mask has other parts than a key mask.
        """
        if mask is not None and (mask.features or mask.attn_mask is not None):
            raise ValueError("a recurrent encoder is bidirectional and supports a key mask alone")
        key_mask = None if mask is None else mask.key_mask
        if key_mask is None:
            return read_both_ways(self.forwards, self.backwards, x, x.new_ones(x.shape[:2]).bool(), self.dropout)[0]
        count = key_mask.cumsum(1)  # (B, L)
        length = count[:, -1:]  # (B, 1)
        behind = torch.arange(x.shape[1], device=x.device) - count + length  # padding is moved behind the real vectors
        place = torch.where(key_mask, count - 1, behind)[:, :, None]  # (B, L, 1), a permutation
        closed = torch.zeros_like(x).scatter(1, place.expand_as(x), x)  # (B, L, input_dim), without gaps
        in_front = torch.arange(x.shape[1], device=x.device) < length  # (B, L)
        states, _ = read_both_ways(self.forwards, self.backwards, closed, in_front, self.dropout)
        return states.gather(1, place.expand(-1, -1, states.shape[2]))  # (B, L, hidden_dim)


class HierarchicalAttention(nn.Module):
    """Hierarchical attention network over words and sentences (Yang et al. 2016, section 2.2).

    The words of each sentence are encoded and pooled by attention; then the sentences likewise. ``capture`` records the
    words' weights (B n, w) under `pool_words.weights`, the sentences' (B, n) under `pool_sentences.weights`.

    Args:
        embed_dim: Size of the words' vectors.
        hidden_dim: Size of the vectors of sentences and document; None = embed_dim.
        word_encoder: A module called as ``encoder(x, mask)`` with x (B, L, embed_dim) and a Mask, which returns
            (B, L, hidden_dim), such as `mmattn.Encoder`; None = a bidirectional GRU, as in the paper.
        sentence_encoder: Likewise over sentences, from hidden_dim to hidden_dim.

    >>> HierarchicalAttention(16, 32)(torch.randn(2, 5, 7, 16)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int | None = None,
        *,
        word_encoder: nn.Module | None = None,
        sentence_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = embed_dim if hidden_dim is None else hidden_dim
        self.word_encoder = Recurrent(embed_dim, hidden_dim) if word_encoder is None else word_encoder
        self.sentence_encoder = Recurrent(hidden_dim, hidden_dim) if sentence_encoder is None else sentence_encoder
        self.pool_words, self.pool_sentences = ContextPooling(hidden_dim), ContextPooling(hidden_dim)

    def forward(self, x: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """Encodes documents.

        Args:
            x: (B, n, w, embed_dim), n sentences of w words.
            word_mask: (B, n, w) bool, True = a real word. A sentence without real words is padding, at any position.

        Returns:
            (B, hidden_dim), zeros for a document without real words.
        """
        B, n = x.shape[:2]
        words = x.flatten(0, 1)  # (B n, w, embed_dim)
        real_words = None if word_mask is None else word_mask.flatten(0, 1)  # (B n, w)
        real_sentences = None if word_mask is None else word_mask.any(2)  # (B, n)
        words = self.word_encoder(words, None if real_words is None else Mask(real_words))
        sentences = self.pool_words(words, real_words).unflatten(0, (B, n))  # (B, n, hidden_dim)
        sentences = self.sentence_encoder(sentences, None if real_sentences is None else Mask(real_sentences))
        return self.pool_sentences(sentences, real_sentences)
