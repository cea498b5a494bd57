"""Export of what writes text: one program reads the source, one is a step of the decoder, its cache flat tensors.

Whoever runs them calls the encoder once, then the step again and again: its own keys and values go in as they came out,
none at first (a past of length 0), and the search is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.attention import CrossCache
from mmattn.backbones.recurrent import RecurrentSeq2Seq, RecurrentState
from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.blocks import DecoderLayerCache
from mmattn.generate import CachedState
from mmattn.kernels import KVCache
from mmattn.positions import LearnedPositions
from mmattn.tasks.common.export import ExportError, export_model

BATCH = Dim("batch", max=4096)


class Memory(NamedTuple):
    """What the encoder hands to every step: the source's keys and values, a layer each."""

    memory_keys: Tensor  # (n, B, h, S, d)
    memory_values: Tensor  # (n, B, h, S, d_v)


class StepOutput(NamedTuple):
    """What a step gives."""

    logits: Tensor  # (B, V)
    keys: Tensor  # (n, B, h, T + 1, d): the past's and the new token's
    values: Tensor  # (n, B, h, T + 1, d_v)


class RecurrentMemory(NamedTuple):
    """What an LSTM's encoder hands on."""

    memory_keys: Tensor  # (B, h, S, d)
    memory_values: Tensor  # (B, h, S, d_v)
    hidden: Tensor  # (n, B, H), the first states
    cell: Tensor  # (n, B, H)


class RecurrentOutput(NamedTuple):
    """What a step of an LSTM gives."""

    logits: Tensor  # (B, V)
    hidden: Tensor  # (n, B, H)
    cell: Tensor  # (n, B, H)


class _Appending(KVCache):
    """A cache that does not ask whether it is empty: a program must not depend on that."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        return self.keys, self.values


class EncoderProgram(nn.Module):
    """Source ids to the keys and values that every step of the decoder reads."""

    def __init__(self, net: Seq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(self, source_ids: Tensor, source_mask: Tensor) -> Memory:
        """source_ids (B, S) long, source_mask (B, S) bool."""
        memory = self.net.encode(source_ids, source_mask)
        pairs = [project(layer.cross_attention, memory) for layer in self.net.decoder.layers]
        return Memory(torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs]))


class StepProgram(nn.Module):
    """The newest token and the cache to the scores of the next token and the cache with it."""

    def __init__(self, net: Seq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        source_mask: Tensor,
    ) -> StepOutput:
        """ids (B, 1) long; keys, values (n, B, h, T, d); the encoder's output; source_mask (B, S) bool."""
        # The keys and values are there already: of the memory itself only that there is one counts.
        memory = memory_values[0].flatten(2)
        return run_step(self.net, ids, keys, values, memory_keys, memory_values, source_mask, memory)


def run_step(
    net: Seq2Seq,
    ids: Tensor,
    keys: Tensor,
    values: Tensor,
    memory_keys: Tensor,
    memory_values: Tensor,
    source_mask: Tensor,
    memory: Tensor,
    extra: Mapping[str, Tensor] | None = None,
) -> StepOutput:
    """A step of the decoder from flat tensors; memory and extra as `CachedState` has them, the rest as StepProgram."""
    caches = [
        DecoderLayerCache(_Appending(k, v), CrossCache(mk, mv))
        for k, v, mk, mv in zip(keys, values, memory_keys, memory_values, strict=True)
    ]
    state = CachedState(caches, memory, source_mask, extra)
    state.length = keys.shape[3]
    logits = net.step(ids, state)
    own: list[Any] = [cache.self_attention for cache in caches]
    return StepOutput(logits, torch.stack([c.keys for c in own]), torch.stack([c.values for c in own]))


class RecurrentEncoderProgram(nn.Module):
    """Source ids to what an LSTM decoder starts from and attends to."""

    def __init__(self, net: RecurrentSeq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(self, source_ids: Tensor, source_mask: Tensor) -> RecurrentMemory:
        """source_ids (B, S) long, source_mask (B, S) bool."""
        memory, hidden = self.net.encode(source_ids, source_mask)
        return RecurrentMemory(*project(self.net.cross_attention, memory), hidden.clone(), torch.zeros_like(hidden))


class RecurrentStepProgram(nn.Module):
    """The newest token and the LSTM's state to the scores of the next token and its new state."""

    def __init__(self, net: RecurrentSeq2Seq) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        ids: Tensor,
        hidden: Tensor,
        cell: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        source_mask: Tensor,
    ) -> RecurrentOutput:
        """ids (B, 1) long; hidden, cell (n, B, H); the encoder's output; source_mask (B, S) bool."""
        cache = CrossCache(memory_keys, memory_values)
        state = RecurrentState(hidden, cell, memory_values.transpose(1, 2).flatten(2), source_mask, cache)
        return RecurrentOutput(self.net.step(ids, state), state.hidden, state.cell)


