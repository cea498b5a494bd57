"""Export of captioning as two programs: the encoder, and a step of the decoder with its cache as flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmattn.backbones.show_attend_tell import ShowAttendTell
from mmattn.tasks.captioning.model import CaptioningModel
from mmattn.tasks.common.seq2seq.export import (
    Memory,
    Program,
    RecurrentMemory,
    export_decoder,
    project,
    step_of,
)


class EncoderProgram(Program):
    """Images to the inputs of every decoder step, and the initial state of an LSTM."""

    def forward(self, pixel_values: Tensor) -> Memory | RecurrentMemory:
        """Encode pixel_values (B, 3, H, W)."""
        head = self.net.head
        memory = head.memory(self.net.encode(pixel_values))
        if isinstance(head.decoder, ShowAttendTell):
            state = head.decoder.start(memory)
            return RecurrentMemory(*project(head.decoder, memory), state.hidden, state.cell)
        return Memory(*project(head.decoder, head.decoder.encode(memory)))


def export_captioning(model: CaptioningModel, folder: Path, formats: Sequence[str]) -> list[str]:
    """Export `encoder` and `step` programs for images of the model's size; see `export_decoder`."""
    side = model.image_size
    images = [
        {"pixel_values": torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))} for n in (3, 1, 4)
    ]
    return export_decoder(EncoderProgram(model), step_of(model.head.decoder), images, {}, folder, formats)
