"""Hierarchical encoder of words and sentences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmattn.blocks import Encoder
from mmattn.functional import masked_softmax
from mmattn.hierarchical import ContextPooling
from mmattn.masks import Mask
from mmattn.positions import SinusoidalPositions


def sentence_of(starts: Tensor, length: int) -> Tensor:
    """Index of the sentence of each token: (B, length) long.

    Args:
        starts: (B, n) long, first token of each sentence, ascending, padded with -1.
        length: S.
    """
    begun = (starts[:, :, None] <= torch.arange(length, device=starts.device)) & (starts >= 0)[:, :, None]  # (B, n, S)
    return (begun.sum(1) - 1).clamp_min(0)


def sentence_members(index: Tensor, starts: Tensor, key_mask: Tensor) -> Tensor:
    """The tokens of each sentence: (B, n, S) bool, none in the padding.

    Args:
        index: (B, S) long, of `sentence_of`.
        starts: (B, n) long, as in `sentence_of`.
        key_mask: (B, S) bool, True = a real token.
    """
    numbers = torch.arange(starts.shape[1], device=index.device)[:, None]
    return (index[:, None] == numbers) & key_mask[:, None] & (starts >= 0)[:, :, None]


class SentencePooling(ContextPooling):
    """ContextPooling of several groups of the same vectors."""

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Pool x (B, S, E) by key_mask (B, n, S) bool, True = member of the group, to (B, n, E)."""
        groups = 1 if key_mask is None else key_mask.shape[1]
        scores = (self.proj(x).tanh() @ self.context)[:, None].expand(-1, groups, -1)  # (B, n, S)
        return self.weights(masked_softmax(scores, key_mask)) @ x


class HierarchicalEncoder(nn.Module):
    """Words attend within their sentences, sentences, pooled by attention, to each other, and words receive the result.

    ``word_s + W sentence_{j(s)}``: the two levels of Yang et al. 2016 (section 2.2) with the connection back to words
    of Liu and Lapata 2019 (section 3.4). The document layers, if any, then attend over all words. ``capture`` records
    the weights (B, n, S) of words in their sentences under `pool.weights`.

    Args:
        embed_dim: E.
        num_layers: Number of layers over the words of a sentence.
        num_heads: Number of attention heads, h.
        sentence_layers: Number of layers over sentences.
        document_layers: Number of layers over the words of the document.
        layers: Other arguments of `mmattn.Encoder`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        sentence_layers: int = 1,
        document_layers: int = 1,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.words = Encoder(embed_dim, num_layers, num_heads, **layers)
        self.pool = SentencePooling(embed_dim)
        self.positions = SinusoidalPositions(embed_dim)
        self.sentences = Encoder(embed_dim, sentence_layers, num_heads, **layers | {"attention": None})
        self.back = nn.Linear(embed_dim, embed_dim)
        self.document = Encoder(embed_dim, document_layers, num_heads, **layers) if document_layers else None

    def forward(self, x: Tensor, key_mask: Tensor, starts: Tensor) -> Tensor:
        """Encode words with the context of their sentence and document.

        Args:
            x: (B, S, E).
            key_mask: (B, S) bool, True = a real token.
            starts: (B, n) long, first token of each sentence, padded with -1.

        Returns:
            (B, S, E).
        """
        index = sentence_of(starts, x.shape[1])  # (B, S)
        together = (index[:, :, None] == index[:, None])[:, None]  # (B, 1, S, S)
        words = self.words(x, Mask(key_mask, together))
        members = sentence_members(index, starts, key_mask)  # (B, n, S)
        sentences = self.sentences(self.positions(self.pool(words, members)), Mask(members.any(-1)))  # (B, n, E)
        own = self.back(sentences).gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))  # (B, S, E)
        words = words + own
        return words if self.document is None else self.document(words, Mask(key_mask))