def project(attention: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The keys (B, h, S, d) and values that a cross-attention makes of a memory (B, S, E)."""
    cache = attention.make_cache(memory.shape[0], cross=True)
    if cache.state is not None:
        raise ExportError(f"attention kind {attention.kernel.kind!r} keeps a state of its own: its step has no export.")
    attention(memory[:, :1], memory, cache=cache)
    return cache.keys, cache.values


def check_cache(net: Seq2Seq) -> None:
    """Raises an ExportError where a self-attention of the decoder keeps something else than keys and values."""
    for layer in net.decoder.layers:
        attention: Any = layer.self_attention
        if type(attention.make_cache(1)) is not KVCache:
            kind = attention.kernel.kind
            raise ExportError(f"attention kind {kind!r} keeps no keys and values: its step has no export.")


def export_net(net: Any, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write `encoder` and `step` programs, each checked against the model; see `export_model`.

    Args:
        net: a Seq2Seq or a RecurrentSeq2Seq.
        folder: made if missing.
        formats: of "torch", "onnx".

    Raises:
        ExportError: a program differs from the model, or a kernel cannot be exported so.
    """
    net = net.eval().cpu()
    recurrent = isinstance(net, RecurrentSeq2Seq)
    if not recurrent:
        check_cache(net)
    encoder: nn.Module = RecurrentEncoderProgram(net) if recurrent else EncoderProgram(net)
    step: nn.Module = RecurrentStepProgram(net) if recurrent else StepProgram(net)
    sources = [_source(net, *size) for size in ((3, 7), (1, 1), (4, 12))]
    with torch.no_grad():
        steps = [
            step_example(encoder(**source)._asdict(), {"source_mask": source["source_mask"]}, past)
            for source, past in zip(sources, (3, 0, 5), strict=True)
        ]
    length, past = dynamic_lengths(net)
    source_shape: dict[str, dict[int, Any]] = {name: {0: BATCH, 1: length} for name in ("source_ids", "source_mask")}
    shapes: dict[str, dict[int, Any]] = {"ids": {0: BATCH}, "source_mask": {0: BATCH, 1: length}}
    batch, rows = (0, 2) if recurrent else (1, 3)
    shapes |= {name: {batch: BATCH, rows: length} for name in ("memory_keys", "memory_values")}
    if recurrent:
        shapes |= {name: {1: BATCH} for name in ("hidden", "cell")}
    else:
        shapes |= {name: {1: BATCH, 3: past} for name in ("keys", "values")}
    lines = export_model(encoder, sources, source_shape, folder, "encoder", formats)
    return lines + export_model(step, steps, shapes, folder, "step", formats)


def _source(net: Any, batch: int, length: int) -> dict[str, Tensor]:
    table = net.encoder.embedding if isinstance(net, RecurrentSeq2Seq) else net.embedding
    ids = torch.arange(batch * length).view(batch, length) % table.num_embeddings
    mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
    return {"source_ids": ids, "source_mask": mask}


def step_example(memory: dict[str, Tensor], mask: dict[str, Tensor], past: int) -> dict[str, Tensor]:
    """A step's inputs after so many tokens, for what an encoder program gave and the mask (B, S) that it was given."""
    given = dict(memory)
    batch = len(next(iter(mask.values())))
    ids = torch.arange(batch)[:, None] + 4
    if "hidden" not in given:
        n, _, h, _, d = given["memory_keys"].shape
        shape = (n, batch, h, past)
        values = given["memory_values"].shape[-1]
        seeded = torch.Generator().manual_seed(past)
        given |= {
            "keys": torch.randn(*shape, d, generator=seeded),
            "values": torch.randn(*shape, values, generator=seeded),
        }
    return {"ids": ids} | given | mask


def dynamic_lengths(net: nn.Module) -> tuple[Any, Any]:
    """The dimensions "length" of a source and "past" of what is written, as long as learned positions allow."""
    longest = min([4096, *(m.max_len for m in net.modules() if isinstance(m, LearnedPositions))])
    return Dim("length", max=longest), Dim("past", max=longest - 1)
