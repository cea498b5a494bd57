"""The decoder of Show, Attend and Tell: an LSTM that reads the memory before each word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import CrossCache
from ..blocks import AttentionConfig, make_attention
from ..generate import Generated, GenerationConfig, generate
from ..masks import Mask
from .recurrent import RecurrentState


class ShowAttendTell(nn.Module):
    """An LSTM decoder with attention to a memory, such as an image's cells (Xu et al. 2015, sections 3.1.2 and 4.2).

    With the state h of the previous step, ``z_t = beta_t attention(h_{t-1}, memory)``, ``beta_t = sigmoid(w h_{t-1})``
    (section 4.2.1), ``h_t = LSTM([y_{t-1}; z_t], h_{t-1})``, and the logits are ``W_o (y_{t-1} + W_h h_t + W_z z_t)``
    (equation 7); y are embeddings. The first h and the first cell are maps of the memory's mean.

    Args:
        vocab_size: V.
        embed_dim: E, of the embeddings and before the logits.
        hidden_dim: H of the LSTM.
        memory_dim: Size of the memory's vectors; None = H.
        num_heads: Heads of the attention.
        tied_output: Whether the output projection is the embedding table.
        cross_attention: {"kind": name, and the kernel's options}; "additive" is that of the paper.
        dropout: Dropout of embeddings and before the logits.

    >>> decoder = ShowAttendTell(100, 16, 32, memory_dim=24)
    >>> decoder(torch.randn(2, 49, 24), None, torch.randint(100, (2, 5))).shape
    torch.Size([2, 5, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        *,
        memory_dim: int | None = None,
        num_heads: int = 1,
        tied_output: bool = True,
        cross_attention: AttentionConfig = "additive",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        memory_dim = hidden_dim if memory_dim is None else memory_dim
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.bridge = nn.Linear(memory_dim, 2 * hidden_dim)  # to the first hidden state and the first cell
        self.cross_attention = make_attention(hidden_dim, num_heads, cross_attention, {"cross"}, kv_dim=memory_dim)
        self.gate = nn.Linear(hidden_dim, 1)  # beta
        self.decoder = nn.LSTMCell(embed_dim + hidden_dim, hidden_dim)
        self.combine = nn.Linear(2 * hidden_dim, embed_dim)  # W_h and W_z
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(embed_dim, vocab_size, bias=False)
        if tied_output:
            self.output.weight = self.embedding.weight

    def forward(self, memory: Tensor, key_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        """Returns the logits of each next token under teacher forcing.

        Args:
            memory: (B, S, memory_dim).
            key_mask: (B, S) bool, True = a real vector.
            decoder_input_ids: (B, L) long, the start token first; padded at the right, where the loss is masked.

        Returns:
            (B, L, V).
        """
        return self.output(self._run(decoder_input_ids, self.start(memory, key_mask)))

    def start(self, memory: Tensor, key_mask: Tensor | None = None) -> RecurrentState:
        """Makes the state that `step` continues from; arguments are those of `forward`."""
        real = torch.ones_like(memory[:, :, 0]) if key_mask is None else key_mask.to(memory.dtype)  # (B, S)
        mean = (memory * real[:, :, None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)  # (B, memory_dim)
        hidden, cell = self.bridge(mean).tanh()[None].chunk(2, -1)  # (1, B, H) each
        cache: CrossCache = self.cross_attention.make_cache(memory.shape[0], cross=True)
        return RecurrentState(hidden, cell, memory, key_mask, cache)

    def step(self, ids: Tensor, state: RecurrentState) -> Tensor:
        """Maps new target ids (N, L) to the logits (N, V) of the next one."""
        return self.output(self._run(ids, state)[:, -1])

    def _run(self, ids: Tensor, state: RecurrentState) -> Tensor:
        """Reads ids (N, L) one by one; returns the inputs (N, L, E) of the output projection."""
        mask = None if state.key_mask is None else Mask(state.key_mask)
        words = self.dropout(self.embedding(ids))  # (N, L, E)
        hidden, cell, found = state.hidden[0], state.cell[0], []
        for word in words.unbind(1):
            seen = self.cross_attention(hidden[:, None], state.memory, mask=mask, cache=state.cache)[:, 0]  # (N, H)
            seen = self.gate(hidden).sigmoid() * seen
            hidden, cell = self.decoder(torch.cat([word, seen], dim=-1), (hidden, cell))
            found.append(word + self.combine(torch.cat([self.dropout(hidden), seen], dim=-1)))
        state.hidden, state.cell = hidden[None], cell[None]
        return self.dropout(torch.stack(found, 1))

    def generate(self, memory: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any) -> Generated:
        """Generates a target for each row; arguments as of `forward` and `Seq2Seq.generate`.

        Raises:
            ValueError: The config has no decoder_start_token_id.
        """
        prompt = config.start_prompt(len(memory), memory.device)
        with torch.inference_mode():
            return generate(self.step, self.start(memory, key_mask), prompt, config, **keywords)
