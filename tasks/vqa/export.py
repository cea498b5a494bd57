"""Export of VQA: one program, or two of a model that writes its answers: the encoder, and a step of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from mmattn.tasks.common.export import export_model
from mmattn.tasks.common.seq2seq.export import Memory, Program, export_decoder, project, step_of
from mmattn.tasks.vqa.public import PublicAnswerer


class AnswererProgram(Program):
    """Images and questions to the inputs of every decoder step."""

    def forward(self, pixel_values: Tensor, source_ids: Tensor, source_mask: Tensor) -> Memory:
        """Encode pixel_values (B, 3, H, W) and questions, source_ids (B, S) long with source_mask (B, S) bool."""
        return Memory(*project(self.net.net.text, self.net.encode(pixel_values, source_ids, source_mask)))


def export_vqa(model: Any, processor: Any, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export a model for images of its processor's size; see `export_model` and `export_decoder`.

    Args:
        model: A `VQAModel`, a `PublicVilt` or a `PublicAnswerer`.
        processor: Its processor.
        folder: Created if missing.
        formats: Of "torch", "onnx".
    """
    most = model.max_text_len
    examples = [_example(processor, batch, min(length, most)) for batch, length in ((2, 9), (1, 3), (5, 14))]
    if isinstance(model, PublicAnswerer):
        names = {"input_ids": "source_ids", "key_mask": "source_mask"}
        sources = [{names.get(key, key): value for key, value in example.items()} for example in examples]
        lengths = dict.fromkeys(names.values(), Dim("length", max=most))
        return export_decoder(AnswererProgram(model), step_of(model.net.text), sources, lengths, folder, formats)
    batch, length = Dim("batch", max=4096), Dim("length", max=most)
    dynamic = {"pixel_values": {0: batch}, "input_ids": {0: batch, 1: length}, "key_mask": {0: batch, 1: length}}
    return export_model(model, examples, dynamic, folder, "vqa", formats)


def _example(processor: Any, batch: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(2, processor.tokenizer.vocab_size, (batch, length), generator=generator)
    mask = torch.arange(length)[None] < torch.tensor([[max(1, length - n)] for n in range(batch)])
    pixels = torch.randn(batch, 3, *processor.image.size, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids.masked_fill(~mask, 0), "key_mask": mask}
