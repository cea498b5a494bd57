"""Export of the summarizer: what reads the document, and one step of what writes and copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.tasks.common.export import export_model
from mmattn.tasks.common.seq2seq.export import BATCH, StepOutput, check_cache, dynamic_lengths, project, run_step
from mmattn.tasks.summarization.model import SummarizationModel

SENTENCES = Dim("sentences", max=4096)


class SummaryMemory(NamedTuple):
    """What the encoder hands to every step."""

    memory_keys: Tensor  # (n, B, h, S, d), a layer each
    memory_values: Tensor  # (n, B, h, S, d_v)
    memory: Tensor  # (B, S, E)
    copy_keys: Tensor  # (B, S, E); (B, S, 0) where nothing is copied
    salience: Tensor  # (B, S); (B, 0) where nothing is copied


class EncoderProgram(nn.Module):
    """Documents to what every step reads."""

    def __init__(self, model: SummarizationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_ids: Tensor, source_mask: Tensor, sentence_starts: Tensor) -> SummaryMemory:
        """source_ids (B, S) long, source_mask (B, S) bool, sentence_starts (B, n) long."""
        memory = self.model.encode(source_ids, source_mask, sentence_starts)
        pairs = [project(layer.cross_attention, memory) for layer in self.model.decoder.layers]
        keys, values = (torch.stack(side) for side in zip(*pairs, strict=True))
        if self.model.copy_head is None:
            return SummaryMemory(keys, values, memory, memory[:, :, :0], memory[:, :0, 0])
        head = self.model.copy_head
        return SummaryMemory(keys, values, memory, head.keys(memory), head.salience(memory))


class StepProgram(nn.Module):
    """The newest token and the cache to the scores of the next token and the cache with it."""

    def __init__(self, model: SummarizationModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        memory: Tensor,
        copy_keys: Tensor,
        salience: Tensor,
        source_ids: Tensor,
        source_mask: Tensor,
    ) -> StepOutput:
        """ids (B, 1) long; keys, values (n, B, h, T, d); the encoder's output and input."""
        extra = {"ids": source_ids, "key_mask": source_mask, "keys": copy_keys, "salience": salience}
        given = (ids, keys, values, memory_keys, memory_values, source_mask, memory)
        return run_step(self.model, *given, extra=extra)


def export_summarizer(model: SummarizationModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write `encoder` and `step` programs, each checked against the model; see `tasks.common.export.export_model`.

    Args:
        model: which.
        folder: made if missing.
        formats: of "torch", "onnx".

    Raises:
        ExportError: a program differs from the model, or a kernel cannot be exported so.
    """
    model = model.eval().cpu()
    check_cache(model)
    encoder, step = EncoderProgram(model), StepProgram(model)
    sources = [_source(model, *size) for size in ((3, 7), (1, 2), (4, 12))]
    with torch.no_grad():
        steps = [_step(model, encoder, source, past) for source, past in zip(sources, (3, 2, 5), strict=True)]
    length, past = dynamic_lengths(model)
    text: dict[str, dict[int, Any]] = {name: {0: BATCH, 1: length} for name in ("source_ids", "source_mask")}
    shapes = text | {"ids": {0: BATCH}, "memory": {0: BATCH, 1: length}}
    shapes |= {name: {1: BATCH, 3: past} for name in ("keys", "values")}
    shapes |= {name: {1: BATCH, 3: length} for name in ("memory_keys", "memory_values")}
    shapes["copy_keys"] = {0: BATCH, 1: length}
    shapes["salience"] = {0: BATCH, 1: length} if model.copy_head is not None else {0: BATCH}
    starts = {"sentence_starts": {0: BATCH, 1: SENTENCES}}
    lines = export_model(encoder, sources, text | starts, folder, "encoder", formats)
    return lines + export_model(step, steps, shapes, folder, "step", formats)


def _source(model: SummarizationModel, batch: int, length: int) -> dict[str, Tensor]:
    ids = torch.arange(batch * length).view(batch, length) % model.embedding.num_embeddings
    mask = torch.arange(length) < torch.tensor([[max(1, length - n)] for n in range(batch)])
    starts = torch.arange(0, length, 3).expand(batch, -1)
    return {"source_ids": ids, "source_mask": mask, "sentence_starts": starts.where(starts < mask.sum(1)[:, None], -1)}


def _step(model: SummarizationModel, encoder: nn.Module, source: dict[str, Tensor], past: int) -> dict[str, Tensor]:
    """A step's inputs after so many tokens."""
    given = encoder(**source)._asdict()
    state = model.start(source["source_ids"], source["source_mask"], source["sentence_starts"])
    batch = len(source["source_ids"])
    tokens = torch.arange(batch * (past + 1)).view(batch, -1) % model.embedding.num_embeddings
    model.step(tokens[:, :past], state)
    own = [cache.self_attention for cache in state.caches]
    given |= {
        "keys": torch.stack([cache.keys for cache in own]),
        "values": torch.stack([cache.values for cache in own]),
    }
    return {"ids": tokens[:, past:], **given, "source_ids": source["source_ids"], "source_mask": source["source_mask"]}
