"""Export of text models as two programs, an encoder and one decoder step, whose cache is flat tensors.

The caller runs the encoder once and the step repeatedly: the keys and values of the step (in ONNX `next_keys` and
`next_values`) are passed on from call to call, with a past of length 0 at first; the search is the caller's. Tasks
define the output of their encoder as a named tuple of tensors; a step takes those of them, and of the encoder's inputs,
that its `forward` names.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.attention import CrossCache
from mmattn.backbones.git import GitDecoder, PrefixState
from mmattn.backbones.recurrent import RecurrentDecoder, RecurrentSeq2Seq, RecurrentState
from mmattn.backbones.show_attend_tell import ShowAttendTell
from mmattn.blocks import DecoderLayerCache
from mmattn.generate import CachedState
from mmattn.kernels import KVCache
from mmattn.positions import LearnedPositions
from mmattn.tasks.common.export import ExportError, export_model

BATCH = Dim("batch", max=4096)
RECURRENT = (RecurrentDecoder, ShowAttendTell)  # decoders whose state is not a cache
PASTS = (3, 0, 5)  # numbers of previous tokens in the examples


class Memory(NamedTuple):
    """Output of the encoder for every step: the source's keys and values, one tensor row per layer."""

    memory_keys: Tensor  # (n, B, h, S, d)
    memory_values: Tensor  # (n, B, h, S, d_v)


class StepOutput(NamedTuple):
    """Output of a step."""

    logits: Tensor  # (B, V)
    keys: Tensor  # (n, B, h, T + 1, d), the new token last
    values: Tensor  # (n, B, h, T + 1, d_v)


class RecurrentMemory(NamedTuple):
    """Output of the encoder of an LSTM."""

    memory_keys: Tensor  # (B, h, S, d)
    memory_values: Tensor  # (B, h, S, d_v)
    hidden: Tensor  # (n, B, H), the initial state
    cell: Tensor  # (n, B, H)


class RecurrentOutput(NamedTuple):
    """Output of a step of an LSTM."""

    logits: Tensor  # (B, V)
    hidden: Tensor  # (n, B, H)
    cell: Tensor  # (n, B, H)


class AppendingCache(KVCache):
    """A cache without a branch for the empty state, on which a program must not depend."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        return self.keys, self.values


class Program(nn.Module):
    """A part of a network, or of a task's model, to export; `forward` defines its inputs and outputs."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net


class EncoderProgram(Program):
    """Source ids to the inputs of every decoder step, and the initial state of an LSTM."""

    def forward(self, source_ids: Tensor, source_mask: Tensor) -> Memory | RecurrentMemory:
        """Encode source_ids (B, S) long with source_mask (B, S) bool."""
        if isinstance(self.net, RecurrentSeq2Seq):
            memory, hidden = self.net.encode(source_ids, source_mask)
            return RecurrentMemory(*project(self.net, memory), hidden.clone(), torch.zeros_like(hidden))
        return Memory(*project(self.net, self.net.encode(source_ids, source_mask)))


