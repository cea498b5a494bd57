"""Export of the recogniser: what listens, with CTC's scores, and one step of what writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmattn.backbones.recurrent import RecurrentDecoder
from mmattn.tasks.asr.model import ASRModel
from mmattn.tasks.common.export import export_model
from mmattn.tasks.common.seq2seq.export import (
    BATCH,
    RecurrentStepProgram,
    StepProgram,
    check_cache,
    project,
    step_example,
)

FRAMES, LENGTH, PAST = Dim("frames", min=8, max=1 << 16), Dim("length", max=1 << 16), Dim("past", max=4095)
EXAMPLES = ((3, 40), (1, 24), (4, 61))  # clips and frames


class Scored(NamedTuple):
    """CTC's scores, which are an answer already."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool, True = a real frame


class Listened(NamedTuple):
    """And what every step of a transformer reads."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool
    memory_keys: Tensor  # (n, B, h, S, d), a layer each
    memory_values: Tensor  # (n, B, h, S, d_v)


class RecurrentListened(NamedTuple):
    """And what an LSTM begins with and every step of it reads."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool
    memory_keys: Tensor  # (B, h, S, d)
    memory_values: Tensor  # (B, h, S, d_v)
    hidden: Tensor  # (n, B, H), the first states
    cell: Tensor  # (n, B, H)


class EncoderProgram(nn.Module):
    """Log-mel frames to CTC's scores and what the decoder reads."""

    def __init__(self, model: ASRModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, feature_mask: Tensor) -> Scored | Listened | RecurrentListened:
        """features (B, T, M), feature_mask (B, T) bool."""
        states, mask = self.model.encode(features, feature_mask)
        log_p = self.model.head.log_probs(states)
        decoder: Any = self.model.head.decoder
        if decoder is None:
            return Scored(log_p, mask)
        if isinstance(decoder, RecurrentDecoder):
            state = decoder.start(states, mask)
            pair = project(decoder.cross_attention, states)
            return RecurrentListened(log_p, mask, *pair, state.hidden.clone(), state.cell.clone())
        memory = decoder.encode(states, mask)
        pairs = [project(layer.cross_attention, memory) for layer in decoder.decoder.layers]
        return Listened(log_p, mask, *(torch.stack(side) for side in zip(*pairs, strict=True)))


def export_recogniser(model: ASRModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Write `encoder` and, where there is a decoder, `step` programs, each checked against the model.

    Args:
        model: which.
        folder: made if missing.
        formats: of "torch", "onnx".

    Raises:
        ExportError: a program differs from the model, or a kernel cannot be exported so.
    """
    model = model.eval().cpu()
    decoder: Any = model.head.decoder
    recurrent = isinstance(decoder, RecurrentDecoder)
    if decoder is not None and not recurrent:
        check_cache(decoder)
    encoder = EncoderProgram(model)
    sources = [_frames(model.num_mels, *size) for size in EXAMPLES]
    shapes: dict[str, dict[int, Any]] = {name: {0: BATCH, 1: FRAMES} for name in ("features", "feature_mask")}
    with torch.no_grad():
        heard = [encoder(**source)._asdict() for source in sources]  # which refuses what has no export
    lines = export_model(encoder, sources, shapes, folder, "encoder", formats)
    if decoder is None:
        return lines
    steps = []
    for given, past in zip(heard, (3, 0, 5), strict=True):
        mask = {"source_mask": given.pop("frame_mask")}
        del given["ctc_log_probs"]
        steps.append(step_example(given, mask, past))
    batch, rows = (0, 2) if recurrent else (1, 3)
    shapes = {"ids": {0: BATCH}, "source_mask": {0: BATCH, 1: LENGTH}}
    shapes |= {name: {batch: BATCH, rows: LENGTH} for name in ("memory_keys", "memory_values")}
    if recurrent:
        shapes |= {name: {1: BATCH} for name in ("hidden", "cell")}
    else:
        shapes |= {name: {1: BATCH, 3: PAST} for name in ("keys", "values")}
    step: nn.Module = RecurrentStepProgram(decoder) if recurrent else StepProgram(decoder)
    return lines + export_model(step, steps, shapes, folder, "step", formats)


def _frames(num_mels: int, batch: int, length: int) -> dict[str, Tensor]:
    features = torch.randn(batch, length, num_mels, generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.tensor([[max(8, length - 3 * n)] for n in range(batch)])
    return {"features": features, "feature_mask": mask}
