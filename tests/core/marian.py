"""A random MarianMTModel of transformers, and the same weights in ours, mapped by hand."""

from __future__ import annotations

from typing import Any

import torch

from mmattn.backbones.seq2seq import Seq2Seq

NAMES = (
    ("self_attn_layer_norm", "attention_residual.norm"),
    ("encoder_attn_layer_norm", "cross_residual.norm"),
    ("final_layer_norm", "ffn_residual.norm"),
    ("self_attn", "attention"),
    ("encoder_attn", "cross_attention"),
    ("fc1", "ffn.fc1"),
    ("fc2", "ffn.fc2"),
)


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
    c = theirs.config
    model = Seq2Seq(
        c.vocab_size,
        c.d_model,
        c.encoder_layers,
        c.encoder_attention_heads,
        num_decoder_layers=c.decoder_layers,
        ffn_dim=c.encoder_ffn_dim,
        output_bias=True,
        norm_first=False,
    ).eval()
    found = {"embedding.weight": theirs.model.shared.weight, "output.bias": theirs.final_logits_bias[0]}
    for name, tensor in theirs.model.state_dict().items():
        if ".layers." not in name:
            continue  # the embeddings, and positions, which are sinusoids in both
        for theirs_name, our_name in NAMES:
            if name.split(".")[3] == theirs_name:
                name = name.replace(f".{theirs_name}.", f".{our_name}.")
                break
        if name.startswith("decoder"):
            name = name.replace(".attention.", ".self_attention.").replace("attention_residual", "self_residual")
        found[name] = tensor
    found |= {"target_embedding.weight": found["embedding.weight"], "output.weight": found["embedding.weight"]}
    model = model.to(found["embedding.weight"].dtype)
    model.load_state_dict(found)
    return model
