"""GIT's decoder: one transformer over the states of an image and the words of its text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import AttentionConfig, Encoder, LayerOptions
from ..generate import CachedState
from ..masks import Mask, key_offsets
from .bert import BertEmbeddings


class PrefixState(CachedState):
    """Caches whose first tokens are those of a memory.

    Args:
        caches: One cache per layer, with the keys and values of the memory.
        prefix: Number of the memory's tokens, S.
        memory_mask: (B, S) bool, True = a real vector.
        prompt_mask: See `CachedState`.
    """

    def __init__(
        self, caches: list[Any], prefix: int, memory_mask: Tensor | None = None, prompt_mask: Tensor | None = None
    ) -> None:
        super().__init__(caches, memory_mask=memory_mask, prompt_mask=prompt_mask)
        self.prefix = prefix

    def mask(self, new: int) -> Mask:
        mask = super().mask(new)
        if mask.key_mask is None and self.memory_mask is None:
            return mask
        words = mask.key_mask  # (N, T)
        if words is None:
            assert self.memory_mask is not None
            words = self.memory_mask.new_ones(len(self.memory_mask), self.length + new)
        return Mask(joint_mask(self.memory_mask, words, self.prefix), is_causal=True)


def joint_mask(memory_mask: Tensor | None, key_mask: Tensor, prefix: int) -> Tensor:
    """Returns the mask (B, S + L) of a memory, (B, S) or None = all of its S = prefix vectors, and a text (B, L)."""
    if memory_mask is None:
        return F.pad(key_mask, (prefix, 0), value=True)
    return torch.cat([memory_mask, key_mask], dim=1)


class GitDecoder(BertEmbeddings):
    """Post-norm layers over a memory and a text, of which the memory doesn't see the text (Wang et al. 2022, figure 3).

    A word attends to the whole memory, itself and the words before it, in one softmax. ``capture`` records these maps,
    (B, h, S + L, S + L), under "decoder.layers.#.attention".

    Args:
        vocab_size: V.
        embed_dim: E, also of the memory.
        num_layers: Number of transformer layers.
        num_heads: h.
        tied_output: Whether the output projection, which has a bias, is the embedding table.
        max_len: Number of learned positions; longer texts raise.
        ffn_dim: Hidden size of the feed-forward networks; None = 4 E.
        activation: Activation of the feed-forward networks.
        norm_eps: Epsilon added to the variance in the layer norms.
        dropout: Dropout of embeddings, after each sublayer and inside the feed-forward networks.
        attention: {"kind": name, and the kernel's options} of a causal kernel.

    >>> decoder = GitDecoder(100, 32, 1, 4)
    >>> decoder(torch.randint(100, (2, 7)), torch.randn(2, 5, 32)).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        tied_output: bool = False,
        max_len: int = 1024,
        ffn_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__(vocab_size, embed_dim, max_len=max_len, num_types=0, norm_eps=norm_eps, dropout=dropout)
        layer: LayerOptions = {"ffn_dim": ffn_dim, "dropout": dropout, "attention": attention, "activation": activation}
        # A text's mask is causal, the memory's is not.
        stack: dict[str, Any] = {"norm_first": False, "norm_eps": norm_eps, "needs": ("self", "causal")}
        self.decoder = Encoder(embed_dim, num_layers, num_heads, **stack, **layer)
        self.output = nn.Linear(embed_dim, vocab_size)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)
        if tied_output:
            self.output.weight = self.embedding.weight

    def forward(
        self, input_ids: Tensor, memory: Tensor, key_mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Returns the logits (B, L, V) of each next token.

        Args:
            input_ids: (B, L) long.
            memory: (B, S, E).
            key_mask: (B, L) bool, True = a real token; none is needed for padding at the right.
            memory_mask: (B, S) bool, True = a real vector.

        Raises:
            ValueError: The text is too long.
        """
        prefix, length = memory.shape[1], input_ids.shape[1]
        offsets = key_offsets(prefix + length, prefix + length, memory.device)
        allowed = (offsets <= 0) | (torch.arange(prefix + length, device=memory.device) < prefix)  # (S + L, S + L)
        seen = None
        if key_mask is not None or memory_mask is not None:
            words = torch.ones_like(input_ids, dtype=torch.bool) if key_mask is None else key_mask
            seen = joint_mask(memory_mask, words, prefix)
        x = self.decoder(torch.cat([memory, self.embed(input_ids)], dim=1), Mask(seen, allowed))  # (B, S + L, E)
        return self.output(x[:, prefix:])

    def start_from(
        self, memory: Tensor, memory_mask: Tensor | None = None, *, prompt_mask: Tensor | None = None
    ) -> PrefixState:
        """Makes the state that `step` continues from, with the memory (B, S, E) in its caches; see `PrefixState`."""
        caches = self.decoder.make_cache(memory.shape[0])
        self.decoder(memory, None if memory_mask is None else Mask(memory_mask), caches)
        return PrefixState(caches, memory.shape[1], memory_mask, prompt_mask)

    def step(self, ids: Tensor, state: CachedState) -> Tensor:
        """Maps new ids (N, L) to the logits (N, V) of the next one."""
        x = self.embed(ids, offset=state.offset)  # (N, L, E)
        x = self.decoder(x, state.mask(ids.shape[1]), state.caches)
        state.length += ids.shape[1]
        return self.output(x[:, -1])
