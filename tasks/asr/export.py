"""Export of speech models: the encoder with CTC's log-probabilities and, if there is a decoder, one decoder step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from mmattn.backbones.recurrent import RecurrentDecoder
from mmattn.backbones.whisper import Whisper
from mmattn.tasks.asr.model import ASRModel, PublicCTC
from mmattn.tasks.common.seq2seq.export import Memory, Program, export_decoder, project, step_of

FRAMES, LENGTH = Dim("frames", min=8, max=1 << 16), Dim("length", max=1 << 16)
CLIPS = ((3, 40), (1, 24), (4, 61))  # example inputs: batch size and frames
RECORDINGS = ((3, 20_800), (1, 11_200), (2, 33_600))  # likewise, batch size and samples


class CTCScores(NamedTuple):
    """Output of an encoder with CTC alone."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool, True = a real frame


class AudioMemory(NamedTuple):
    """Output of an encoder with a transformer decoder, whose steps read the keys and values."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool
    memory_keys: Tensor  # (n, B, h, S, d), one per layer
    memory_values: Tensor  # (n, B, h, S, d_v)


class RecurrentAudioMemory(NamedTuple):
    """Output of an encoder with an LSTM decoder: its keys and values, and its initial state."""

    ctc_log_probs: Tensor  # (B, S, V)
    frame_mask: Tensor  # (B, S) bool
    memory_keys: Tensor  # (B, h, S, d)
    memory_values: Tensor  # (B, h, S, d_v)
    hidden: Tensor  # (n, B, H), the initial state
    cell: Tensor  # (n, B, H)


class EncoderProgram(Program):
    """Log-mel frames, or samples, to CTC's log-probabilities and the decoder's inputs."""

    def forward(
        self, features: Tensor, feature_mask: Tensor | None = None
    ) -> CTCScores | AudioMemory | RecurrentAudioMemory:
        """Encode features (B, T, M) or (B, n) with feature_mask (B, T) or (B, n) bool; None: all of the same length."""
        states, mask = self.net.encode(features, feature_mask)
        log_p = self.net.head.log_probs(states)
        decoder: Any = self.net.head.decoder
        if decoder is None:
            return CTCScores(log_p, mask)
        if isinstance(decoder, RecurrentDecoder):
            state = decoder.start(states, mask)
            return RecurrentAudioMemory(
                log_p, mask, *project(decoder, states), state.hidden.clone(), state.cell.clone()
            )
        return AudioMemory(log_p, mask, *project(decoder, decoder.encode(states, mask)))


class WhisperEncoder(Program):
    """The log-mel frames of a window to the keys and values of the decoder steps."""

    def forward(self, features: Tensor) -> Memory:
        """Encode features (B, T, M), T the frames of a window."""
        return Memory(*project(self.net, self.net.encode(features)))


def export_asr(model: ASRModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export an `encoder` program and, if there is a decoder, a `step` program; see `export_decoder`."""
    sources = [_example(batch, length, 3, model.num_mels) for batch, length in CLIPS]
    step = None if model.head.decoder is None else step_of(model.head.decoder)
    places: tuple[Any, ...] = (sources, dict.fromkeys(sources[0], FRAMES), folder, formats)
    renamed = {"frame_mask": "source_mask"}
    return export_decoder(EncoderProgram(model), step, *places, memory_length=LENGTH, renamed=renamed)


def export_ctc(model: PublicCTC, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export an `encoder` program that returns CTC's log-probabilities; see `export_decoder`.

    The program of a base model takes recordings of one length, since it normalizes over time and supports no mask.
    """
    samples = Dim("samples", min=model.net.receptive_field + model.net.hop, max=1 << 22)  # of two frames
    sources = [_example(batch, length, 4000) for batch, length in RECORDINGS]
    if model.by_clip:
        sources = [{"features": source["features"]} for source in sources]
    return export_decoder(EncoderProgram(model), None, sources, dict.fromkeys(sources[0], samples), folder, formats)


def export_whisper(net: Whisper, frames: int, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export `encoder` and `step` programs for windows of `frames` frames; see `export_decoder`."""
    sources = [{"features": _example(n, frames, 0, net.conv1.in_channels)["features"]} for n in (3, 1, 2)]
    return export_decoder(WhisperEncoder(net), step_of(net), sources, {}, folder, formats)


def _example(batch: int, length: int, shorter: int, *sizes: int) -> dict[str, Tensor]:
    """Random features (B, length, *sizes) and their mask, each row `shorter` frames shorter than the previous one."""
    features = torch.randn(batch, length, *sizes, generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.tensor([[max(8, length - shorter * n)] for n in range(batch)])
    return {"features": features, "feature_mask": mask}
