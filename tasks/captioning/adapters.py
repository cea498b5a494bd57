"""Adapters of captioning: public image encoders, from which captions are learnt."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.captioning.processor import PublicInputs
from mmattn.tasks.common.adapter import FREE, Adapter, CheckpointParts
from mmattn.tasks.common.finetune import init_others
from mmattn.tasks.common.images import read_image_encoder
from mmattn.tasks.common.sources import Source

# Keywords that do not affect the weights of public encoders.
HEAD = ("embed_dim", "num_heads", "ffn_dim", "image_layers", "decoder", "decoder_layers", "tied_output", "pooling")


class ImageAdapter(Adapter):
    """Reads a public image encoder; all other layers are initialized."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        encoder = read_image_encoder(source)
        free, inputs = (*FREE, *HEAD, "patch_size", "channels"), PublicInputs(encoder.image)
        return CheckpointParts(self, source.where, encoder.keywords, encoder.state, inputs, headless=True, free=free)

    def adapt(self, parts: CheckpointParts, processor: Any, sizes: Any, seed: int) -> CheckpointParts:
        return super().adapt(init_others(parts, sizes, seed), processor, sizes, seed)