class StepProgram(Program):
    """The last token and the cache to the logits of the next token and the extended cache."""

    def forward(
        self,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        source_mask: Tensor | None = None,
        memory: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> StepOutput:
        """Decode ids (B, 1) long with keys, values (n, B, h, T, d); source_mask (B, S) bool, None: all are real.

        Models that read more than keys and values also pass memory and extra, as in `CachedState`.
        """
        if memory is None:  # a placeholder, since its keys and values are given
            memory = memory_values[0].flatten(2)
        caches = [
            DecoderLayerCache(AppendingCache(k, v), CrossCache(mk, mv))
            for k, v, mk, mv in zip(keys, values, memory_keys, memory_values, strict=True)
        ]
        state = CachedState(caches, memory, source_mask, extra)
        state.length = keys.shape[3]
        logits = self.net.step(ids, state)
        own: list[Any] = [cache.self_attention for cache in caches]
        return StepOutput(logits, torch.stack([c.keys for c in own]), torch.stack([c.values for c in own]))


class PrefixStepProgram(Program):
    """The same of a GitDecoder, to which memory and cache are one sequence."""

    def forward(
        self, ids: Tensor, keys: Tensor, values: Tensor, memory_keys: Tensor, memory_values: Tensor
    ) -> StepOutput:
        """Decode ids (B, 1) long with keys, values (n, B, h, T, d)."""
        prefix = memory_keys.shape[3]
        joint = zip(torch.cat([memory_keys, keys], dim=3), torch.cat([memory_values, values], dim=3), strict=True)
        caches: list[Any] = [AppendingCache(k, v) for k, v in joint]
        state = PrefixState(caches, prefix)
        state.length = keys.shape[3]
        logits = self.net.step(ids, state)
        own = [(cache.keys[:, :, prefix:], cache.values[:, :, prefix:]) for cache in caches]
        return StepOutput(logits, torch.stack([k for k, _ in own]), torch.stack([v for _, v in own]))


class RecurrentStepProgram(Program):
    """The last token and the LSTM's state to the logits of the next token and the new state."""

    def forward(
        self,
        ids: Tensor,
        hidden: Tensor,
        cell: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        source_mask: Tensor | None = None,
    ) -> RecurrentOutput:
        """Decode ids (B, 1) long; hidden, cell (n, B, H); the encoder's output; source_mask (B, S) bool, or None."""
        cache = CrossCache(memory_keys, memory_values)
        state = RecurrentState(hidden, cell, memory_values.transpose(1, 2).flatten(2), source_mask, cache)
        return RecurrentOutput(self.net.step(ids, state), state.hidden, state.cell)


def step_of(net: Any) -> Program:
    """The step program of a decoder."""
    if isinstance(net, GitDecoder):
        return PrefixStepProgram(net)
    return RecurrentStepProgram(net) if isinstance(net, RECURRENT) else StepProgram(net)


def project(net: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a memory (B, S, E) in a decoder's attention to it, stacked over layers for a transformer.

    See `Memory`.

    Raises:
        ExportError: A kernel has another cache.
    """
    if isinstance(net, RECURRENT):
        return _keys_and_values(net.cross_attention, memory)
    if isinstance(net, GitDecoder):
        caches = net.start_from(memory).caches
        _check_caches(net, caches)
        return torch.stack([cache.keys for cache in caches]), torch.stack([cache.values for cache in caches])
    pairs = [_keys_and_values(layer.cross_attention, memory) for layer in net.decoder.layers]
    return torch.stack([keys for keys, _ in pairs]), torch.stack([values for _, values in pairs])


def _keys_and_values(attention: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
    cache = attention.make_cache(memory.shape[0], cross=True)
    if cache.state is not None:
        raise ExportError(f"attention kind {attention.kernel.kind!r} keeps a state of its own: no export of its step.")
    attention(memory[:, :1], memory, cache=cache)
    return cache.keys, cache.values


def export_net(net: Any, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export `encoder` and `step` programs of a Seq2Seq or a RecurrentSeq2Seq; see `export_decoder`."""
    vocab_size = (net.encoder if isinstance(net, RecurrentSeq2Seq) else net).embedding.num_embeddings
    sources = [text_example(vocab_size, *size) for size in ((3, 7), (1, 1), (4, 12))]
    lengths = dict.fromkeys(sources[0], Dim("length", max=longest(net)))
    return export_decoder(EncoderProgram(net), step_of(net), sources, lengths, folder, formats)


def text_example(vocab_size: int, batch: int, length: int) -> dict[str, Tensor]:
    """Ids and mask of example texts, each a token shorter than the previous one."""
    ids = torch.arange(batch * length).view(batch, length) % vocab_size
    mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
    return {"source_ids": ids, "source_mask": mask}


def longest(net: nn.Module) -> int:
    """Maximum number of tokens that learned positions allow."""
    return min([4096, *(m.max_len for m in net.modules() if isinstance(m, LearnedPositions))])


def export_decoder(
    encoder: nn.Module,
    step: Program | None,
    sources: Sequence[Mapping[str, Tensor]],
    lengths: Mapping[str, Any],
    folder: Path,
    formats: Sequence[str],
    *,
    memory_length: Any = None,
    renamed: Mapping[str, str] | None = None,
) -> list[str]:
    """Export `encoder` and `step` programs, each checked against the model; see `export_model`.

    Args:
        encoder: Maps sources by name to a named tuple of tensors.
        step: Step of the decoder `.net`; its inputs are named as the encoder's outputs and sources, and `ids`, `keys`
            and `values`. None: there is no decoder.
        sources: Examples (B, length, ...), each of another batch size and, if it is dynamic, another length.
        lengths: Dimension of each source's length; a source without one has the fixed length of the example.
        folder: Created if missing.
        formats: Of "torch", "onnx".
        memory_length: Dimension of the encoder's output; by default of at most `longest` tokens.
        renamed: Names in the step of some outputs of the encoder.

    Raises:
        ExportError: A program differs from the model, or a kernel cannot be exported.
    """
    encoder = encoder.eval().cpu()
    shapes = {name: {0: BATCH} | ({1: lengths[name]} if name in lengths else {}) for name in sources[0]}
    if step is None:
        return export_model(encoder, sources, shapes, folder, "encoder", formats)
    known = inspect.signature(step.eval().cpu().forward).parameters
    steps = []
    for source, past in zip(sources, PASTS, strict=True):
        batch = len(next(iter(source.values())))
        with torch.no_grad():
            given = {"ids": torch.arange(batch)[:, None] + 4, **encoder(**source)._asdict()}
        given |= {**_cache(step.net, batch, past), **source}
        given |= {new: given[name] for name, new in (renamed or {}).items()}
        steps.append({name: tensor for name, tensor in given.items() if name in known})
    most = longest(step.net)
    dimensions = {tuple(len(example["ids"]) for example in steps): BATCH, PASTS: Dim("past", max=most - 1)}
    memory_length = Dim("length", max=most) if memory_length is None else memory_length
    lines = export_model(encoder, sources, shapes, folder, "encoder", formats)
    free = {name: _free([example[name] for example in steps], dimensions, memory_length) for name in steps[0]}
    return lines + export_model(step, steps, free, folder, "step", formats)


def _cache(net: Any, batch: int, past: int) -> dict[str, Tensor]:
    """Keys and values of `past` tokens, (n, B, h, past, d) each; empty for an LSTM, whose state the encoder returns."""
    if isinstance(net, RECURRENT):
        return {}
    caches: list[Any] = [attention.make_cache(batch) for attention in _self_attentions(net)]
    _check_caches(net, caches)
    seeded, found = torch.Generator().manual_seed(past), {}
    for name in ("keys", "values"):
        _, h, _, d = getattr(caches[0], name).shape
        found[name] = torch.randn(len(caches), batch, h, past, d, generator=seeded)
    return found


def _self_attentions(net: Any) -> list[Any]:
    return [layer.attention if isinstance(net, GitDecoder) else layer.self_attention for layer in net.decoder.layers]


def _check_caches(net: Any, caches: Sequence[Any]) -> None:
    for cache, attention in zip(caches, _self_attentions(net), strict=True):
        if type(cache) is not KVCache:
            kind = attention.kernel.kind
            raise ExportError(f"attention kind {kind!r} keeps no keys and values: no export of its step.")


def _free(examples: Sequence[Tensor], dimensions: Mapping[tuple[int, ...], Any], length: Any) -> dict[int, Any]:
    """The dynamic dimensions of an input: those in which its examples differ.

    Args:
        examples: Examples of the input.
        dimensions: Dimensions by their sizes in the examples; all others have the source's length.
        length: Dimension of the source's length.
    """
    sizes = enumerate(zip(*(example.shape for example in examples), strict=True))
    return {place: dimensions.get(size, length) for place, size in sizes if len(set(size)) > 1}
