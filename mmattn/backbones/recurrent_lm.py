"""A recurrent language model with attention over its past states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import AttentionConfig, make_attention
from ..masks import Mask
from .causal import CausalModel


class RecurrentLMState:
    """The decoding state of `RecurrentLM`.

    Args:
        hidden: (n, N, H), of n layers.
        cell: (n, N, H).
        cache: The keys and values of past states.
        prompt_mask: (N, P) bool, True = a real token, of prompts padded at the left.
    """

    def __init__(self, hidden: Tensor, cell: Tensor, cache: Any, prompt_mask: Tensor | None = None) -> None:
        self.hidden, self.cell, self.cache, self.prompt_mask = hidden, cell, cache, prompt_mask
        self.length = 0  # tokens so far, padding included

    def mask(self, new: int) -> Mask:
        """Returns the attention's mask of that many new tokens: causal, without padding."""
        if self.prompt_mask is None:
            return Mask(is_causal=True)
        behind = self.length + new - self.prompt_mask.shape[1]
        return Mask(nn.functional.pad(self.prompt_mask, (0, behind), value=True), is_causal=True)

    def select(self, rows: Tensor) -> None:
        """Selects rows (B, K); see `mmattn.generate.State`."""
        index = rows.flatten()
        self.hidden, self.cell = self.hidden.index_select(1, index), self.cell.index_select(1, index)
        self.cache.select(index)
        if self.prompt_mask is not None:
            self.prompt_mask = self.prompt_mask.index_select(0, index)


class RecurrentLM(CausalModel):
    """LSTM layers whose states attend to the states before them (Cheng et al. 2016, section 3; Daniluk et al. 2017).

    ``out_t = tanh(W [h_t; attention(h_t, h_1 .. h_t)])``, without feeding out_t back, so that only the LSTM is
    sequential.

    Args:
        vocab_size: V.
        embed_dim: E, of embeddings, states and before the logits.
        num_layers: Number of LSTM layers.
        num_heads: h of the attention.
        max_len: Longest text that it is trained for.
        tied_output: Whether the output projection is the embedding table.
        dropout: Dropout of embeddings, between layers, and before the logits.
        attention: {"kind": name, and the kernel's options} of a causal kernel; None = dense.

    >>> RecurrentLM(100, 32, 2, 4)(torch.randint(100, (2, 7))).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        max_len: int = 1024,
        tied_output: bool = True,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.max_len = embed_dim, max_len
        self.pads_left = True  # as of `CausalLM`
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.layers = nn.ModuleList(nn.LSTM(embed_dim, embed_dim, batch_first=True) for _ in range(num_layers))
        self.attention = make_attention(embed_dim, num_heads, attention, ("causal",))
        self.combine = nn.Linear(2 * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(embed_dim, vocab_size)
        nn.init.zeros_(self.output.bias)
        if tied_output:
            self.output.weight = self.embedding.weight

    def _run(
        self, input_ids: Tensor, real: Tensor | None, start: tuple[Tensor, Tensor], mask: Mask, cache: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns states (B, L, E), and the layers' last hidden and cell states (n, B, E)."""
        x = self.dropout(self.embedding(input_ids))  # (B, L, E)
        hidden, cell = [], []
        for number, net in enumerate(self.layers):
            given = (start[0][number : number + 1].contiguous(), start[1][number : number + 1].contiguous())
            if real is None:
                x, (h, c) = net(x, given)
            else:  # padding at the left does not change the state
                rows = []
                h, c = given
                for place in range(x.shape[1]):
                    out, (new_h, new_c) = net(x[:, place : place + 1], (h, c))
                    kept = real[None, :, place, None]
                    h, c = torch.where(kept, new_h, h), torch.where(kept, new_c, c)
                    rows.append(out)
                x = torch.cat(rows, dim=1)
            hidden.append(h)
            cell.append(c)
            x = self.dropout(x)
        seen = self.attention(x, mask=mask, cache=cache)  # (B, L, E)
        return self.dropout(self.combine(torch.cat([x, seen], dim=-1)).tanh()), torch.cat(hidden), torch.cat(cell)

    def _zeros(self, rows: int) -> tuple[Tensor, Tensor]:
        empty = self.embedding.weight.new_zeros(len(self.layers), rows, self.embed_dim)
        return empty, empty

    def states(self, input_ids: Tensor, key_mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Returns the inputs (B, L, E) of the output projection; see `CausalLM.states`.

        Raises:
            ValueError: Documents are given: the state is carried over from one to the next.
        """
        if documents is not None:
            raise ValueError("an LSTM carries its state over documents: expected documents=None")
        padded = key_mask is not None and not bool(key_mask[:, 0].all())  # at the right, states before it are right
        real = key_mask if padded else None
        return self._run(input_ids, real, self._zeros(len(input_ids)), Mask(key_mask, is_causal=True))[0]

    def segment(self, input_ids: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Returns the states of a segment that continues earlier ones, and what the next one continues from.

        The attention sees the segment alone.

        Args:
            input_ids: (B, L) long.
            memory: The second result for the segment before; None: there is none.
        """
        start = self._zeros(len(input_ids)) if memory is None else (memory[0], memory[1])
        x, hidden, cell = self._run(input_ids, None, start, Mask(is_causal=True))
        return x, [hidden.detach(), cell.detach()]

    def start(self, rows: int, prompt_mask: Tensor | None = None) -> RecurrentLMState:
        """Makes the empty state that `step` continues from; see `CausalLM.start`."""
        return RecurrentLMState(*self._zeros(rows), self.attention.make_cache(rows), prompt_mask)

    def advance(self, ids: Tensor, state: RecurrentLMState) -> Tensor:
        """Maps new ids (N, L) to their states (N, L, E)."""
        real = None
        if state.prompt_mask is not None and state.length < state.prompt_mask.shape[1]:
            real = nn.functional.pad(state.prompt_mask[:, state.length :], (0, ids.shape[1]), value=True)
            real = real[:, : ids.shape[1]]
        start = (state.hidden, state.cell)
        x, state.hidden, state.cell = self._run(ids, real, start, state.mask(ids.shape[1]), state.cache)
        state.length += ids.shape[1]
        return x
