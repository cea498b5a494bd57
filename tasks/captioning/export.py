"""Export of captioning as two programs: the encoder, and a step of the decoder with its cache as flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmattn.backbones.show_attend_tell import ShowAttendTell
from mmattn.tasks.captioning.model import CaptioningModel
from mmattn.tasks.captioning.public import PublicCaptioner
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
        if isinstance(self.net, PublicCaptioner):
            return Memory(*project(self.net.net.text, self.net.net.encode(pixel_values)))
        head = self.net.head
        memory = head.memory(self.net.encode(pixel_values))
        if isinstance(head.decoder, ShowAttendTell):
            state = head.decoder.start(memory)
            return RecurrentMemory(*project(head.decoder, memory), state.hidden, state.cell)
        return Memory(*project(head.decoder, head.decoder.encode(memory)))


def export_captioning(
    model: CaptioningModel | PublicCaptioner, size: tuple[int, int], folder: Path, formats: Sequence[str]
) -> list[str]:
    """Export `encoder` and `step` programs for images of a size (H, W); see `export_decoder`."""
    images = [{"pixel_values": torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(n))} for n in (3, 1, 4)]
    decoder = model.net.text if isinstance(model, PublicCaptioner) else model.head.decoder
    return export_decoder(EncoderProgram(model), step_of(decoder), images, {}, folder, formats)
