"""Export of the summarizers: the encoder and one decoder step with its copy mechanism; or the extractive model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from mmattn.tasks.common.export import export_model
from mmattn.tasks.common.seq2seq.export import (
    BATCH,
    Program,
    StepOutput,
    StepProgram,
    export_decoder,
    longest,
    project,
    text_example,
)
from mmattn.tasks.summarization.extractive import ExtractiveModel
from mmattn.tasks.summarization.model import SummarizationModel

MOST = 4096  # tokens, and sentences


class SummaryMemory(NamedTuple):
    """Output of the encoder for every step."""

    memory_keys: Tensor  # (n, B, h, S, d), one per layer
    memory_values: Tensor  # (n, B, h, S, d_v)
    memory: Tensor  # (B, S, E)
    copy_keys: Tensor  # (B, S, E); (B, S, 0) without a copy mechanism
    salience: Tensor  # (B, S); (B, 0) without a copy mechanism


class EncoderProgram(Program):
    """Documents to the inputs of every decoder step."""

    def forward(self, source_ids: Tensor, source_mask: Tensor, sentence_starts: Tensor) -> SummaryMemory:
        """Encode source_ids (B, S) long with source_mask (B, S) bool and sentence_starts (B, n) long."""
        memory = self.net.encode(source_ids, source_mask, sentence_starts)
        pair = project(self.net, memory)
        if self.net.copy_head is None:
            return SummaryMemory(*pair, memory, memory[:, :, :0], memory[:, :0, 0])
        head = self.net.copy_head
        return SummaryMemory(*pair, memory, head.keys(memory), head.salience(memory))


class CopyingStepProgram(StepProgram):
    """The last token and the cache to the log-probabilities of the next token and the extended cache."""

    def forward(  # type: ignore[override]
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
        """Decode ids (B, 1) long with keys, values (n, B, h, T, d), and the encoder's output and input."""
        extra = {"ids": source_ids, "key_mask": source_mask, "keys": copy_keys, "salience": salience}
        return super().forward(ids, keys, values, memory_keys, memory_values, source_mask, memory, extra)


def export_summarization(model: SummarizationModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export `encoder` and `step` programs; see `export_decoder`."""
    sources, lengths = _sources(model.embedding.num_embeddings, longest(model))
    return export_decoder(EncoderProgram(model), CopyingStepProgram(model), sources, lengths, folder, formats)


def export_extractive(model: ExtractiveModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export the `summarization` program: documents with sentence starts to scores; see `export_model`."""
    sources, lengths = _sources(model.encoder.embedding.num_embeddings, model.max_len or MOST)
    shapes = {name: {0: BATCH, 1: length} for name, length in lengths.items()}
    return export_model(model.eval().cpu(), sources, shapes, folder, "summarization", formats)


def _sources(vocab_size: int, most: int) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Example documents, and the dimensions of their lengths."""
    sources = [_example(vocab_size, *size) for size in ((3, 7), (1, 2), (4, 12))]
    text = dict.fromkeys(("source_ids", "source_mask"), Dim("length", max=most))
    return sources, text | {"sentence_starts": Dim("sentences", max=MOST)}


def _example(vocab_size: int, batch: int, length: int) -> dict[str, Tensor]:
    text = text_example(vocab_size, batch, length)
    starts = torch.arange(0, length, 3).expand(batch, -1)
    return text | {"sentence_starts": starts.where(starts < text["source_mask"].sum(1)[:, None], -1)}
