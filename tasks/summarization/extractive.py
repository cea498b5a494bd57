"""Extractive summarizer: an encoder of words, layers over sentences, and a score for each sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.bert import BertEncoder
from mmattn.backbones.text import TextEncoder
from mmattn.blocks import Encoder
from mmattn.masks import Mask
from mmattn.positions import SinusoidalPositions
from mmattn.tasks.summarization.hierarchy import SentencePooling, sentence_members, sentence_of

TEMPERATURE = 0.05  # in ROUGE: a sentence that is better by so much has e times the probability


class ExtractiveOutput(NamedTuple):
    """Output of `ExtractiveModel`."""

    logits: Tensor  # (B, n), of each sentence; zero in the padding


class SentenceHead(nn.Module):
    """Scores of sentences: their pooled words, layers over the sentences, and a linear map.

    The inter-sentence layers of Liu and Lapata 2019 (section 3.2), ``logit_j = w^T Encoder(h + positions)_j + b``. The
    vector h_j of a sentence is pooled from the states of its words, by attention (Yang et al. 2016) or their mean,
    instead of the state of a special token before it, which a public encoder would have to learn.

    Args:
        embed_dim: E, the size of the states of any encoder.
        num_layers: Number of layers over sentences.
        num_heads: Number of attention heads, h.
        ffn_dim: Hidden size of the feed-forward networks; None: 4 E.
        pooling: "attention" or "mean".
        dropout: Dropout.

    >>> states, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.bool)
    >>> SentenceHead(32, 1, 4)(states, mask, torch.tensor([[0, 5], [0, -1]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pool = SentencePooling(embed_dim) if pooling == "attention" else None
        self.pool_norm, self.positions = nn.LayerNorm(embed_dim), SinusoidalPositions(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.sentences = Encoder(embed_dim, num_layers, num_heads, ffn_dim=ffn_dim, dropout=dropout)
        self.out = nn.Linear(embed_dim, 1)

    def forward(self, states: Tensor, key_mask: Tensor, starts: Tensor) -> Tensor:
        """Score sentences.

        Args:
            states: (B, S, E), of the words.
            key_mask: (B, S) bool, True = a real token.
            starts: (B, n) long, first token of each sentence, padded with -1.

        Returns:
            (B, n), zero in the padding.
        """
        members = sentence_members(sentence_of(starts, states.shape[1]), starts, key_mask)  # (B, n, S)
        if self.pool is None:
            weights = members / members.sum(-1, keepdim=True).clamp_min(1)  # (B, n, S)
            pooled = weights.to(states.dtype) @ states.masked_fill(~key_mask[:, :, None], 0.0)  # (B, n, E)
        else:
            pooled = self.pool(states, members)
        x = self.dropout(self.positions(self.pool_norm(pooled)))  # (B, n, E)
        x = self.sentences(x, Mask(starts >= 0))
        return self.out(x).squeeze(-1).masked_fill(starts < 0, 0.0)


class ExtractiveModel(nn.Module):
    """Documents to scores of their sentences (Liu and Lapata 2019, sections 3.1 and 3.2: BERTSum).

    Args:
        vocab_size: V.
        embed_dim: E of our own encoder.
        num_heads: Number of attention heads, h.
        ffn_dim: Hidden size of the feed-forward networks of our own encoder, and of the layers over sentences.
        encoder_layers: Number of layers of our own encoder.
        attention: The encoder's self-attention, {"kind": name, and the kernel's options}; none: dense.
        sentence_layers: Number of layers over sentences.
        pooling: The pooling of a sentence's words: by "attention", or their "mean".
        dropout: Dropout; in a public encoder its own.
        text_options: Keywords of `mmattn.backbones.bert.BertEncoder`, from public weights; none: our own encoder, a
            transformer with rotary positions.

    >>> model = ExtractiveModel(50, embed_dim=16, num_heads=2)
    >>> ids = torch.randint(4, 50, (2, 9))
    >>> model(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([[0, 5], [0, -1]])).logits.shape
    torch.Size([2, 2])
    """

    beside: ClassVar[tuple[str, ...]] = ("sentence_starts",)  # as of `TextModel`

    def __init__(
        self,
        vocab_size: int,
        *,
        embed_dim: int = 96,
        num_heads: int = 4,
        ffn_dim: int = 256,
        encoder_layers: int = 1,
        attention: Mapping[str, Any] | None = None,
        sentence_layers: int = 1,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.1,
        text_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("attention", "mean"):
            raise ValueError(f"pooling: expected attention or mean, found {pooling!r}")
        layers: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout}
        self.encoder: BertEncoder | TextEncoder
        if text_options is None:
            layers |= {"attention": attention, "positions": "rotary"}
            self.encoder = TextEncoder(vocab_size, embed_dim, encoder_layers, num_heads, **layers)
        else:
            own = {} if attention is None else {"attention": attention}
            self.encoder = BertEncoder(vocab_size, **{**text_options, "pooler": False, **own})
            embed_dim = self.encoder.embed_dim
        self.head = SentenceHead(
            embed_dim, sentence_layers, num_heads, ffn_dim=ffn_dim, pooling=pooling, dropout=dropout
        )

    @property
    def max_len(self) -> int | None:
        """Maximum number of tokens; None: not limited."""
        if isinstance(self.encoder, TextEncoder):
            return None
        pad_id = self.encoder.pad_id
        return self.encoder.positions.max_len - (0 if pad_id is None else pad_id + 1)

    def forward(self, source_ids: Tensor, source_mask: Tensor, sentence_starts: Tensor) -> ExtractiveOutput:
        """Score sentences.

        Args:
            source_ids: (B, S) long.
            source_mask: (B, S) bool, True = a real token.
            sentence_starts: (B, n) long, first token of each sentence, padded with -1.

        Returns:
            Logits (B, n).
        """
        states = self.encoder(source_ids, source_mask)
        words = states if isinstance(states, Tensor) else states.states  # (B, S, E)
        return ExtractiveOutput(self.head(words, source_mask, sentence_starts))


def sentence_loss(logits: Tensor, starts: Tensor, gains: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy between the model's choice of a sentence and a soft one by ROUGE.

    ``-sum_j q_j log softmax(logits)_j`` with ``q = softmax(gains / 0.05)``, in place of the binary labels of one oracle
    (Liu and Lapata 2019, section 4.2): several sentences of a document are often nearly as good.

    Args:
        logits: (B, n).
        starts: (B, n) long, -1 in the padding.
        gains: (B, n), how good each sentence is.
        smoothing: Probability mass that is spread over the sentences.
    """
    padding = starts < 0
    log_p = logits.float().masked_fill(padding, -torch.inf).log_softmax(-1).masked_fill(padding, 0.0)  # (B, n)
    soft = (gains / TEMPERATURE).masked_fill(padding, -torch.inf).softmax(-1)  # (B, n)
    even = (~padding).float() / (~padding).sum(-1, keepdim=True)
    return -(((1 - smoothing) * soft + smoothing * even) * log_p).sum(-1).mean()
