"""Our encoders of texts, with characters beside words: a transformer, a recurrent network, words and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.backbones.recurrent import read_both_ways, recurrent_layers
from mmattn.blocks import Encoder
from mmattn.hierarchical import HierarchicalAttention
from mmattn.masks import Mask

CHARACTER_DIM, WIDTH = 24, 3  # size of a character's embedding, and characters of a window


class CharacterFeatures(nn.Module):
    """Features of each word from its characters: windows of three, and the greatest value of each feature.

    Ma and Hovy 2016, section 2.1.

    Args:
        num_characters: Number of characters; 0 is padding.
        features: Number of features.
        dropout: Dropout of the embeddings.

    >>> CharacterFeatures(50, 16)(torch.randint(50, (2, 5, 9))).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, num_characters: int, features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, CHARACTER_DIM, padding_idx=0)
        self.windows = nn.Linear(WIDTH * CHARACTER_DIM, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, characters: Tensor) -> Tensor:
        """(..., C) long to (..., features)."""
        x = nn.functional.pad(self.dropout(self.embedding(characters)), (0, 0, WIDTH // 2, WIDTH // 2))
        length = characters.shape[-1]
        windows = torch.cat([x[..., n : n + length, :] for n in range(WIDTH)], dim=-1)  # (..., C, 3 D)
        return self.windows(windows).relu().masked_fill((characters == 0)[..., None], 0.0).amax(-2)


class WordEmbeddings(nn.Module):
    """The sum of a token's embedding, that of its text in a pair, and a map of its characters' features.

    Args:
        vocab_size: V.
        embed_dim: E.
        characters: Number of features of the characters; 0: none.
        num_characters: Number of characters.
        dropout: Dropout of the result.
    """

    def __init__(
        self, vocab_size: int, embed_dim: int, *, characters: int = 0, num_characters: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.token_types = nn.Embedding(2, embed_dim)
        nn.init.zeros_(self.token_types.weight)
        self.characters = CharacterFeatures(num_characters, characters, dropout) if characters else None
        self.project = nn.Linear(characters, embed_dim) if characters else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, token_types: Tensor, characters: Tensor | None) -> Tensor:
        """(..., L) long to (..., L, E)."""
        x = self.embedding(input_ids) + self.token_types(token_types.clamp_max(1))
        if self.characters is not None and self.project is not None:
            if characters is None:
                raise ValueError("characters: expected those of each token, found none")
            x = x + self.project(self.characters(characters))
        return self.dropout(x)


class OwnEncoder(nn.Module):
    """A transformer with rotary positions.

    Args:
        vocab_size: V.
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        attention: {"kind": name, and the kernel's options}.
        dropout: Dropout of embeddings and after each sublayer.
        words: `characters` and `num_characters` of `WordEmbeddings`.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        attention: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        **words: Any,
    ) -> None:
        super().__init__()
        self.words = WordEmbeddings(vocab_size, embed_dim, dropout=dropout, **words)
        layer: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "rotary": True}
        self.encoder = Encoder(embed_dim, num_layers, num_heads, **layer)

    def forward(
        self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor, characters: Tensor | None = None
    ) -> Tensor:
        """All (N, L); characters (N, L, C). Returns (N, L, E)."""
        return self.encoder(self.words(input_ids, token_types, characters), Mask(key_mask))


class RecurrentTextEncoder(nn.Module):
    """A bidirectional LSTM, which additive attention pools (Zhou et al. 2016, with the scores of Yang et al. 2016).

    Args:
        vocab_size: V.
        embed_dim: E of embeddings and states, even.
        num_layers: Number of layers.
        dropout: Dropout of embeddings and between layers.
        words: `characters` and `num_characters` of `WordEmbeddings`.
    """

    def __init__(self, vocab_size: int, embed_dim: int, num_layers: int, *, dropout: float = 0.0, **words: Any) -> None:
        super().__init__()
        self.words = WordEmbeddings(vocab_size, embed_dim, dropout=dropout, **words)
        self.forwards, self.backwards = recurrent_layers("lstm", embed_dim, embed_dim, num_layers)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor, characters: Tensor | None = None
    ) -> Tensor:
        """All (N, L); characters (N, L, C). Returns (N, L, E)."""
        x = self.words(input_ids, token_types, characters)
        return self.dropout(read_both_ways(self.forwards, self.backwards, x, key_mask, self.dropout)[0])


class HierarchicalEncoder(nn.Module):
    """Hierarchical attention over words and sentences (Yang et al. 2016), see `HierarchicalAttention`.

    Args:
        vocab_size: V.
        embed_dim: E, even.
        dropout: Dropout of embeddings and of the result.
        words: `characters` and `num_characters` of `WordEmbeddings`.
    """

    def __init__(self, vocab_size: int, embed_dim: int, *, dropout: float = 0.0, **words: Any) -> None:
        super().__init__()
        self.words = WordEmbeddings(vocab_size, embed_dim, dropout=dropout, **words)
        self.attention = HierarchicalAttention(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor, characters: Tensor | None = None
    ) -> Tensor:
        """All (N, n, w); characters (N, n, w, C). Returns (N, E)."""
        return self.dropout(self.attention(self.words(input_ids, token_types, characters), key_mask))


class BagOfWords(nn.Module):
    """The embeddings alone: the baseline that knows neither order nor neighbors."""

    def __init__(self, vocab_size: int, embed_dim: int, *, dropout: float = 0.0, **words: Any) -> None:
        super().__init__()
        self.words = WordEmbeddings(vocab_size, embed_dim, dropout=dropout, **words)

    def forward(
        self, input_ids: Tensor, key_mask: Tensor, token_types: Tensor, characters: Tensor | None = None
    ) -> Tensor:
        """All (N, L); characters (N, L, C). Returns (N, L, E)."""
        return self.words(input_ids, token_types, characters)
