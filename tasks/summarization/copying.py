"""Copying words of the document into the summary, and knowing which ones are worth it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.functional import masked_softmax
from mmattn.probe import Probe


class CopyHead(nn.Module):
    """A pointer-generator (See et al. 2017, section 2.2): what is written next is made up, or copied.

    ``p(w) = g softmax(logits)_w + (1 - g) sum_{s: id_s = w} a_s`` with ``g = sigmoid(u^T [y; a memory])`` and
    ``a = softmax_s(q^T k_s + log sigmoid(r_s))``. The vocabulary is not extended by the document's words, since its
    pieces spell any word. The decoder's state y carries the last word by its residual path, so that the paper's third
    term of g is left out. r_s, the salience, says whether a token is worth copying at all, whatever comes next: a soft
    form of the content selection of Gehrmann et al. 2018 (section 4), which gives one signal a token of the document to
    learn from.

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
        """What is computed once for a memory (B, S, E): (B, S, E)."""
        return self.k_proj(memory) * memory.shape[-1] ** -0.5

    def salience(self, memory: Tensor) -> Tensor:
        """Logits (B, S) of what is worth copying in a memory (B, S, E)."""
        return self.salience_proj(memory).squeeze(-1)

    def kept(self, memory: Tensor, ids: Tensor, key_mask: Any) -> dict[str, Any]:
        """What `forward` takes beside states, logits and a memory, computed once."""
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
        """Logarithms of what comes next.

        Args:
            states: (B, L, E), the decoder's.
            logits: (B, L, V), of words made up.
            memory: (B, S, E).
            keys: (B, S, E), from `keys`.
            salience: (B, S), from `salience`.
            key_mask: (B, S) bool, True = a real token.
            ids: (B, S) long, the document's tokens.

        Returns:
            (B, L, V), normalized.
        """
        wide = torch.promote_types(states.dtype, torch.float32)  # a probability needs more than half a number's bits
        scores = self.q_proj(states) @ keys.mT + _log_sigmoid(salience)[:, None]  # (B, L, S)
        allowed = None if key_mask is None else key_mask[:, None]  # (B, 1, S)
        weights = self.weights(masked_softmax(scores.to(wide), allowed))  # (B, L, S)
        context = weights.to(memory.dtype) @ memory  # (B, L, E)
        gate = self.gate_proj(torch.cat([states, context], dim=-1)).to(wide)  # (B, L, 1)
        made_up = _log_sigmoid(gate).exp() * logits.to(wide).softmax(-1)  # (B, L, V)
        copied = _log_sigmoid(-gate).exp() * weights  # (B, L, S), exact where 1 - g would cancel
        mixed = made_up.scatter_add(2, ids[:, None].expand(-1, states.shape[1], -1), copied)  # (B, L, V)
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()


def _log_sigmoid(x: Tensor) -> Tensor:
    """By softplus, which ONNX runtimes compute to the last bit; their sigmoid is coarse where it is small."""
    return -F.softplus(-x)


def worth_copying(source_ids: Tensor, source_mask: Tensor, labels: Tensor, label_mask: Tensor) -> Tensor:
    """Which tokens of the document stand in the summary.

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
    """Embeds how often a token stands in its document and how rare it is: what tells names and topics from small words.

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
        """ids (B, S) long and key_mask (B, S) bool, True = a real token, to (B, S, E)."""
        totals = ids.new_zeros(ids.shape[0], self.vocab_size).scatter_add_(1, ids, key_mask.long())  # (B, V)
        counts = totals.gather(1, ids).clamp_min(1).log2().long()  # (B, S)
        ranks = (2 * (ids + 1).log2()).long()  # half octaves
        found: Tensor = self.count(counts.clamp_max(self.LEVELS - 1))
        return found + self.rank(ranks.clamp_max(2 * self.LEVELS - 1))
