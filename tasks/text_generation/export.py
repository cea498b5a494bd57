"""Export of a language model as one program, for prompts and steps alike, with its cache as flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.backbones.recurrent_lm import RecurrentLM, RecurrentLMState
from mmattn.generate import CachedState
from mmattn.kernels import KVCache
from mmattn.tasks.common.export import ExportError, export_model
from mmattn.tasks.common.seq2seq.export import AppendingCache

BATCH = Dim("batch", max=4096)


class LanguageOutput(NamedTuple):
    """Output of the program."""

    logits: Tensor  # (B, V), of the token after the last one
    keys: Tensor  # (n, B, h_kv, T + L, d)
    values: Tensor  # (n, B, h_kv, T + L, d)


class RecurrentLanguageOutput(NamedTuple):
    """Output of the program of an LSTM."""

    logits: Tensor  # (B, V)
    keys: Tensor  # (B, h, T + 1, d)
    values: Tensor  # (B, h, T + 1, d)
    hidden: Tensor  # (n, B, E)
    cell: Tensor  # (n, B, E)


class LanguageProgram(nn.Module):
    """New tokens and the cache of those before them to the logits of the next token and the extended cache."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> LanguageOutput:
        """Decode ids (B, L) long with keys, values (n, B, h_kv, T, d), T = 0 for a prompt."""
        caches: list[Any] = [AppendingCache(k, v) for k, v in zip(keys, values, strict=True)]
        state = CachedState(caches)
        state.length = keys.shape[3]
        logits = self.net.step(ids, state)
        return LanguageOutput(logits, torch.stack([c.keys for c in caches]), torch.stack([c.values for c in caches]))


class RecurrentLanguageProgram(nn.Module):
    """The same of an LSTM, one token at a time."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, cell: Tensor
    ) -> RecurrentLanguageOutput:
        """Decode ids (B, 1) long with keys, values (B, h, T, d) and the LSTMs' states (n, B, E)."""
        cache = AppendingCache(keys, values)
        state = RecurrentLMState(hidden, cell, cache)
        state.length = keys.shape[2]
        logits = self.net.step(ids, state)
        return RecurrentLanguageOutput(logits, cache.keys, cache.values, state.hidden, state.cell)


def export_language_model(net: Any, name: str, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export `NAME`, checked against the model; see `export_model`.

    Raises:
        ExportError: A kernel keeps no keys and values, or the program differs from the model.
    """
    is_recurrent = isinstance(net, RecurrentLM)
    attentions = [net.attention] if is_recurrent else [layer.attention for layer in net.decoder.layers]
    examples = []
    for batch, length, past in ((3, 4, 3), (1, 6, 0), (2, 1, 5)):
        caches = [attention.make_cache(batch) for attention in attentions]
        for cache, attention in zip(caches, attentions, strict=True):
            if type(cache) is not KVCache:
                raise ExportError(f"attention kind {attention.kernel.kind!r} keeps no keys and values: no export.")
        seeded = torch.Generator().manual_seed(past)
        length = 1 if is_recurrent else length
        example = {"ids": torch.randint(4, 8, (batch, length), generator=seeded) % net.embedding.num_embeddings}
        for part in ("keys", "values"):
            _, h, _, d = getattr(caches[0], part).shape
            shape = (batch, h, past, d) if is_recurrent else (len(caches), batch, h, past, d)
            example[part] = torch.randn(shape, generator=seeded)
        if is_recurrent:
            states = (len(net.layers), batch, net.embed_dim)
            example |= {part: torch.randn(states, generator=seeded) for part in ("hidden", "cell")}
        examples.append(example)
    most = min(net.max_len, 1 << 20)
    if is_recurrent:
        cached = {0: BATCH, 2: Dim("past", max=most)}
        shapes = {"ids": {0: BATCH}, "keys": cached, "values": cached, "hidden": {1: BATCH}, "cell": {1: BATCH}}
        return export_model(RecurrentLanguageProgram(net), examples, shapes, folder, name, formats)
    cached = {1: BATCH, 3: Dim("past", max=most)}
    shapes = {"ids": {0: BATCH, 1: Dim("length", max=most)}, "keys": cached, "values": cached}
    return export_model(LanguageProgram(net), examples, shapes, folder, name, formats)
