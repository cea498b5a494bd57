"""Pointer-generator with a salience score for each source token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.functional import masked_softmax
from mmattn.probe import Probe


class CopyHead(nn.Module):
    """Pointer-generator (See et al. 2017, section 2.2): each token is generated from the vocabulary or copied.

    ``p(w) = g softmax(logits)_w + (1 - g) sum_{s: id_s = w} a_s`` with ``g = sigmoid(u^T [y; a memory])`` and
    ``a = softmax_s(q^T k_s + log sigmoid(r_s))``. The vocabulary is not extended by the document's words, since its
    pieces spell any word. The paper's third term of g, the last word, is omitted, since the state y carries it by its
    residual path. The salience r_s scores whether a token is copied at all, at any step: a soft form of the content
    selection of Gehrmann et al. 2018 (section 4), with one training target for each source token.

    ``capture`` records a, (B, L, S), under the path of `weights`.

    Args:
        embed_dim: E.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.salience_proj = nn.Linear(embed_dim, 1)
        self.gate_proj = nn.Linear(2 * embed_dim, 1)
        self.weights = Probe()

    def keys(self, memory: Tensor) -> Tensor:
        """Project a memory (B, S, E) to keys (B, S, E), once for all steps."""
        return self.k_proj(memory) * memory.shape[-1] ** -0.5

    def salience(self, memory: Tensor) -> Tensor:
        """Salience logits (B, S) of a memory (B, S, E)."""
        return self.salience_proj(memory).squeeze(-1)

    def kept(self, memory: Tensor, ids: Tensor, key_mask: Any) -> dict[str, Any]:
        """Precompute the arguments of `forward` other than states, logits and memory."""
        return {"salience": self.salience(memory), "keys": self.keys(memory), "key_mask": key_mask, "ids": ids}

    def forward(
        self,
        states: Tensor,
        logits: Tensor,
        memory: Tensor,
        keys: Tensor,
        salience: Tensor,
        key_mask: Tensor | None,
        ids: Tensor,
    ) -> Tensor:
        """Log-probabilities of the next token.

        Args:
            states: (B, L, E), of the decoder.
            logits: (B, L, V), of generated tokens.
            memory: (B, S, E).
            keys: (B, S, E), of `keys`.
            salience: (B, S), of `salience`.
            key_mask: (B, S) bool, True = a real token.
            ids: (B, S) long, the document's tokens.

        Returns:
            (B, L, V), normalized.
        """
        wide = torch.promote_types(states.dtype, torch.float32)  # half precision is too coarse for probabilities
        scores = self.q_proj(states) @ keys.mT + _log_sigmoid(salience)[:, None]  # (B, L, S)
        allowed = None if key_mask is None else key_mask[:, None]  # (B, 1, S)
        weights = self.weights(masked_softmax(scores.to(wide), allowed))  # (B, L, S)
        context = weights.to(memory.dtype) @ memory  # (B, L, E)
        gate = self.gate_proj(torch.cat([states, context], dim=-1)).to(wide)  # (B, L, 1)
        generated = _log_sigmoid(gate).exp() * logits.to(wide).softmax(-1)  # (B, L, V)
        copied = _log_sigmoid(-gate).exp() * weights  # (B, L, S), exact where 1 - g would cancel
        mixed = generated.scatter_add(2, ids[:, None].expand(-1, states.shape[1], -1), copied)  # (B, L, V)
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()


def _log_sigmoid(x: Tensor) -> Tensor:
    """By softplus, which is exact in ONNX runtimes; their sigmoid is imprecise for small values."""
    return -F.softplus(-x)


def worth_copying(source_ids: Tensor, source_mask: Tensor, labels: Tensor, label_mask: Tensor) -> Tensor:
    """Which tokens of the document occur in the summary: targets of the salience.

    Args:
        source_ids: (B, S) long.
        source_mask: (B, S) bool, True = a real token.
        labels: (B, L) long.
        label_mask: (B, L) bool, True = counts.

    Returns:
        (B, S) bool.
    """
    same = (source_ids[:, :, None] == labels[:, None]) & label_mask[:, None]  # (B, S, L)
    return same.any(-1) & source_mask


class Frequencies(nn.Module):
    """Embeddings of a token's frequency in its document and of its rarity, which mark content words.

    Args:
        vocab_size: V.
        embed_dim: E.
    """

    LEVELS = 16  # powers of two

    def __init__(self, vocab_size: int, embed_dim: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.count, self.rank = nn.Embedding(self.LEVELS, embed_dim), nn.Embedding(2 * self.LEVELS, embed_dim)
        for table in (self.count, self.rank):
            nn.init.normal_(table.weight, std=embed_dim**-0.5)

    def forward(self, ids: Tensor, key_mask: Tensor) -> Tensor:
        """Embed ids (B, S) long with key_mask (B, S) bool, True = a real token, as (B, S, E)."""
        totals = ids.new_zeros(ids.shape[0], self.vocab_size).scatter_add_(1, ids, key_mask.long())  # (B, V)
        counts = totals.gather(1, ids).clamp_min(1).log2().long()  # (B, S)
        ranks = (2 * (ids + 1).log2()).long()  # half octaves
        found: Tensor = self.count(counts.clamp_max(self.LEVELS - 1))
        return found + self.rank(ranks.clamp_max(2 * self.LEVELS - 1))
