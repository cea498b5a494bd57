"""Recurrent text encoders, and recurrent encoder-decoders with attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import CrossCache
from ..blocks import AttentionConfig, make_attention
from ..cpu import select_rows
from ..generate import Generated, GenerationConfig, generate
from ..masks import Mask


class RecurrentEncoder(nn.Module):
    """Embeddings, then bidirectional LSTM or GRU layers; the result does not depend on padding.

    Args:
        vocab_size: V.
        embed_dim: Size of the embeddings.
        hidden_dim: E of the result, both directions together.
        kind: "lstm" or "gru".
        num_layers: Number of layers.
        bidirectional: Whether half of hidden_dim is for the direction from right to left.
        dropout: Dropout of embeddings and between layers.

    Raises:
        ValueError: An unknown kind, or an odd hidden_dim.

    >>> states, summary = RecurrentEncoder(100, 16, 32)(torch.randint(100, (2, 7)))
    >>> states.shape, summary.shape
    (torch.Size([2, 7, 32]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        *,
        kind: str = "lstm",
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.forwards, self.backwards = recurrent_layers(kind, embed_dim, hidden_dim, num_layers, bidirectional)

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes a text.

        Args:
            input_ids: (B, L) long, padded at the right.
            key_mask: (B, L) bool, True = a real token.

        Returns:
            The states (B, L, hidden_dim), zeros at padding; the summary (B, hidden_dim), each direction's last state.
        """
        if key_mask is None:
            key_mask = torch.ones_like(input_ids, dtype=torch.bool)
        x = self.dropout(self.embedding(input_ids))  # (B, L, embed_dim)
        return read_both_ways(self.forwards, self.backwards, x, key_mask, self.dropout)


def recurrent_layers(
    kind: str, input_dim: int, hidden_dim: int, num_layers: int, bidirectional: bool = True
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Makes one network per layer and direction: torch's bidirectional one would begin the reverse pass in padding.

    Raises:
        ValueError: An unknown kind, or an odd hidden_dim.
    """
    cells: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}
    if kind not in cells:
        raise ValueError(f"unknown recurrent kind {kind!r}; expected one of: {', '.join(cells)}")
    if bidirectional and hidden_dim % 2:
        raise ValueError(f"hidden_dim={hidden_dim} does not divide over two directions")
    size = hidden_dim // 2 if bidirectional else hidden_dim
    sizes = [input_dim] + [hidden_dim] * (num_layers - 1)
    forwards = nn.ModuleList(cells[kind](n, size, batch_first=True) for n in sizes)
    return forwards, nn.ModuleList(cells[kind](n, size, batch_first=True) for n in sizes if bidirectional)


def read_both_ways(
    forwards: nn.ModuleList, backwards: nn.ModuleList, x: Tensor, key_mask: Tensor, dropout: nn.Module
) -> tuple[Tensor, Tensor]:
    """Runs one network per layer and direction over x (B, L, .), padded at the right; no backwards = left to right.

    Returns:
        The states (B, L, hidden), zeros at padding; the summary (B, hidden), each direction's last state. Dropout is
        between layers.
    """
    length = key_mask.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(x.shape[1], device=x.device)  # (L,)
    mirror = torch.where(place < length, length - 1 - place, place)  # (B, L): its own inverse
    last = (length - 1).clamp_min(0)[:, :, None]  # (B, 1, 1)
    states = x
    ends: list[Tensor] = []
    for i, net in enumerate(forwards):
        states = run_recurrent(net, x)  # (B, L, size)
        ends = [states.gather(1, last.expand(-1, -1, states.shape[2]))]
        if backwards:
            back = run_recurrent(backwards[i], _reorder(x, mirror))
            ends.append(back.gather(1, last.expand(-1, -1, back.shape[2])))
            states = torch.cat([states, _reorder(back, mirror)], dim=-1)
        x = dropout(states)
    summary = torch.cat(ends, dim=-1).squeeze(1)  # (B, hidden)
    return states.masked_fill(~key_mask[:, :, None], 0.0), summary.masked_fill(length == 0, 0.0)


def _reorder(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))  # (B, L, .)


