"""The classic: a recurrent net over the tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecurrentEncoder(nn.Module):
    """Embeddings through LSTM or GRU layers, in both directions; a padded text gives what it gives alone.

    Args:
        vocab_size: V.
        embed_dim: of the embeddings.
        hidden_dim: E of the result, both directions together.
        kind: "lstm" or "gru".
        num_layers: of them.
        bidirectional: half of hidden_dim reads from right to left.
        dropout: of embeddings and between layers.

    Raises:
        ValueError: unknown kind, or a hidden_dim that does not halve.

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
        cells: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}
        if kind not in cells:
            raise ValueError(f"unknown recurrent kind {kind!r}; there are: {', '.join(cells)}")
        if bidirectional and hidden_dim % 2:
            raise ValueError(f"hidden_dim={hidden_dim} does not divide over two directions")
        size = hidden_dim // 2 if bidirectional else hidden_dim
        sizes = [embed_dim] + [hidden_dim] * (num_layers - 1)
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        # One net a layer and direction: torch's own bidirectional one would start the way back in the padding.
        self.forwards = nn.ModuleList(cells[kind](n, size, batch_first=True) for n in sizes)
        self.backwards = nn.ModuleList(cells[kind](n, size, batch_first=True) for n in sizes if bidirectional)

    def forward(self, input_ids: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reads.

        Args:
            input_ids: (B, L) long, padded at the right.
            key_mask: (B, L) bool, True = a real token.

        Returns:
            The states (B, L, hidden_dim), zeros at padding; the summary (B, hidden_dim), where each direction ended.
        """
        if key_mask is None:
            key_mask = torch.ones_like(input_ids, dtype=torch.bool)
        x = self.dropout(self.embedding(input_ids))  # (B, L, embed_dim)
        return read_both_ways(self.forwards, self.backwards, x, key_mask, self.dropout)


def read_both_ways(
    forwards: nn.ModuleList, backwards: nn.ModuleList, x: Tensor, key_mask: Tensor, dropout: nn.Module
) -> tuple[Tensor, Tensor]:
    """One net a layer and direction over x (B, L, .), padded at the right; none in backwards: from left to right only.

    Returns:
        The states (B, L, hidden), zeros at padding; the summary (B, hidden), where each direction ended. Dropout is
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


def run_recurrent(net: Any, x: Tensor) -> Tensor:
    """The states (B, L, size) of a one-layer nn.LSTM or nn.GRU over x (B, L, .).

    While exporting, the same equations as a scan: torch's own would be unrolled to the length of the example.
    """
    if not torch.compiler.is_exporting():
        return net(x)[0]
    from torch._higher_order_ops.scan import scan

    gates = F.linear(x, net.weight_ih_l0, net.bias_ih_l0).transpose(0, 1)  # (L, B, 4 or 3 size)
    start = x.new_zeros(x.shape[0], net.hidden_size)
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
        _, states = scan(lstm, (start, start.clone()), gates, dim=0)
    else:
        _, states = scan(gru, start, gates, dim=0)
    return states.transpose(0, 1)  # (B, L, size)
