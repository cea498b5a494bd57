"""Export of public speech models: scores of letters from samples; Whisper as what listens and a step of what writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.backbones.whisper import Whisper
from mmattn.tasks.asr.export import EncoderProgram, Scored
from mmattn.tasks.asr.public_ctc import PublicModel as PublicCTC
from mmattn.tasks.asr.public_whisper import PublicModel as PublicWhisper
from mmattn.tasks.common.export import export_model
from mmattn.tasks.common.seq2seq.export import (
    BATCH,
    Memory,
    StepOutput,
    check_cache,
    dynamic_lengths,
    project,
    run_step,
    step_example,
)

SECONDS = ((3, 1.3), (1, 0.7), (2, 2.1))  # recordings and their length in the examples
RATE = 16_000  # of the examples: any would do


class AlikeProgram(nn.Module):
    """Samples of recordings of one length to CTC's scores: what normalises over time can be told of no padding."""

    def __init__(self, model: PublicCTC) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Scored:
        """features (B, n)."""
        states, mask = self.model.encode(features)
        return Scored(self.model.head.log_probs(states), mask)


class WhisperEncoder(nn.Module):
    """A window's log-mel frames to the keys and values that every step reads."""

    def __init__(self, net: Whisper) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> Memory:
        """features (B, T, M), T of a window."""
        memory = self.net.encode(features)
        pairs = [project(layer.cross_attention, memory) for layer in self.net.decoder.layers]
        return Memory(*(torch.stack(side) for side in zip(*pairs, strict=True)))


class WhisperStep(nn.Module):
    """The newest token and the cache to the scores of the next token and the cache with it."""

    def __init__(self, net: Whisper) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, keys: Tensor, values: Tensor, memory_keys: Tensor, memory_values: Tensor
    ) -> StepOutput:
        """ids (B, 1) long; keys, values (n, B, h, T, d); the encoder's output."""
        # The keys and values are there already: of the memory itself only that there is one counts.
        memory: Any = memory_values[0].flatten(2)
        mask: Any = None  # all of a window is heard
        return run_step(self.net, ids, keys, values, memory_keys, memory_values, mask, memory)


def export_ctc(model: PublicCTC, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write an `encoder` program that gives CTC's scores, checked against the model; see `export_model`.

    That of a base model, which normalises over time, takes recordings of one length.
    """
    model = model.eval().cpu()
    samples = Dim("samples", min=model.net.receptive_field + model.net.hop, max=1 << 22)  # of two frames
    sources = []
    for batch, seconds in SECONDS:
        count = round(seconds * RATE)
        given = {"features": torch.randn(batch, count, generator=torch.Generator().manual_seed(count))}
        if not model.by_clip:
            given["feature_mask"] = torch.arange(count) < torch.tensor([[count - 4000 * n] for n in range(batch)])
        sources.append(given)
    shapes = {name: {0: BATCH, 1: samples} for name in sources[0]}
    program: Any = AlikeProgram(model) if model.by_clip else EncoderProgram(model)
    return export_model(program, sources, shapes, folder, "encoder", formats)


def export_whisper(model: PublicWhisper, frames: int, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write `encoder` and `step` programs, each checked against the model; see `export_model`.

    Args:
        model: which.
        frames: of a window.
        folder: made if missing.
        formats: of "torch", "onnx".

    Raises:
        ExportError: a program differs from the model, or a kernel cannot be exported so.
    """
    net = model.net.eval().cpu()
    check_cache(net)
    encoder, step = WhisperEncoder(net), WhisperStep(net)
    size = (frames, net.conv1.in_channels)
    sources = [{"features": torch.randn(n, *size, generator=torch.Generator().manual_seed(n))} for n in (3, 1, 2)]
    steps = []
    with torch.no_grad():
        for source, past in zip(sources, (3, 0, 5), strict=True):
            mask = {"mask": torch.ones(len(source["features"]), 1)}
            steps.append(step_example(encoder(**source)._asdict(), mask, past))
            del steps[-1]["mask"]
    _, past_length = dynamic_lengths(net)
    shapes: dict[str, dict[int, Any]] = {"ids": {0: BATCH}}
    shapes |= {name: {1: BATCH} for name in ("memory_keys", "memory_values")}
    shapes |= {name: {1: BATCH, 3: past_length} for name in ("keys", "values")}
    lines = export_model(encoder, sources, {"features": {0: BATCH}}, folder, "encoder", formats)
    return lines + export_model(step, steps, shapes, folder, "step", formats)