def run_recurrent(net: Any, x: Tensor, start: Tensor | None = None) -> Tensor:
    """Returns the states (B, L, size) of a one-layer LSTM or GRU over x (B, L, .), from hidden state start (B, size).

    None = zeros, as for an LSTM's cell always. For export, the equations are run as a scan: torch's own layer would be
    unrolled to the length of the example.
    """
    if not torch.compiler.is_exporting():
        if start is None:
            return net(x)[0]
        hidden = start[None]  # (1, B, size)
        return net(x, (hidden, torch.zeros_like(hidden)) if isinstance(net, nn.LSTM) else hidden)[0]
    from torch._higher_order_ops.scan import scan

    gates = F.linear(x, net.weight_ih_l0, net.bias_ih_l0).transpose(0, 1)  # (L, B, 4 or 3 size)
    zeros = x.new_zeros(x.shape[0], net.hidden_size)
    start = zeros if start is None else start.clone()
    weight, bias = net.weight_hh_l0, net.bias_hh_l0

    def lstm(state: tuple[Tensor, Tensor], gate: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        i, f, g, o = (gate + F.linear(state[0], weight, bias)).chunk(4, -1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return (hidden, cell), hidden.clone()

    def gru(hidden: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        reset, update, new = gate.chunk(3, -1)
        own_reset, own_update, own_new = F.linear(hidden, weight, bias).chunk(3, -1)
        keep = (update + own_update).sigmoid()
        hidden = (1 - keep) * (new + (reset + own_reset).sigmoid() * own_new).tanh() + keep * hidden
        return hidden, hidden.clone()

    if isinstance(net, nn.LSTM):
        _, states = scan(lstm, (start, zeros.clone()), gates, dim=0)
    else:
        _, states = scan(gru, start, gates, dim=0)
    return states.transpose(0, 1)  # (B, L, size)


class RecurrentState:
    """The decoding state of an LSTM decoder.

    The beams of a sentence share the memory, as in `mmattn.generate.CachedState`.

    Args:
        hidden: (n, N, H), of n layers.
        cell: (n, N, H).
        memory: (N, S, memory_dim), the memory of the attention.
        key_mask: (N, S) bool, True = a real token.
        cache: The memory's keys and values.
    """

    def __init__(
        self, hidden: Tensor, cell: Tensor, memory: Tensor, key_mask: Tensor | None, cache: CrossCache
    ) -> None:
        self.hidden, self.cell, self.memory, self.key_mask, self.cache = hidden, cell, memory, key_mask, cache
        self.beams = 1  # rows per sentence

    def select(self, rows: Tensor) -> None:
        """Selects rows (B, K); see `mmattn.generate.State`."""
        index = rows.flatten()
        sources = rows[:, 0] // self.beams if self.cache.state is None else index
        self.hidden, self.cell = self.hidden.index_select(1, index), self.cell.index_select(1, index)
        self.memory = select_rows(self.memory, sources)
        self.key_mask = None if self.key_mask is None else select_rows(self.key_mask, sources)
        self.cache.select(sources)
        self.beams = rows.shape[1]


class RecurrentDecoder(nn.Module):
    """An LSTM decoder with attention to a memory (Bahdanau et al. 2015; Luong et al. 2015).

    The memory is that of any encoder. Each state h_t attends to it, ``out_t = tanh(W [h_t; attention(h_t, memory)])``
    (Luong et al., section 3, without input feeding, so that training is parallel over positions).

    Args:
        vocab_size: V.
        embed_dim: E, of the embeddings and before the logits.
        hidden_dim: H of the LSTMs.
        memory_dim: Size of the memory's vectors; None = H.
        num_layers: Number of layers.
        num_heads: Heads of the attention.
        tied_output: Whether the output projection is the embedding table.
        cross_attention: {"kind": name, and the kernel's options}: "additive" (Bahdanau), "local" (Luong), ...
        dropout: Dropout of embeddings, between layers, before the logits.
        embedding: A shared embedding of V and E; None = a new one.

    Raises:
        ValueError: Sizes or inconsistent options.

    >>> decoder = RecurrentDecoder(100, 16, 32, memory_dim=24)
    >>> decoder(torch.randn(2, 7, 24), None, torch.randint(100, (2, 5))).shape
    torch.Size([2, 5, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        *,
        memory_dim: int | None = None,
        num_layers: int = 1,
        num_heads: int = 1,
        tied_output: bool = True,
        cross_attention: AttentionConfig = "additive",
        dropout: float = 0.0,
        embedding: nn.Embedding | None = None,
    ) -> None:
        super().__init__()
        memory_dim = hidden_dim if memory_dim is None else memory_dim
        self.embedding = nn.Embedding(vocab_size, embed_dim) if embedding is None else embedding
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        sizes = [embed_dim] + [hidden_dim] * (num_layers - 1)
        self.bridge = nn.Linear(memory_dim, num_layers * hidden_dim)  # from a summary to the initial hidden states
        self.decoder = nn.ModuleList(nn.LSTM(size, hidden_dim, batch_first=True) for size in sizes)
        self.cross_attention = make_attention(hidden_dim, num_heads, cross_attention, {"cross"}, kv_dim=memory_dim)
        self.combine = nn.Linear(2 * hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(embed_dim, self.embedding.num_embeddings, bias=False)
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
        return self.output(self.decode(decoder_input_ids, memory, key_mask))

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, key_mask: Tensor | None = None, summary: Tensor | None = None
    ) -> Tensor:
        """Returns the inputs (B, L, E) of the output projection, for decoder_input_ids (B, L); see `start_from`."""
        start = self._begin(memory, key_mask, summary)
        x = self.dropout(self.embedding(decoder_input_ids))  # (B, L, E)
        for n, net in enumerate(self.decoder):
            x = self.dropout(run_recurrent(net, x, start[n]))  # (B, L, H)
        return self._read(x, memory, key_mask, None)

    def _begin(self, memory: Tensor, key_mask: Tensor | None, summary: Tensor | None) -> Tensor:
        """Returns the initial hidden states (n, B, H), from a summary (B, memory_dim), or the memory's mean."""
        if summary is None and key_mask is not None:
            count = key_mask.sum(1, keepdim=True).clamp_min(1)  # (B, 1)
            summary = memory.masked_fill(~key_mask[:, :, None], 0.0).sum(1) / count  # (B, memory_dim)
        summary = memory.mean(1) if summary is None else summary
        return self.bridge(summary).tanh().unflatten(-1, (len(self.decoder), -1)).transpose(0, 1)

    def _read(self, x: Tensor, memory: Tensor, key_mask: Tensor | None, cache: CrossCache | None) -> Tensor:
        mask = None if key_mask is None else Mask(key_mask)
        seen = self.cross_attention(x, memory, mask=mask, cache=cache)  # (B, L, H)
        return self.dropout(self.combine(torch.cat([x, seen], dim=-1)).tanh())  # (B, L, E)

    def start(self, memory: Tensor, key_mask: Tensor | None = None) -> RecurrentState:
        """Makes the state that `step` continues from; arguments are those of `forward`."""
        return self.start_from(memory, key_mask)

    def start_from(
        self, memory: Tensor, key_mask: Tensor | None = None, summary: Tensor | None = None
    ) -> RecurrentState:
        """Makes the state that `step` continues from.

        Args:
            memory: (B, S, memory_dim).
            key_mask: (B, S) bool, True = a real vector.
            summary: (B, memory_dim), from which the decoder is initialized; None = the memory's mean.
        """
        hidden = self._begin(memory, key_mask, summary)
        cache = self.cross_attention.make_cache(memory.shape[0], cross=True)
        return RecurrentState(hidden, torch.zeros_like(hidden), memory, key_mask, cache)

    def step(self, ids: Tensor, state: RecurrentState) -> Tensor:
        """Maps new target ids (N, L) to the logits (N, V) of the next one."""
        x, hidden, cell = self.embedding(ids), [], []  # (N, L, E)
        for n, net in enumerate(self.decoder):
            x, (h, c) = net(x, (state.hidden[n : n + 1].contiguous(), state.cell[n : n + 1].contiguous()))
            hidden.append(h)
            cell.append(c)
        state.hidden, state.cell = torch.cat(hidden), torch.cat(cell)
        return self.output(self._read(x, state.memory, state.key_mask, state.cache)[:, -1])

    def generate(self, memory: Tensor, key_mask: Tensor | None, config: GenerationConfig, **keywords: Any) -> Generated:
        """Generates a target for each row; arguments as of `forward` and `Seq2Seq.generate`.

        Raises:
            ValueError: The config has no decoder_start_token_id.
        """
        prompt = config.start_prompt(len(memory), memory.device)
        with torch.inference_mode():
            return generate(self.step, self.start(memory, key_mask), prompt, config, **keywords)


class RecurrentSeq2Seq(RecurrentDecoder):
    """An encoder-decoder: a bidirectional LSTM encoder, whose last states initialize a `RecurrentDecoder`.

    Args:
        vocab_size: V of the source, and of the target if target_vocab_size is None.
        embed_dim: E, of the embeddings and before the logits.
        hidden_dim: H of the LSTMs, both directions of the encoder together.
        num_layers: Number of encoder layers.
        num_decoder_layers: None = num_layers.
        target_vocab_size: V of the target, which then has separate embeddings.
        dropout: Dropout of embeddings, between layers, before the logits.
        decoder: Other keywords of `RecurrentDecoder`.

    Raises:
        ValueError: Sizes or inconsistent options.

    >>> model = RecurrentSeq2Seq(100, 16, 32)
    >>> model(torch.randint(100, (2, 7)), None, torch.randint(100, (2, 5))).shape
    torch.Size([2, 5, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        *,
        num_layers: int = 1,
        num_decoder_layers: int | None = None,
        target_vocab_size: int | None = None,
        dropout: float = 0.0,
        **decoder: Any,
    ) -> None:
        encoder = RecurrentEncoder(vocab_size, embed_dim, hidden_dim, num_layers=num_layers, dropout=dropout)
        decoder["num_layers"] = num_layers if num_decoder_layers is None else num_decoder_layers
        if target_vocab_size is None:
            decoder["embedding"] = encoder.embedding
        else:
            nn.init.normal_(encoder.embedding.weight, std=embed_dim**-0.5)
        super().__init__(target_vocab_size or vocab_size, embed_dim, hidden_dim, dropout=dropout, **decoder)
        self.encoder = encoder

    def encode(self, input_ids: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encodes ids (B, S) with key_mask (B, S) to the memory (B, S, H) and the decoder's first states (n, B, H)."""
        memory, summary = self.encoder(input_ids, key_mask)
        return memory, self._begin(memory, key_mask, summary)

    def forward(self, input_ids: Tensor, key_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        """Returns the logits of each next token under teacher forcing.

        Args:
            input_ids: (B, S) long, padded at the right.
            key_mask: (B, S) bool, True = a real token.
            decoder_input_ids: (B, L) long, the start token first; padded at the right, where the loss is masked.

        Returns:
            (B, L, V).
        """
        memory, summary = self.encoder(input_ids, key_mask)
        return self.output(self.decode(decoder_input_ids, memory, key_mask, summary))

    def start(self, input_ids: Tensor, key_mask: Tensor | None = None) -> RecurrentState:
        """Encodes the source (B, S) and makes the state that `step` continues from."""
        memory, summary = self.encoder(input_ids, key_mask)
        return self.start_from(memory, key_mask, summary)
