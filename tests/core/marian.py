"""A random MarianMTModel of transformers, and the same weights in ours."""

from __future__ import annotations

from typing import Any

import torch

from mmattn.backbones.seq2seq import Seq2Seq
from mmattn.pretrained.keymap import load_into
from mmattn.pretrained.marian import convert_marian


def marian(seed: int = 0, **config: Any) -> Any:
    """transformers' model with random weights."""
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(seed)
    model = MarianMTModel(MarianConfig(scale_embedding=True, forced_eos_token_id=None, **config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm.weight" in name:  # of random signs, or a tied output would repeat what it reads
                parameter.copy_(torch.randn_like(parameter).sign())
            elif "embed_positions" not in name:
                scale = 1.0 if ".layers." in name else 0.5
                parameter.copy_(torch.randn_like(parameter) * scale * parameter.shape[-1] ** -0.5)
    return model


def ours(theirs: Any) -> Seq2Seq:
    """Our model with the same weights."""
    converted = convert_marian(theirs.config.to_dict(), theirs.state_dict())
    model = Seq2Seq(**converted.keywords).to(theirs.dtype).eval()
    load_into(model, converted)
    return model
